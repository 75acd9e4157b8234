//! The model behind the SDK's HTTP interface: JSON in, JSON out, no socket.

use aws_sdk_kinesis::config::SharedHttpClient;
use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::contents::{id_of, index_of};
use super::model::Shared;
use super::operations::{Answer, refusal};
use super::{Call, Outcome};

pub(super) fn http_client(kinesis: Shared) -> SharedHttpClient {
    let connector = SharedHttpConnector::new(Connector(kinesis));
    http_client_fn(move |_settings, _components| connector.clone())
}

#[derive(Debug, Clone)]
struct Connector(Shared);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(UnderWay::begin(&self.0, &request).run())
    }
}

/// A call that counts as under way until it is dropped.
struct UnderWay {
    kinesis: Shared,
    index: usize,
    operation: String,
    body: Value,
    outcome: Outcome,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.kinesis.lock().in_flight -= 1;
    }
}

impl UnderWay {
    fn begin(kinesis: &Shared, request: &HttpRequest) -> Self {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = serde_json::from_slice(request.body().bytes().unwrap_or_default());
        let body: Value = body.unwrap_or_default();
        let call = Call {
            operation: operation.clone(),
            shard_id: shard_of(&body).and_then(|shard| id_of(shard).parse().ok()),
            at: Instant::now(),
            status: None,
            records: 0,
            bytes: 0,
            last: None,
        };
        let mut model = kinesis.lock();
        model.in_flight += 1;
        let outcome = model.decide(&call);
        model.calls.push(call);
        let index = model.calls.len() - 1;
        drop(model);
        Self { kinesis: kinesis.clone(), index, operation, body, outcome }
    }

    async fn run(self) -> Result<HttpResponse, ConnectorError> {
        // As a socket would: nothing is there at once.
        tokio::task::yield_now().await;
        let latency = self.kinesis.lock().latency;
        if !latency.is_zero() {
            sleep(latency).await;
        }
        match &self.outcome {
            Outcome::Served => Ok(self.answer(self.serve(true))),
            Outcome::Failed { status, code, message } => {
                Ok(self.answer(refusal(*status, code, message)))
            }
            Outcome::Garbled { status, body } => Ok(self.answer((*status, body.clone()))),
            Outcome::Refused => Err(ConnectorError::io("connection refused".into())),
            Outcome::Hangs => std::future::pending().await,
            Outcome::Delayed(time) => {
                let answer = self.serve(true);
                sleep(*time).await;
                Ok(self.answer(answer))
            }
            Outcome::Lost => {
                self.serve(false);
                Err(ConnectorError::io("connection reset".into()))
            }
            Outcome::Cut => {
                let (status, mut body) = self.serve(false);
                body.truncate(body.len() / 2);
                Ok(self.answer((status, body)))
            }
        }
    }

    fn serve(&self, arrives: bool) -> Answer {
        self.kinesis.lock().serve(self.index, &self.operation, &self.body, arrives)
    }

    fn answer(&self, (status, body): Answer) -> HttpResponse {
        let seconds = {
            let mut model = self.kinesis.lock();
            model.calls[self.index].status = Some(status);
            i64::try_from(model.now() / 1000).unwrap_or_default()
        };
        let date = aws_smithy_types::DateTime::from_secs(seconds)
            .fmt(aws_smithy_types::date_time::Format::HttpDate)
            .unwrap_or_default();
        let status = StatusCode::try_from(status)
            .unwrap_or_else(|error| panic!("an outcome has a status that is none: {error}"));
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        response.headers_mut().insert("date", date);
        response.headers_mut().insert("content-type", "application/x-amz-json-1.1");
        response
    }
}

/// The shard that the body of a call names, by itself or by an iterator of it.
fn shard_of(body: &Value) -> Option<usize> {
    match (body["ShardIterator"].as_str(), body["ShardId"].as_str()) {
        (Some(iterator), _) => iterator.split('/').nth(1)?.parse().ok(),
        (None, Some(id)) => index_of(id),
        (None, None) => None,
    }
}
