//! The API keys of a server, compared without telling by time how much of one was right.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

type KeyHash = [u8; 32];

fn hash(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// Keys by their hashes, which all have one length: comparing two keys of different lengths takes
/// as long as comparing equal ones.
#[derive(Debug, Default)]
pub(super) struct KeyRing {
    hashes: Vec<KeyHash>,
}

impl KeyRing {
    pub fn new(keys: &[String]) -> Self {
        Self {
            hashes: keys.iter().map(|key| hash(key)).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Compares with every key, all of them always, in constant time each. No key is known by an
    /// empty text: that is what a request without a key shows.
    pub fn knows(&self, presented: &str) -> bool {
        let is_empty = presented.is_empty();
        let presented = hash(presented);
        let found = self.hashes.iter().fold(Choice::from(0), |found, key| {
            found | presented.as_slice().ct_eq(key)
        });
        bool::from(found) && !is_empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_keys_are_known() {
        let keys = KeyRing::new(&["secret".to_owned(), "another one".to_owned()]);
        assert!(keys.knows("secret") && keys.knows("another one"));
        for wrong in [
            "",
            "s",
            "secre",
            "secret ",
            "Secret",
            "another",
            "secretanother one",
        ] {
            assert!(!keys.knows(wrong), "{wrong:?}");
        }
        assert!(!KeyRing::default().knows(""));
        assert!(!KeyRing::new(&[String::new()]).knows(""));
        // Whatever its length, what is compared has one length.
        assert_eq!(hash("a").len(), hash(&"a".repeat(5000)).len());
    }
}
