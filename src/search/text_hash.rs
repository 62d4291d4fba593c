//! A text's hash that a node passes on to those below it: what a tree stores stays linear in its
//! own texts, however deep it is.

/// FNV-1a of 128 bits. It reads byte after byte, so the hash of a text is the same however it is cut into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TextHash(u128);

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Default for TextHash {
    /// Of the empty text.
    fn default() -> Self {
        Self(OFFSET_BASIS)
    }
}

impl TextHash {
    /// Of the text with `text` behind it.
    pub fn followed_by(self, text: &str) -> Self {
        let step = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        Self(text.bytes().fold(self.0, step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_the_text_and_not_of_its_steps() {
        let empty = TextHash::default();
        let whole = empty.followed_by("one\ntwo");
        assert_eq!(empty.followed_by("one\n").followed_by("two"), whole);
        assert_eq!(empty.followed_by("").followed_by("one\ntwo"), whole);
        assert_ne!(empty.followed_by("one\ntw"), whole);
        // The reference value of the algorithm's authors.
        assert_eq!(
            empty.followed_by("a"),
            TextHash(0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964)
        );
    }
}
