//! The data of a record, after the steps of `--decode`.

mod json;

use std::borrow::Cow;
use std::io::Read;

/// The largest data that a step may produce. A few KiB can decompress to many GiB.
const LARGEST: u64 = 64 << 20;

/// One step of `--decode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Step {
    Gzip,
    Zstd,
    Base64,
    /// Formats JSON.
    Json,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Base64 => "base64",
            Self::Json => "JSON",
        }
    }

    fn apply(self, data: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Gzip => read_limited(flate2::read::MultiGzDecoder::new(data)),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(data);
                read_limited(decoder.map_err(|error| error.to_string())?)
            }
            Self::Base64 => {
                base64_simd::forgiving_decode_to_vec(data).map_err(|_| "not base64".to_owned())
            }
            Self::Json => json::compact(data),
        }
    }
}

fn read_limited(decoder: impl Read) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let read = decoder.take(LARGEST + 1).read_to_end(&mut data);
    read.map_err(|error| error.to_string())?;
    if data.len() as u64 > LARGEST {
        return Err(format!("more than {} MiB", LARGEST >> 20));
    }
    Ok(data)
}

/// Decoded data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    bytes: Cow<'a, [u8]>,
    /// The bytes are valid JSON without white space between its parts.
    is_json: bool,
    /// The formatted JSON would be larger than [`LARGEST`].
    is_too_wide: bool,
}

impl<'a> Payload<'a> {
    /// Applies the steps in their order. If a step fails, returns the data as it was before all
    /// steps, and a note that names the step.
    pub(crate) fn decode(data: &'a [u8], steps: &[Step]) -> (Self, Option<String>) {
        let mut payload = Self::plain(data);
        for step in steps {
            match step.apply(&payload.bytes) {
                Ok(decoded) => {
                    payload = Payload::plain(&[]);
                    payload.bytes = decoded.into();
                    payload.is_json = *step == Step::Json;
                }
                Err(error) => {
                    let note = format!("cannot decode {}: {error}", step.name());
                    return (Self::plain(data), Some(note));
                }
            }
        }
        payload.is_too_wide = payload.is_json && payload.formatted().is_none();
        let note = || format!("it has more than {} MiB with indentation", LARGEST >> 20);
        let note = payload.is_too_wide.then(note);
        (payload, note)
    }

    /// Returns the formatted JSON, unless it is larger than [`LARGEST`].
    fn formatted(&self) -> Option<Vec<u8>> {
        json::pretty(&self.bytes, usize::try_from(LARGEST).unwrap_or(usize::MAX))
    }

    pub(crate) fn plain(data: &'a [u8]) -> Self {
        Self { bytes: data.into(), is_json: false, is_too_wide: false }
    }

    #[cfg(test)]
    pub(crate) fn json(data: Vec<u8>) -> Self {
        Self { bytes: data.into(), is_json: true, is_too_wide: false }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Returns the data, JSON with line ends and indentation.
    pub(crate) fn pretty(&self) -> Cow<'_, [u8]> {
        let formatted = if self.is_json && !self.is_too_wide { self.formatted() } else { None };
        formatted.map_or_else(|| (&*self.bytes).into(), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn steps_apply_in_order() {
        let zipped = gzip(br#"{ "a": 1.50 }"#);
        let text = base64_simd::STANDARD.encode_to_string(&zipped);
        let (payload, note) =
            Payload::decode(text.as_bytes(), &[Step::Base64, Step::Gzip, Step::Json]);
        assert_eq!(note, None);
        assert_eq!(payload.bytes(), br#"{"a":1.50}"#);
        assert_eq!(&*payload.pretty(), b"{\n  \"a\": 1.50\n}");
    }

    #[test]
    fn failed_step_leaves_the_data_as_it_was() {
        let zipped = gzip(b"not json");
        let (payload, note) = Payload::decode(&zipped, &[Step::Gzip, Step::Json]);
        assert_eq!(payload, Payload::plain(&zipped));
        assert!(note.unwrap().starts_with("cannot decode JSON: "));
        let (_, note) = Payload::decode(b"plain", &[Step::Zstd]);
        assert!(note.unwrap().starts_with("cannot decode zstd: "));
    }

    #[test]
    fn decompression_stops_at_the_limit() {
        let bomb = gzip(&vec![0; usize::try_from(LARGEST + 1).unwrap()]);
        assert_eq!(Step::Gzip.apply(&bomb), Err("more than 64 MiB".to_owned()));
    }

    #[test]
    fn json_that_grows_beyond_the_limit_by_indentation_stays_compact() {
        let list = "[".repeat(120) + &"0,".repeat(400_000) + "0" + &"]".repeat(120);
        let zipped = gzip(list.as_bytes());
        let (payload, note) = Payload::decode(&zipped, &[Step::Gzip, Step::Json]);
        assert_eq!(&*payload.pretty(), list.as_bytes());
        assert_eq!(note.unwrap(), "it has more than 64 MiB with indentation");
    }

    proptest! {
        #[test]
        fn compressed_data_is_decoded(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let zstd = zstd::encode_all(&data[..], 1).unwrap();
            let zipped = gzip(&data);
            let (payload, _) = Payload::decode(&zstd, &[Step::Zstd]);
            prop_assert_eq!(payload.bytes(), &data[..]);
            let (payload, _) = Payload::decode(&zipped, &[Step::Gzip]);
            prop_assert_eq!(payload.bytes(), &data[..]);
        }

        #[test]
        fn no_data_panics(
            data in prop::collection::vec(any::<u8>(), 0..100),
            steps in prop::collection::vec(prop::sample::select(vec![Step::Gzip, Step::Zstd, Step::Base64, Step::Json]), 0..4),
        ) {
            let _decoded_or_noted = Payload::decode(&data, &steps);
        }
    }
}
