//! Encodes the messages of an event stream.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use serde_json::{Value, json};

pub(super) fn event_of(event: &Value) -> Bytes {
    message("event", ":event-type", "SubscribeToShardEvent", event.to_string())
}

pub(super) fn exception(code: &str, message_text: &str) -> Bytes {
    let payload = json!({ "message": message_text });
    message("exception", ":exception-type", code, payload.to_string())
}

pub(super) fn initial_response() -> Bytes {
    message("event", ":event-type", "initial-response", "{}".to_owned())
}

fn message(of: &str, type_header: &'static str, is_a: &str, payload: String) -> Bytes {
    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let message = Message::new(payload)
        .add_header(Header::new(":message-type", text(of)))
        .add_header(Header::new(type_header, text(is_a)))
        .add_header(Header::new(":content-type", text("application/json")));
    let mut frame = Vec::new();
    match write_message_to(&message, &mut frame) {
        Ok(()) => frame.into(),
        Err(error) => unreachable!("short headers and small events always encode: {error}"),
    }
}
