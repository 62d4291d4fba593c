//! The tokens of a model in a few large buffers.
//!
//! A vocabulary has up to hundreds of thousands of tokens: a map of strings takes five times the
//! memory, and most of a server's start to build.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

/// Byte strings, one after the other.
#[derive(Debug, Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Texts {
    pub(super) fn with_capacity(count: usize, num_bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(num_bytes),
            ends: Vec::with_capacity(count),
        }
    }

    /// Appends the text that `write` adds to the bytes of the others.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start..end)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Gives back what was reserved for more.
    fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

impl<'a> FromIterator<&'a [u8]> for Texts {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(texts: I) -> Self {
        let mut all = Self::default();
        for text in texts {
            all.push_with(|bytes| bytes.extend_from_slice(text));
        }
        all.shrink();
        all
    }
}

/// A place of the table: the index of a text, and the upper half of its hash, by which most other
/// texts are told apart without a look at them.
#[derive(Debug, Clone, Copy)]
struct Slot {
    index: u32,
    tag: u32,
}

const FREE: Slot = Slot {
    index: u32::MAX,
    tag: 0,
};

/// Token ids by the tokens' texts: a table with open addressing over the texts. It does not change
/// once it is built, and files choose its texts, not clients: hashes have no secret.
#[derive(Debug)]
pub(super) struct Vocabulary {
    texts: Texts,
    /// Of each text.
    ids: Vec<u32>,
    /// A text's is at its hash or behind it; as many as a power of two.
    slots: Vec<Slot>,
}

impl Vocabulary {
    /// Of `count` tokens at most; of two with one text, the later counts.
    pub(super) fn new<'a>(count: usize, tokens: impl Iterator<Item = (&'a [u8], u32)>) -> Self {
        let num_slots = (count + count / 2 + 1).next_power_of_two();
        let mut vocabulary = Self {
            texts: Texts::with_capacity(count, 8 * count),
            ids: Vec::with_capacity(count),
            slots: vec![FREE; num_slots],
        };
        for (text, id) in tokens.take(count) {
            vocabulary.insert(text, id);
        }
        vocabulary.texts.shrink();
        vocabulary.ids.shrink_to_fit();
        vocabulary
    }

    fn insert(&mut self, text: &[u8], id: u32) {
        let (place, tag) = self.find(text);
        match self.slots[place].index {
            index if index == FREE.index => {
                let index = self.ids.len() as u32;
                self.slots[place] = Slot { index, tag };
                self.texts.push_with(|bytes| bytes.extend_from_slice(text));
                self.ids.push(id);
            }
            index => self.ids[index as usize] = id,
        }
    }

    /// Where a text is, or would be, and the upper half of its hash. Some slots are always free.
    fn find(&self, text: &[u8]) -> (usize, u32) {
        let hash = xxh3_64(text);
        let tag = (hash >> 32) as u32;
        let last = self.slots.len() - 1;
        let mut place = hash as usize & last;
        loop {
            let slot = self.slots[place];
            let is_here = || slot.tag == tag && self.texts.get(slot.index as usize) == Some(text);
            if slot.index == FREE.index || is_here() {
                return (place, tag);
            }
            place = (place + 1) & last;
        }
    }

    /// The id of the token with this text.
    pub(super) fn get(&self, text: impl AsRef<[u8]>) -> Option<u32> {
        let (place, _) = self.find(text.as_ref());
        self.ids.get(self.slots[place].index as usize).copied()
    }

    /// The texts and their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let texts = (0..self.texts.len()).filter_map(|index| self.texts.get(index));
        texts.zip(self.ids.iter().copied())
    }
}

impl From<&HashMap<String, u32>> for Vocabulary {
    fn from(ids: &HashMap<String, u32>) -> Self {
        let tokens = ids.iter().map(|(text, id)| (text.as_bytes(), *id));
        Self::new(ids.len(), tokens)
    }
}

/// A map from pairs of tokens, which are numbers that a file chose.
pub(super) type PairMap<V> = HashMap<(u32, u32), V, BuildHasherDefault<PairHasher>>;

/// Multiplies and folds (as `wyhash` does): enough to spread token ids.
#[derive(Debug, Default)]
pub(super) struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, value: u32) {
        // The golden ratio's digits.
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = self.0.rotate_left(32);
        let product = u128::from(mixed ^ u64::from(value)) * u128::from(FACTOR);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_their_texts() {
        let texts: Vec<String> = (0..3000).map(|index| format!("t{}", index * 7)).collect();
        let tokens = texts.iter().map(String::as_bytes).zip(10..);
        let vocabulary = Vocabulary::new(texts.len(), tokens);
        for (text, id) in texts.iter().zip(10..) {
            assert_eq!(vocabulary.get(text), Some(id));
        }
        for absent in ["", "t", "t1", "t0 ", "t70000"] {
            assert_eq!(vocabulary.get(absent), None, "{absent:?}");
        }
        let all: Vec<(&[u8], u32)> = vocabulary.iter().collect();
        assert_eq!(all.len(), texts.len());
        assert_eq!(all[5], (texts[5].as_bytes(), 15));
    }

    #[test]
    fn the_later_of_two_tokens_counts() {
        let tokens: [(&[u8], u32); 4] = [(b"a", 1), (b"", 2), (b"a", 3), (b"b", 4)];
        let vocabulary = Vocabulary::new(tokens.len(), tokens.into_iter());
        assert_eq!(
            ["a", "", "b"].map(|text| vocabulary.get(text)),
            [3, 2, 4].map(Some)
        );
        assert_eq!(vocabulary.iter().count(), 3);
        assert_eq!(Vocabulary::new(0, std::iter::empty()).get("a"), None);
    }

    #[test]
    fn pairs_spread() {
        let mut places = std::collections::HashSet::new();
        for (left, right) in (0..300).flat_map(|left| (0..300).map(move |right| (left, right))) {
            let mut hasher = PairHasher::default();
            hasher.write_u32(left);
            hasher.write_u32(right);
            places.insert(hasher.finish() >> 32);
        }
        assert!(places.len() > 89_900, "{}", places.len());
    }
}
