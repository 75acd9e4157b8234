/// A part of the buffer of a response.
///
/// The offsets take four bytes each: a response is cut off far below 4 GiB, and an index has a few
/// ranges for every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRange {
    start: u32,
    end: u32,
}

impl ByteRange {
    /// The range of a value that is absent. It is outside of every buffer.
    pub(crate) const ABSENT: Self = Self { start: u32::MAX, end: u32::MAX };

    /// The range of a value that is present and empty.
    pub(crate) const EMPTY: Self = Self { start: 0, end: 0 };

    /// Returns the range from `start` up to, but not including, `end`. Returns `None` if it is
    /// reversed, or outside of every buffer.
    #[inline]
    pub(crate) fn new(start: usize, end: usize) -> Option<Self> {
        let (start, end) = (u32::try_from(start).ok()?, u32::try_from(end).ok()?);
        (start <= end && end < u32::MAX).then_some(Self { start, end })
    }

    #[inline]
    pub(crate) fn is_absent(self) -> bool {
        self == Self::ABSENT
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        self.end.wrapping_sub(self.start) as usize
    }

    #[inline]
    pub(crate) fn start(self) -> usize {
        self.start as usize
    }

    #[inline]
    pub(crate) fn end(self) -> usize {
        self.end as usize
    }

    /// Returns the bytes of the range; none if it is absent.
    #[inline]
    pub(crate) fn of(self, buffer: &[u8]) -> &[u8] {
        buffer.get(self.start()..self.end()).unwrap_or_default()
    }
}
