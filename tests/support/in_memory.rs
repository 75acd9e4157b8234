//! An SDK client of the prepared responses in `canned`, without a socket.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_types::body::SdkBody;

use crate::canned::Canned;

#[derive(Debug)]
struct Connector(Canned);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let [target, content_type] =
            ["x-amz-target", "content-type"].map(|name| request.headers().get(name).unwrap());
        let answer = self.0.answer(target, content_type, request.body().bytes().unwrap());
        HttpConnectorFuture::new(async {
            // Like a socket, which has no response at the first poll.
            tokio::task::yield_now().await;
            let content_type = answer.content_type;
            let body = SdkBody::from_body_1_x(answer);
            let mut response = HttpResponse::new(200.try_into().unwrap(), body);
            response.headers_mut().insert("content-type", content_type);
            Ok(response)
        })
    }
}

/// Returns a client, and prepares the responses of `stream`.
pub(crate) fn client(stream: &str) -> Client {
    let canned = Canned::default();
    let body = format!(r#"{{"StreamName":"{stream}"}}"#);
    canned.answer("GetShardIterator", "application/x-amz-json-1.1", body.as_bytes());
    let connector = SharedHttpConnector::new(Connector(canned));
    Client::from_conf(
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::for_tests())
            .http_client(http_client_fn(move |_settings, _components| connector.clone()))
            .build(),
    )
}
