use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::FusedStream;
use futures::{Stream, TryStream};
use pin_project_lite::pin_project;

use super::call_for;
use crate::record::{Acker, Record};

pin_project! {
    /// The stream of [`decode`](crate::RecordStreamExt::decode).
    #[must_use = "streams do nothing unless polled"]
    pub struct Decode<S, F> {
        #[pin]
        stream: S,
        f: F,
        is_done: bool,
    }
}

/// A value with the record from which it was decoded.
///
/// Yielded by [`decode`](crate::RecordStreamExt::decode). It dereferences to the value. It keeps
/// the record, and thereby its response in memory (see [`Record`]): to keep a value for long,
/// separate it by [`into_parts`](Self::into_parts).
///
/// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack), a value that is dropped without
/// [`ack`](Self::ack) stops the checkpoint of its shard.
///
/// ```
/// use kinestream::Decoded;
///
/// struct Order {
///     total: u64,
/// }
///
/// fn handle(order: Decoded<Order>) {
///     println!("{} from {}", order.total, order.record().shard_id());
///     order.ack();
/// }
/// ```
#[derive(Debug)]
pub struct Decoded<T> {
    value: T,
    record: Record,
}

/// The error of [`decode`](crate::RecordStreamExt::decode): of the stream, or of one record.
///
/// It is a [`std::error::Error`], whatever the type `D` of the cause is, as long as that has
/// `Display` and `Debug`: a `String`, `anyhow::Error` or `Box<dyn Error>` is fine. Its text
/// contains the cause, and names the record by its shard and sequence number. It does not contain
/// the payload.
///
/// ```
/// use kinestream::{DecodeError, Record};
///
/// # fn keep(_: &Record, _: &str) {}
/// fn handle<D: ToString>(error: DecodeError<kinestream::Error, D>) -> kinestream::Result<()> {
///     match error {
///         DecodeError::Stream(error) => Err(error),
///         DecodeError::Undecodable { record, cause } => {
///             keep(&record, &cause.to_string());
///             record.ack();
///             Ok(())
///         }
///     }
/// }
/// ```
// Exhaustive: an item of the stream is an error of the stream or a record, and a `match` of both must
// not need a third arm.
#[derive(Debug)]
pub enum DecodeError<E, D> {
    /// The stream of records failed.
    Stream(E),
    /// A record was not decoded. It is not acknowledged.
    Undecodable {
        /// The record.
        record: Box<Record>,
        /// The error of the decoding function.
        cause: D,
    },
}

impl<T> Decoded<T> {
    /// Acknowledges the record, as [`Record::ack`] does.
    pub fn ack(&self) {
        self.record.ack();
    }

    /// Returns the record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Separates the value from the right to acknowledge its record. The record is dropped, and no
    /// longer keeps its response in memory.
    pub fn into_parts(self) -> (T, Acker) {
        (self.value, self.record.acker())
    }

    /// Returns the record, without the value.
    pub fn into_record(self) -> Record {
        self.record
    }

    /// Replaces the value, which stays with its record.
    ///
    /// ```
    /// # fn example(text: kinestream::Decoded<String>) {
    /// let length = text.map(|text| text.len());
    /// println!("{} bytes from {}", *length, length.record().shard_id());
    /// # }
    /// ```
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Decoded<U> {
        Decoded { value: f(self.value), record: self.record }
    }
}

impl<T> Deref for Decoded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Decoded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> AsRef<Record> for Decoded<T> {
    fn as_ref(&self) -> &Record {
        &self.record
    }
}

impl<E, D> DecodeError<E, D> {
    /// Returns the record that was not decoded; `None` if the stream failed.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Stream(_) => None,
            Self::Undecodable { record, .. } => Some(record),
        }
    }
}

impl<E: fmt::Display, D: fmt::Display> fmt::Display for DecodeError<E, D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(formatter),
            Self::Undecodable { record, cause } => {
                let (stream, shard) = (record.stream(), record.shard_id());
                let number = record.sequence_number();
                write!(formatter, "stream {stream}, shard {shard}: record {number}")?;
                if record.is_inner || record.sub_sequence_number > 0 {
                    write!(formatter, ", user record {},", record.sub_sequence_number)?;
                }
                // The alternate form of `anyhow::Error` contains its causes.
                write!(formatter, " was not decoded: {cause:#}")
            }
        }
    }
}

impl<E, D> Error for DecodeError<E, D>
where
    E: Error + 'static,
    D: fmt::Display + fmt::Debug,
{
    /// Returns the source of the stream's error. The text of an undecodable record contains the
    /// cause, which need not be an `Error`.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Stream(error) => error.source(),
            Self::Undecodable { .. } => None,
        }
    }
}

impl<S, F> Decode<S, F> {
    pub(super) fn new(stream: S, f: F) -> Self {
        Self { stream, f, is_done: false }
    }
}

impl<S, F, T, D> Stream for Decode<S, F>
where
    S: TryStream<Ok = Record>,
    F: FnMut(&Record) -> Result<T, D>,
{
    type Item = Result<Decoded<T>, DecodeError<S::Error, D>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        if *this.is_done {
            return Poll::Ready(None);
        }
        let Some(record) = ready!(this.stream.try_poll_next(context)) else {
            *this.is_done = true;
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match record {
            Err(error) => Err(DecodeError::Stream(error)),
            Ok(record) => match call_for(&record, || (this.f)(&record)) {
                Ok(value) => Ok(Decoded { value, record }),
                Err(cause) => Err(DecodeError::Undecodable { record: Box::new(record), cause }),
            },
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.is_done { (0, Some(0)) } else { self.stream.size_hint() }
    }
}

impl<S, F, T, D> FusedStream for Decode<S, F>
where
    S: TryStream<Ok = Record>,
    F: FnMut(&Record) -> Result<T, D>,
{
    fn is_terminated(&self) -> bool {
        self.is_done
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Decode<S, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Decode").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::{FutureExt, StreamExt, TryStreamExt, future, stream};

    use super::*;
    use crate::adapters::RecordStreamExt;
    use crate::adapters::fixtures::RecordFixture;
    use crate::error::ErrorKind;

    fn number(record: &Record) -> anyhow::Result<u32> {
        let text = std::str::from_utf8(record.data())?;
        text.parse().map_err(|error| anyhow::Error::from(error).context("not a number"))
    }

    #[test]
    fn value_and_error_carry_their_record() {
        let acks = Arc::default();
        let fixture = RecordFixture { acks: Arc::clone(&acks), ..RecordFixture::default() };
        let record = |number, data| RecordFixture { number, ..fixture.clone() }.record(data);
        let failed = crate::Error::new(ErrorKind::Rejected, "no");
        let user = Record { sub_sequence_number: 5, ..record(3, b"x") };
        let items =
            [Ok(record(0, b"7")), Ok(record(1, b"x")), Ok(user), Err(failed), Ok(record(2, b"9"))];
        let mut numbers = stream::iter(items).decode(number);
        let mut next = || numbers.next().now_or_never().unwrap();

        let seven = next().unwrap().unwrap();
        assert_eq!((*seven, seven.record().data()), (7, &b"7"[..]));
        seven.map(|seven| seven + 1).ack();
        assert_eq!(acks.numbers(), [0]);

        let error = next().unwrap().unwrap_err();
        let text = "stream orders, shard shardId-000000000000: record 1 was not decoded: \
                    not a number: invalid digit found in string";
        assert_eq!(error.to_string(), text);
        let DecodeError::Undecodable { record, .. } = error else { panic!("expected a record") };
        assert_eq!((record.data(), acks.numbers()), (&b"x"[..], vec![0]));
        record.ack();
        assert_eq!(acks.numbers(), [0, 1]);

        let error = next().unwrap().unwrap_err();
        let text = "stream orders, shard shardId-000000000000: record 3, user record 5, was not \
                    decoded: not a number: invalid digit found in string";
        assert_eq!(error.to_string(), text);

        let error = next().unwrap().unwrap_err();
        assert!(
            matches!(&error, DecodeError::Stream(error) if error.kind() == ErrorKind::Rejected)
        );
        assert_eq!(error.to_string(), "no");

        let (nine, acker) = next().unwrap().unwrap().into_parts();
        acker.ack();
        assert_eq!((nine, acks.numbers()), (9, vec![0, 1, 2]));
        assert!(next().is_none() && numbers.is_terminated());
    }

    /// Compiles the ways in which a program composes the adapters, with `?` into its error type.
    #[test]
    fn errors_convert_into_the_error_of_the_program() {
        type BoxError = Box<dyn Error + Send + Sync>;

        fn numbers() -> impl Stream<Item = Result<Decoded<u32>, impl Error + Send + Sync>> {
            let items = [b"1", b"x"].map(|data| RecordFixture::default().record(data));
            stream::iter(items.map(Ok::<_, crate::Error>)).decode(number)
        }

        async fn boxed() -> Result<(), BoxError> {
            let handled = numbers().ack_filter(|number| **number > 0).buffer_by_key(8, |number| {
                number.ack();
                async { Ok::<_, BoxError>(()) }
            });
            handled.try_for_each(future::ok).await
        }

        async fn any() -> anyhow::Result<usize> {
            let mut batches = numbers().batches(8, std::time::Duration::from_secs(1));
            let mut sum = 0;
            while let Some(batch) = batches.try_next().await? {
                sum += batch.iter().map(|number| **number as usize).sum::<usize>();
                batch.ack();
            }
            Ok(sum)
        }

        let error = boxed().now_or_never().unwrap().unwrap_err();
        assert!(error.to_string().contains("was not decoded"), "{error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let error = runtime.block_on(any()).unwrap_err();
        assert!(error.to_string().contains("was not decoded"), "{error}");
    }
}
