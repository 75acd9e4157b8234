include!("../../examples/cookbook/assumed_role.rs");

mod tests {
    use std::sync::{Arc, Mutex};

    use aws_smithy_runtime_api::client::http::{
        HttpClient, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_types::body::SdkBody;
    use kinestream::{EndingPosition, StartingPosition};

    use super::*;
    use crate::World;

    /// The response of the token service (STS), with credentials of the role.
    const ASSUMED: &str = "
        <AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
          <AssumeRoleResult><Credentials>
            <AccessKeyId>of-the-role</AccessKeyId>
            <SecretAccessKey>secret</SecretAccessKey>
            <SessionToken>token</SessionToken>
            <Expiration>2100-01-01T00:00:00Z</Expiration>
          </Credentials></AssumeRoleResult>
        </AssumeRoleResponse>";

    /// Answers calls of the token service, and passes all others on to Kinesis.
    #[derive(Debug)]
    struct Aws {
        kinesis: SharedHttpConnector,
        calls: Arc<Mutex<Vec<String>>>,
    }

    impl HttpConnector for Aws {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let body = request.body().bytes().map(String::from_utf8_lossy).unwrap_or_default();
            self.calls.lock().unwrap().push(format!("{} {body}", request.uri()));
            if !request.uri().starts_with("https://sts.") {
                return self.kinesis.call(request);
            }
            let status = 200_u16.try_into().unwrap();
            HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(ASSUMED))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stream_of_another_account_and_region_is_read_as_the_role() {
        let world = World::new(1);
        world.orders.shard(0).put("17");
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let http = {
            let (kinesis, calls) = (world.kinesis.http_client(), Arc::clone(&calls));
            http_client_fn(move |settings, components| {
                let (kinesis, calls) =
                    (kinesis.http_connector(settings, components), Arc::clone(&calls));
                SharedHttpConnector::new(Aws { kinesis, calls })
            })
        };
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .test_credentials()
            .http_client(http)
            .load()
            .await;
        let job = Consumer::builder(client(&config).await, STREAM)
            .starting_position(StartingPosition::TrimHorizon)
            .ending_position(EndingPosition::Latest);
        run(job).await.unwrap();

        let calls = calls.lock().unwrap();
        let (sts, kinesis) = calls.split_first().unwrap();
        assert!(sts.starts_with("https://sts.eu-west-1."), "{sts}");
        assert!(sts.contains("role%2Forders-reader"), "{sts}");
        assert!(kinesis.iter().all(|call| call.contains(".eu-west-1.")), "{kinesis:?}");
        let calls = world.kinesis.calls();
        let is_of_role = |key: &Option<String>| key.as_deref() == Some("of-the-role");
        assert!(calls.iter().all(|call| is_of_role(&call.access_key_id)), "{calls:?}");
        assert!(calls.iter().any(|call| call.records == 1), "expected the order: {calls:?}");

        // A client of the region of this program is refused.
        let error = Consumer::builder(Client::new(&config), STREAM).build().unwrap_err();
        assert!(error.to_string().contains("build the client with region eu-west-1"), "{error}");
    }
}
