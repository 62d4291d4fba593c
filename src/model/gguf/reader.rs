//! Checked little-endian reads.

use super::GgufError;

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..len).ok_or(GgufError::Truncated(what))?;
        self.position += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of entries that each take at least `entry_bytes` of what is left.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        entry_bytes: usize,
    ) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        let room = (self.bytes.len() - self.position) / entry_bytes.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => Err(GgufError::HugeCount { what, count }),
        }
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        self.text(what).map(str::to_owned)
    }

    /// [`Self::string`] where it lies.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let len = self.count(what, 1)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::InvalidUtf8(what))
    }
}
