//! A client of DynamoDB whose requests pass a link: it records them, changes them, and fails them.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use kinestream::DynamoDbStore;
use serde_json::{Value, json};

use crate::dynamodb_server::{DynamoDbServer, TABLE, config_of};

/// The fate of a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    None,
    /// It is answered without the server, with this status and body.
    Answer(u16, Value),
    /// The connection fails before it is sent.
    Unsent,
    /// The server carries it out, and the answer is lost.
    Lost,
    /// It is never answered, nor sent.
    Hang,
    /// It is never answered, and reaches the server after this time.
    Late(Duration),
}

/// A request, as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) operation: String,
    pub(crate) body: Value,
    /// The read units or write units that the server reports.
    pub(crate) units: f64,
}

type Decide = dyn Fn(&str, &mut Value) -> Fault + Send + Sync;

/// A link to a server.
#[derive(Clone)]
pub(crate) struct Link {
    port: u16,
    decide: Arc<Decide>,
    sent: Arc<Mutex<Vec<Sent>>>,
    abandoned: Arc<AtomicUsize>,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Link {
    /// Creates a link. `decide` gets the operation and the body of each request, which it may
    /// change.
    pub(crate) fn new(
        server: &DynamoDbServer,
        decide: impl Fn(&str, &mut Value) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let (sent, abandoned) = (Arc::default(), Arc::default());
        Self { port: server.port(), decide: Arc::new(decide), sent, abandoned }
    }

    /// Creates a link that fails the first attempt of each request in this way.
    pub(crate) fn failing_once(server: &DynamoDbServer, fault: Fault) -> Self {
        let known = Mutex::new(HashSet::new());
        Self::new(server, move |operation, body| {
            let is_new = known.lock().unwrap().insert(format!("{operation} {body}"));
            if is_new { fault.clone() } else { Fault::None }
        })
    }

    pub(crate) fn store(&self) -> DynamoDbStore {
        DynamoDbStore::new(self.client(), TABLE)
    }

    pub(crate) fn client(&self) -> Client {
        let link = self.clone();
        let inner = aws_smithy_http_client::Builder::new().build_http();
        let client = http_client_fn(move |settings, components| {
            let inner = inner.http_connector(settings, components);
            SharedHttpConnector::new(Connector { link: link.clone(), inner })
        });
        Client::from_conf(
            config_of(&format!("http://127.0.0.1:{}", self.port)).http_client(client).build(),
        )
    }

    /// Returns the requests since the last call.
    pub(crate) fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    /// Returns the number of requests that the client gave up before their answers arrived. They are
    /// not among the sent ones.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// Counts a request that is dropped before its answer has arrived.
struct Pending {
    abandoned: Arc<AtomicUsize>,
    is_answered: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.abandoned.fetch_add(usize::from(!self.is_answered), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Connector {
    link: Link,
    inner: SharedHttpConnector,
}

impl HttpConnector for Connector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
        let fault = (self.link.decide)(&operation, &mut body);
        body["ReturnConsumedCapacity"] = json!("TOTAL");
        let bytes = body.to_string();
        request.headers_mut().insert("content-length", bytes.len().to_string());
        *request.body_mut() = SdkBody::from(bytes);
        let (inner, sent) = (self.inner.clone(), Arc::clone(&self.link.sent));
        let abandoned = Arc::clone(&self.link.abandoned);
        HttpConnectorFuture::new(async move {
            let mut pending = Pending { abandoned, is_answered: false };
            let failed = |why: &str| ConnectorError::io(why.to_owned().into());
            let answer = match fault {
                Fault::Unsent => return Err(failed("connection refused by the test")),
                Fault::Hang => std::future::pending().await,
                Fault::Late(pause) => {
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        inner.call(request).await
                    });
                    std::future::pending().await
                }
                Fault::Answer(status, ref body) => {
                    Ok(answer(status, body.to_string().into_bytes()))
                }
                Fault::None | Fault::Lost => inner.call(request).await,
            };
            let answered = answer?;
            let status = answered.status().as_u16();
            let read = ByteStream::new(answered.into_body()).collect().await;
            let bytes = read.map_err(|_| failed("answer cut short"))?.into_bytes();
            let units = units(&serde_json::from_slice(&bytes).unwrap_or_default());
            sent.lock().unwrap().push(Sent { operation, body, units });
            pending.is_answered = true;
            if matches!(fault, Fault::Lost) {
                return Err(failed("answer lost by the test"));
            }
            Ok(crate::dynamodb_link::answer(status, bytes.to_vec()))
        })
    }
}

fn answer(status: u16, body: Vec<u8>) -> HttpResponse {
    let mut answer = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
    answer.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    answer
}

/// Returns the body of an error.
pub(crate) fn error(code: &str, message: &str) -> Value {
    json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": message })
}

/// Returns the body of a cancelled transaction. Items without a reason have the code `None`.
pub(crate) fn cancelled(codes: &[&str]) -> Value {
    let mut body = error("TransactionCanceledException", "Transaction cancelled");
    let reasons = codes.iter().map(|code| json!({ "Code": code }));
    body["CancellationReasons"] = reasons.collect();
    body
}

/// Returns the sum of the consumed units of an answer.
fn units(answer: &Value) -> f64 {
    let consumed = match &answer["ConsumedCapacity"] {
        Value::Array(several) => several.iter().collect(),
        one => vec![one],
    };
    consumed.iter().filter_map(|it| it["CapacityUnits"].as_f64()).sum()
}
