//! The head of a CBOR value: its type, and its number or its length.

// The major types.
pub(super) const UNSIGNED: u8 = 0;
pub(super) const NEGATIVE: u8 = 1;
pub(super) const BYTES: u8 = 2;
pub(super) const TEXT: u8 = 3;
pub(super) const ARRAY: u8 = 4;
pub(super) const MAP: u8 = 5;
pub(super) const TAG: u8 = 6;

// Heads of major type 7.
const NULL: u8 = 0xf6;
const UNDEFINED: u8 = 0xf7;
const HALF: u8 = 0xf9;
const FLOAT: u8 = 0xfa;
const DOUBLE: u8 = 0xfb;
pub(super) const END: u8 = 0xff;

/// The head of a value.
#[derive(Clone, Copy)]
pub(super) struct ValueHead {
    pub(super) first: u8,
    /// The number, the length or the bits of a float. Not used if the value has no length.
    pub(super) argument: u64,
}

impl ValueHead {
    #[inline]
    pub(super) fn major(self) -> u8 {
        self.first >> 5
    }

    #[inline]
    pub(super) fn has_length(self) -> bool {
        self.first & 31 != 31
    }

    #[inline]
    pub(super) fn is_null(self) -> bool {
        matches!(self.first, NULL | UNDEFINED)
    }

    /// Returns `None` for a value that is not a float.
    pub(super) fn float(self) -> Option<f64> {
        match self.first {
            HALF => Some(half(self.argument)),
            #[allow(clippy::cast_possible_truncation, reason = "four bytes were read")]
            FLOAT => Some(f64::from(f32::from_bits(self.argument as u32))),
            DOUBLE => Some(f64::from_bits(self.argument)),
            _ => None,
        }
    }
}

/// Decodes a float of two bytes: sign (1 bit), exponent (5), significand (10).
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "few bits")]
fn half(bits: u64) -> f64 {
    let significand = (bits & 0x3ff) as f64 / 1024.0;
    let size = match (bits >> 10 & 31) as i32 {
        0 => significand * 2f64.powi(-14),
        31 => f64::NAN,
        exponent => (1.0 + significand) * 2f64.powi(exponent - 15),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}
