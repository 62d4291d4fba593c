//! How few tokens a text can have, known from its bytes alone.

/// Weights are counted in this part of a token, so that sums are exact.
const UNITS_PER_TOKEN: u64 = 1 << 32;

/// A weight for each byte, such that no text has fewer tokens than its bytes weigh.
///
/// A byte weighs `1 / L`, where `L` is the length of the longest token that has the byte. A token of `n`
/// bytes is no longer than the longest token of any of its bytes, so its bytes weigh `n / n` at most.
pub(super) struct ByteWeights {
    units: [u64; 256],
    longest: usize,
}

impl ByteWeights {
    /// `tokens`: the bytes that each token stands for in a text. Bytes for which `is_dropped` says that the
    /// tokenizer may leave them out weigh nothing; others that no token has become a token each.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = &'a [u8]>,
        is_dropped: impl Fn(u8) -> bool,
    ) -> Self {
        let mut longest_with = [1_usize; 256];
        for token in tokens {
            for byte in token {
                let longest = &mut longest_with[usize::from(*byte)];
                *longest = token.len().max(*longest);
            }
        }
        let units = std::array::from_fn(|byte| match is_dropped(byte as u8) {
            true => 0,
            false => UNITS_PER_TOKEN / longest_with[byte] as u64,
        });
        Self {
            units,
            longest: longest_with.into_iter().max().unwrap_or(1),
        }
    }

    /// One byte of a text that the tokenizer spells as the bytes of `spelled`.
    pub(super) fn set_spelling(&mut self, byte: u8, spelled: &[u8]) {
        let units = spelled.iter().map(|byte| self.units[usize::from(*byte)]);
        self.units[usize::from(byte)] = units.sum();
    }

    /// No token stands for more bytes than this.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// A number of tokens that no encoding of `text` goes below.
    pub(super) fn min_tokens(&self, text: &str) -> usize {
        let units: u64 = text
            .bytes()
            .map(|byte| self.units[usize::from(byte)])
            .fold(0, u64::saturating_add);
        usize::try_from(units / UNITS_PER_TOKEN).unwrap_or(usize::MAX)
    }
}
