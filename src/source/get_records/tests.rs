mod comparison;
mod failing;
mod protocol;
mod server;

use aws_sdk_kinesis::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;

use self::server::{Server, Silence, answer, cbor, failed, in_frames, json};
use super::super::memory_budget::MemoryBudget;
use super::super::wire_format::WireFormat;
use super::exchange::{CBOR, JSON};
use super::*;
use crate::error::RetryAction;

const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const HTML: &str = "text/html";

/// A consumer of one shard.
struct Reader {
    client: Client,
    wire: WireChoice,
    failures: ShardFailures,
    pace: Pace,
    memory: MemoryBudget,
}

impl Reader {
    fn new(client: Client, format: WireFormat) -> Self {
        let (wire, memory) = (WireChoice::new(format), MemoryBudget::new(1 << 20));
        let (failures, pace) = (ShardFailures::default(), Pace::new(Duration::from_secs(1)));
        Self { client, wire, failures, pace, memory }
    }

    async fn read(&mut self) -> RecordsOutcome {
        let space = self.memory.shard().empty();
        let request = RecordsRequest { iterator: "i", limit: 1000, space, least: None };
        let (client, wire) = (&self.client, &self.wire);
        let caller = RecordsCaller { client, arn: None, wire };
        caller.call(request, &mut self.failures, &mut self.pace).await
    }

    /// Makes a call and expects a response.
    async fn numbers(&mut self) -> (Vec<String>, Option<FallbackReason>) {
        let outcome = self.read().await;
        let read = outcome.result.unwrap_or_else(|failed| panic!("{:?}", failed.failure));
        (numbers(&read.response), outcome.fallback)
    }

    async fn failure(&mut self) -> (ClassifiedError, Option<FallbackReason>) {
        let outcome = self.read().await;
        (outcome.result.err().expect("expected a failure").failure, outcome.fallback)
    }
}

fn auto(server: &Server) -> Reader {
    Reader::new(server.client(), WireFormat::Auto)
}

/// Returns a reader that has checked CBOR.
async fn checked(server: &Server) -> Reader {
    let mut reader = auto(server);
    for answer in [answer(200, JSON, json([1])), answer(200, CBOR, cbor([1]))] {
        server.0.lock().answers.push_front(answer);
    }
    assert_eq!(reader.numbers().await, (vec!["1".to_owned()], None));
    server.0.lock().requests.clear();
    reader
}

fn numbers(response: &Response) -> Vec<String> {
    let records = response.records.iter().flatten();
    let number = |record: &RecordRange| record.sequence_number.of(&response.buffer);
    records.map(|record| String::from_utf8_lossy(number(record)).into_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn request_in_cbor_is_complete_and_signed() {
    let server = Server::new([answer(400, CBOR, cbor([]))]);
    let space = MemoryBudget::new(1 << 20).shard().empty();
    let iterator = "a".repeat(300);
    let request = RecordsRequest { iterator: &iterator, limit: 10_000, space, least: None };
    let (client, wire) = (&server.client(), &WireChoice::new(WireFormat::Auto));
    // A checked format keeps the limit.
    let failures = &mut ShardFailures::default();
    let mut trial = wire.begin(failures).unwrap();
    trial.answered(CborAnswer::Records);
    trial.repeated(RepeatCause::Check, Repeated::Succeeded(Comparison::Equal));
    let caller = RecordsCaller { client, arn: Some(ARN), wire };
    caller.call(request, failures, &mut Pace::new(Duration::from_secs(1))).await;
    let mut expected = b"\xbf\x6dShardIterator\x79\x01\x2c".to_vec();
    expected.extend(iterator.as_bytes());
    expected.extend(b"\x65Limit\x19\x27\x10\x69StreamARN\x78\x34");
    expected.extend(ARN.as_bytes());
    expected.push(0xff);
    let script = server.0.lock();
    let length = expected.len().to_string();
    assert_eq!(script.requests, [(CBOR.to_owned(), length, expected)]);
    assert!(
        script.signed[0].contains("SignedHeaders=content-length;content-type;"),
        "{}",
        script.signed[0]
    );
}

#[tokio::test(start_paused = true)]
async fn json_option_reads_by_json() {
    let server = Server::new([answer(200, JSON, json([1, 2]))]);
    let mut reader = Reader::new(server.client(), WireFormat::Json);
    let RecordsOutcome { result, fallback } = reader.read().await;
    let read = result.ok().unwrap();
    assert_eq!((numbers(&read.response), fallback), (vec!["1".to_owned(), "2".to_owned()], None));
    let record = read.response.records.as_ref().unwrap()[0];
    assert_eq!(record.data.of(&read.response.buffer), b"hello");
    assert_eq!(record.partition_key.of(&read.response.buffer), b"key-1");
    assert_eq!(record.arrival_millis, Some(1_767_225_600_125));
    assert_eq!((read.needed, read.limit), (while_read(json([1, 2]).len()), 1000));
    assert_eq!(read.response.next_shard_iterator.as_deref(), Some("next"));
    assert_eq!(read.response.millis_behind_latest, Some(5));
    let bytes = read.response.memory();
    assert_eq!(read.space.taken(), bytes, "the reservation covers the response");
    assert_eq!(server.formats(), ["json"]);
}

#[tokio::test(start_paused = true)]
async fn server_without_cbor_is_read_by_json() {
    let refusals = [
        answer(404, "text/plain", ""),
        failed(400, JSON, "SerializationException"),
        answer(200, HTML, "<html>hello</html>"),
        answer(200, JSON, "{}"),
        failed(400, CBOR, "UnknownOperationException"),
        failed(400, CBOR, "com.amazon#SerializationException"),
    ];
    for refusal in refusals {
        let server =
            Server::new([refusal, answer(200, JSON, json([1])), answer(200, JSON, json([2]))]);
        let mut reader = auto(&server);
        let first = (vec!["1".into()], Some(FallbackReason::Unsupported));
        assert_eq!(reader.numbers().await, first);
        assert_eq!(reader.numbers().await, (vec!["2".into()], None));
        assert_eq!(server.formats(), ["cbor", "json", "json"]);
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_call_that_fails_as_well_proves_nothing() {
    let server = Server::new([
        answer(503, HTML, ""),
        failed(503, JSON, "ServiceUnavailable"),
        answer(200, CBOR, cbor([])),
    ]);
    let mut reader = auto(&server);
    let (failure, reason) = reader.failure().await;
    assert_eq!((failure.action, reason), (RetryAction::Retry, None));
    assert_eq!(reader.numbers().await, (Vec::new(), None));
    assert_eq!(server.formats(), ["cbor", "json", "cbor"]);
}

#[tokio::test(start_paused = true)]
async fn json_answer_to_a_call_in_cbor_is_read_without_another_call() {
    let server = Server::new([answer(200, JSON, json([1])), answer(200, JSON, json([2]))]);
    let mut reader = auto(&server);
    let first = (vec!["1".into()], Some(FallbackReason::Unsupported));
    assert_eq!(reader.numbers().await, first);
    assert_eq!(reader.numbers().await, (vec!["2".into()], None));
    assert_eq!(server.formats(), ["cbor", "json"]);
}

#[tokio::test(start_paused = true)]
async fn unreadable_cbor_is_read_by_json() {
    let short = &cbor([1, 2])[..60];
    for is_checked in [false, true] {
        let server = Server::new([answer(200, CBOR, short), answer(200, JSON, json([1, 2]))]);
        let mut reader = if is_checked { checked(&server).await } else { auto(&server) };
        let read = (vec!["1".into(), "2".into()], Some(FallbackReason::Unreadable));
        assert_eq!(reader.numbers().await, read);
        assert_eq!(server.formats(), ["cbor", "json"]);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_front_end_keep_a_checked_format() {
    let outage = || answer(503, JSON, r#"{"code":"ServiceUnavailable","message":"no"}"#);
    let mut answers: Vec<_> = (0..3).map(|_| outage()).collect();
    answers.push(answer(200, CBOR, cbor([2])));
    answers.extend((0..4).map(|_| outage()));
    answers.push(answer(200, JSON, json([3])));
    let server = Server::new(answers);
    let mut reader = checked(&server).await;
    for _ in 0..3 {
        let (failure, reason) = reader.failure().await;
        assert_eq!((failure.action, reason), (RetryAction::Retry, None));
    }
    assert_eq!(reader.numbers().await, (vec!["2".into()], None));
    for _ in 0..3 {
        reader.failure().await;
    }
    assert_eq!(reader.numbers().await, (vec!["3".into()], None), "the fourth is repeated");
    assert_eq!(server.formats().concat(), "cbor".repeat(8) + "json");
}

#[tokio::test(start_paused = true)]
async fn error_in_cbor_is_classified_like_the_same_error_in_json() {
    let codes = [
        (400, "ExpiredIteratorException"),
        (400, "ProvisionedThroughputExceededException"),
        (400, "KMSThrottlingException"),
        (400, "KMSDisabledException"),
        (400, "ResourceNotFoundException"),
        (400, "InvalidArgumentException"),
        (400, "AccessDeniedException"),
        (403, "ExpiredTokenException"),
        (500, "InternalFailureException"),
        (500, "InternalFailure"),
        (503, "ServiceUnavailable"),
        (400, "ValidationException"),
        (400, "SomethingNew"),
    ];
    for (status, code) in codes {
        for prefix in ["", "com.amazonaws.kinesis#"] {
            let name = format!("{prefix}{code}");
            let server = Server::new([failed(status, CBOR, &name), failed(status, JSON, &name)]);
            let in_cbor = auto(&server).failure().await.0;
            let mut by_json = Reader::new(server.client(), WireFormat::Json);
            let in_json = by_json.failure().await.0;
            assert_eq!(server.formats(), ["cbor", "json"], "{name}");
            assert_eq!(in_cbor.action, in_json.action, "{name}");
            assert_eq!(in_cbor.error.kind(), in_json.error.kind(), "{name}");
            assert_eq!(in_cbor.error.to_string(), in_json.error.to_string());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn error_without_a_code_is_classified_like_one_in_json() {
    let server = Server::new([answer(500, CBOR, b"\xbf\xff".as_slice()), answer(500, JSON, "{}")]);
    let in_cbor = auto(&server).failure().await.0;
    let in_json = Reader::new(server.client(), WireFormat::Json).failure().await.0;
    assert_eq!(in_cbor.action, in_json.action);
    assert_eq!(in_cbor.error.to_string(), in_json.error.to_string());
}

#[tokio::test(start_paused = true)]
async fn body_that_cannot_be_read_is_an_unusable_response() {
    let body = json([1]);
    let length = body.len();
    let bodies = [
        in_frames(body.as_bytes(), Some(length - 1)),
        in_frames(body.as_bytes(), Some(length + 1)),
        in_frames(body.as_bytes(), Some(usize::MAX)),
        SdkBody::from(&body[..length - 1]),
        SdkBody::from("<html>"),
        SdkBody::empty(),
    ];
    for body in bodies {
        let server = Server::new([answer(200, JSON, body)]);
        let failure = Reader::new(server.client(), WireFormat::Json).failure().await.0;
        assert_eq!(failure.action, RetryAction::RetryThenReport);
        assert_eq!(failure.error.kind(), ErrorKind::Unavailable);
        assert!(failure.error.to_string().contains("cannot be parsed"), "{}", failure.error);
    }
}

#[tokio::test(start_paused = true)]
async fn body_of_a_cbor_response_that_breaks_off_is_retried_by_cbor() {
    let body = cbor([2]);
    let server = Server::new([
        answer(200, CBOR, in_frames(&body, Some(body.len() + 1))),
        answer(200, CBOR, body),
    ]);
    let mut reader = checked(&server).await;
    let (failure, reason) = reader.failure().await;
    assert_eq!((failure.action, reason), (RetryAction::RetryThenReport, None));
    assert_eq!(reader.numbers().await, (vec!["2".into()], None));
}

#[tokio::test(start_paused = true)]
async fn response_without_memory_is_rejected() {
    let server = Server::new([answer(200, CBOR, cbor(0..9)), answer(200, JSON, json(0..9))]);
    for format in [WireFormat::Auto, WireFormat::Json] {
        let mut reader = Reader::new(server.client(), format);
        reader.memory = MemoryBudget::new(1);
        let shard = reader.memory.shard();
        let mut held = shard.empty();
        held.resize_up_to(usize::MAX);
        let request = RecordsRequest { iterator: "i", limit: 9, space: shard.empty(), least: None };
        let (client, wire) = (&reader.client, &reader.wire);
        let caller = RecordsCaller { client, arn: None, wire };
        let outcome = caller.call(request, &mut reader.failures, &mut reader.pace).await;
        let failed = outcome.result.err().unwrap();
        let length = if format == WireFormat::Auto { cbor(0..9).len() } else { json(0..9).len() };
        assert_eq!((failed.was_rejected, failed.length), (true, length));
    }
}

#[tokio::test(start_paused = true)]
async fn silent_body_times_out() {
    let server = Server::new([]);
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(2));
    let impatient = server.config().timeout_config(timeouts.build()).build();
    for (client, seconds) in [(server.client(), 20..31), (Client::from_conf(impatient), 2..3)] {
        let body = SdkBody::from_body_1_x(Silence);
        server.0.lock().answers.push_back(answer(200, JSON, body));
        let began = Instant::now();
        let failure = Reader::new(client, WireFormat::Json).failure().await.0;
        assert_eq!(failure.error.kind(), ErrorKind::Unavailable);
        let time = began.elapsed().as_secs();
        assert!(seconds.contains(&time), "{time} s: {:?}", failure.action);
    }
}

/// An interceptor that panics after each response.
#[derive(Debug)]
struct Panics;

impl Intercept for Panics {
    fn name(&self) -> &'static str {
        "Panics"
    }

    fn read_after_deserialization(
        &self,
        _context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        panic!("deliberate")
    }
}

#[tokio::test(start_paused = true)]
async fn panic_after_a_refusal_is_returned() {
    for (status, content_type, body) in
        [(500, HTML, Vec::new()), (400, JSON, b"{}".to_vec()), (400, CBOR, b"{}".to_vec())]
    {
        let server = Server::new([answer(status, content_type, body)]);
        let client = Client::from_conf(server.config().interceptor(Panics).build());
        let mut reader = Reader::new(client, WireFormat::Auto);
        let (failure, fallback) = reader.failure().await;
        assert_eq!((failure.error.kind(), fallback), (ErrorKind::Panicked, None));
        assert_eq!(server.formats(), ["cbor"]);
    }
}
