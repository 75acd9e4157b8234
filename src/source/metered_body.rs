//! The body of a response that takes memory as its bytes arrive.
//!
//! ```text
//!   socket ──► bytes ──► meter takes memory ──► the SDK, or the reader of the body
//!                                  └── too little is free ──► discarded, then an error
//! ```
//!
//! Two meters exist, because two protocols state lengths at different places. A polled response of
//! unknown length grows, and its rest is read and discarded once it exceeds free memory. A pushed
//! message states its length first, so its memory is taken before it is read, and the body ends
//! before a message that does not fit.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_sdk_kinesis::error::BoxError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame};

use crate::mutex::Mutex;

/// Takes the memory of a body.
pub(super) trait BodyMeter: Send + 'static {
    /// Takes the memory of the next bytes, and returns how many of them are passed on. The others
    /// are discarded.
    fn read(&mut self, data: &[u8]) -> usize;

    /// Returns the error with which the body ends after the bytes that were passed on. `is_read` is
    /// true at the end of the body.
    fn error(&mut self, is_read: bool) -> Option<BoxError>;
}

/// Meters the body from here on.
pub(super) fn meter_body<M: BodyMeter>(body: &mut SdkBody, meter: &Arc<Mutex<M>>) {
    let inner = Mutex::new(std::mem::replace(body, SdkBody::taken()));
    *body = SdkBody::from_body_1_x(MeteredBody { inner, meter: Arc::clone(meter) });
}

struct MeteredBody<M> {
    /// Never locked. The mutex only makes the type `Sync`.
    inner: Mutex<SdkBody>,
    meter: Arc<Mutex<M>>,
}

impl<M: BodyMeter> Body for MeteredBody<M> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { inner, meter } = self.get_mut();
        let inner = inner.get_mut();
        loop {
            if let Some(error) = meter.lock().error(false) {
                return Poll::Ready(Some(Err(error)));
            }
            let Some(frame) = ready!(Pin::new(&mut *inner).poll_frame(context)) else {
                return Poll::Ready(meter.lock().error(true).map(Err));
            };
            let data = match frame?.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            let passed = meter.lock().read(&data);
            if passed > 0 {
                return Poll::Ready(Some(Ok(Frame::data(data.slice(..passed)))));
            }
        }
    }
}
