//! What keys and values are kept as.

use crate::cpu::TILE_TOKENS;
use crate::kv_codes::CodeLayout;

/// Bytes of an f16.
const VALUE_BYTES: usize = 2;

/// What keys and values are kept as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvDtype {
    #[default]
    F16,
    /// Int8 codes, each 32 values of a head with an f16 scale: about half the memory. A token's
    /// codes follow from its own key and value alone.
    Q8_0,
}

impl KvDtype {
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F16 => "f16",
            KvDtype::Q8_0 => "q8_0",
        }
    }

    /// Bytes that keys and values take of sixteen tokens and one KV head; `None` when they
    /// cannot be counted.
    pub(crate) fn tile_bytes(self, head_dim: usize) -> Option<[usize; 2]> {
        match self {
            KvDtype::F16 => {
                let bytes = head_dim.checked_mul(TILE_TOKENS * VALUE_BYTES)?;
                Some([bytes; 2])
            }
            KvDtype::Q8_0 => {
                let layout = CodeLayout { head_dim };
                Some([layout.key_tile_bytes()?, layout.value_tile_bytes()?])
            }
        }
    }

    /// Bytes of keys and values of a token and a KV head; `usize::MAX` when they cannot be counted.
    pub fn token_bytes(self, head_dim: usize) -> usize {
        let sum = |[keys, values]: [usize; 2]| keys.checked_add(values);
        let bytes = self.tile_bytes(head_dim).and_then(sum);
        bytes.map_or(usize::MAX, |bytes| bytes / TILE_TOKENS)
    }
}
