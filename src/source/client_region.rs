//! The region whose Kinesis a client calls.

use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::HttpRequest;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::config::{Credentials, IdentityCache};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use futures::FutureExt;

use crate::error::contain;
use crate::mutex::Mutex;

/// The DNS suffixes of the endpoints of Kinesis:
/// <https://docs.aws.amazon.com/general/latest/gr/ak.html>,
/// <https://docs.amazonaws.cn/en_us/aws/latest/userguide/endpoints-Beijing.html>.
const AWS_SUFFIXES: [&str; 5] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.com.cn",
    ".api.aws",
];

/// Returns the region of the client if its calls go to AWS in that region, and not in `region`.
///
/// `None` if the regions are equal, the client has no region, or its endpoint is not one of AWS for
/// its region, such as that of LocalStack: only an AWS endpoint is known to lack the streams of
/// other regions.
pub(crate) fn other_region(client: &Client, region: &str) -> Option<String> {
    let own = client.config().region()?.as_ref();
    if own == region {
        return None;
    }
    let host = called_host(client)?;
    is_aws_in(&host, own).then(|| own.to_owned())
}

/// Returns true if the host is an endpoint of AWS in the region.
fn is_aws_in(host: &str, region: &str) -> bool {
    let is_aws = AWS_SUFFIXES.iter().any(|suffix| host.ends_with(suffix));
    is_aws && host.split('.').any(|label| label == region)
}

/// Returns the host that the client calls; `None` if it is not known without waiting.
///
/// The SDK resolves an endpoint only within a call, from the region, the endpoint URL, the
/// environment and the resolver of the client. The call here ends where it would be sent. It needs
/// no runtime, and uses neither the credentials nor the HTTP client of the caller.
fn called_host(client: &Client) -> Option<String> {
    let recorder = Recorder::default();
    let connector = SharedHttpConnector::new(recorder.clone());
    let config = client
        .config()
        .to_builder()
        .http_client(http_client_fn(move |_settings, _components| connector.clone()))
        .credentials_provider(Credentials::new("none", "none", None, None, "none"))
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .build();
    // An interceptor or a resolver of the caller may panic.
    let call =
        contain(
            async move { Client::from_conf(config).list_shards().stream_name("none").send().await },
        );
    let _never_sent = call.now_or_never()?;
    let url = recorder.0.lock().take()?;
    let (_scheme, rest) = url.split_once("://")?;
    rest.split(['/', ':', '?']).next().map(str::to_owned)
}

/// Keeps the URL of a request, and sends nothing.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Option<String>>>);

impl HttpConnector for Recorder {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let before = self.0.lock().replace(request.uri().to_owned());
        drop(before);
        HttpConnectorFuture::ready(Err(ConnectorError::user("not sent".into())))
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::config::endpoint::{EndpointFuture, Params, ResolveEndpoint};
    use aws_sdk_kinesis::config::{BehaviorVersion, Builder, Config, Intercept, Region};

    use super::*;

    fn client(options: impl FnOnce(Builder) -> Builder) -> Client {
        let builder = Config::builder().behavior_version(BehaviorVersion::latest());
        Client::from_conf(options(builder.region(Region::new("us-east-1"))).build())
    }

    fn refused(options: impl FnOnce(Builder) -> Builder) -> Option<String> {
        other_region(&client(options), "eu-west-1")
    }

    #[test]
    fn client_of_another_region_is_recognized_by_its_endpoint() {
        let found = Some("us-east-1".to_owned());
        assert_eq!(refused(|builder| builder), found);
        assert_eq!(refused(|builder| builder.use_fips(true)), found);
        assert_eq!(refused(|builder| builder.use_dual_stack(true)), found);
        let endpoint = "https://vpce-0a1b2c3d.kinesis.us-east-1.vpce.amazonaws.com";
        assert_eq!(refused(|builder| builder.endpoint_url(endpoint)), found);
        let china = |builder: Builder| builder.region(Region::new("cn-north-1"));
        assert_eq!(refused(china), Some("cn-north-1".to_owned()));
    }

    #[test]
    fn client_of_the_same_region_is_not_refused() {
        assert_eq!(other_region(&client(|builder| builder), "us-east-1"), None);
    }

    #[test]
    fn client_without_a_region_is_not_refused() {
        assert_eq!(refused(|builder| builder.region(None)), None);
    }

    #[test]
    fn client_with_an_endpoint_outside_of_its_region_is_not_refused() {
        for endpoint in [
            "http://127.0.0.1:4566",
            "http://localhost:4566/base",
            "https://us-east-1.localhost.localstack.cloud:4566",
            "https://kinesis.eu-west-1.amazonaws.com",
            "https://proxy.internal/us-east-1",
        ] {
            assert_eq!(refused(|builder| builder.endpoint_url(endpoint)), None, "{endpoint}");
        }
    }

    #[derive(Debug)]
    struct Waiting;

    impl ResolveEndpoint for Waiting {
        fn resolve_endpoint<'a>(&'a self, _params: &'a Params) -> EndpointFuture<'a> {
            EndpointFuture::new(std::future::pending())
        }
    }

    #[derive(Debug)]
    struct Panicking;

    impl Intercept for Panicking {
        fn name(&self) -> &'static str {
            "Panicking"
        }

        fn read_before_execution(
            &self,
            _context: &aws_sdk_kinesis::config::interceptors::BeforeSerializationInterceptorContextRef<'_>,
            _config: &mut aws_sdk_kinesis::config::ConfigBag,
        ) -> Result<(), aws_sdk_kinesis::error::BoxError> {
            panic!("a bug of the caller")
        }
    }

    #[test]
    fn client_whose_endpoint_is_not_known_at_once_is_not_refused() {
        assert_eq!(refused(|builder| builder.endpoint_resolver(Waiting)), None);
        assert_eq!(refused(|builder| builder.interceptor(Panicking)), None);
    }
}
