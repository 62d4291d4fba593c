//! A model for tests whose logits are a hash of the tokens read back through the block table: a wrong
//! table, a missing copy or a stale cached block changes its answers.

use crate::model::{BlockId, CausalLm, ForwardBatch, ForwardError, ModelInfo};

/// What happens at a step, for tests of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// `forward` returns an error when this token is in the batch.
    ErrorOn(u32),
    /// `forward` panics when this token is in the batch.
    PanicOn(u32),
    /// All logits are NaN when this token is the row's.
    NanOn(u32),
}

/// See the module's documentation.
pub struct FakeModel {
    info: ModelInfo,
    block_size: usize,
    slots: Vec<Option<u32>>,
    fault: Fault,
    salt: u64,
}

impl FakeModel {
    /// A model that says other things.
    pub fn salted(self, salt: u64) -> Self {
        Self { salt, ..self }
    }

    pub fn new(vocab_size: usize, fault: Fault) -> Self {
        Self {
            info: ModelInfo {
                vocab_size,
                max_position_embeddings: 4096,
                num_layers: 1,
                hidden_size: 1,
                kv_bytes_per_token: 4,
                weight_bytes: 0,
                architecture: "fake".to_owned(),
                num_experts: None,
                is_differentiable: false,
            },
            block_size: 0,
            slots: Vec::new(),
            fault,
            salt: 0,
        }
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl CausalLm for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        _max_num_rows: usize,
    ) -> Result<(), ForwardError> {
        self.block_size = block_size;
        self.slots = vec![None; num_blocks * block_size];
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        for (source, target) in copies {
            let from = *source as usize * self.block_size;
            let to = *target as usize * self.block_size;
            self.slots.copy_within(from..from + self.block_size, to);
        }
        Ok(())
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        for (token_id, slot) in batch.token_ids.iter().zip(batch.slot_mapping) {
            match self.fault {
                Fault::ErrorOn(bad) if bad == *token_id => {
                    return Err(ForwardError::Internal("the fake model fails".to_owned()));
                }
                Fault::PanicOn(bad) => assert_ne!(bad, *token_id, "the fake model panics"),
                _ => {}
            }
            self.slots[*slot as usize] = Some(*token_id);
        }
        logits.clear();
        let mut row = 0_u32;
        for sequence in batch.sequences {
            let first = sequence.context_len - sequence.num_rows;
            let num_others = sequence.context_len - sequence.leaves.len();
            // The hash of what each position sees, itself left out.
            let mut before = Vec::new();
            let mut hash = self.salt;
            for position in 0..sequence.context_len {
                let block = sequence.block_table[position / self.block_size] as usize;
                let slot = block * self.block_size + position % self.block_size;
                let token_id = self.slots[slot].ok_or_else(|| {
                    ForwardError::Internal(format!("position {position} was never written"))
                })?;
                if let Some(leaf) = position.checked_sub(num_others) {
                    hash = before[sequence.leaves[leaf] as usize];
                }
                before.push(hash);
                hash = mix(hash, u64::from(token_id) + 1);
                if position >= first {
                    if batch.logits_rows.contains(&row) {
                        let is_nan = self.fault == Fault::NanOn(token_id);
                        logits.extend((0..self.info.vocab_size as u64).map(|id| {
                            let value = (mix(hash, id << 32) >> 40) as f32 / (1 << 21) as f32;
                            if is_nan { f32::NAN } else { value }
                        }));
                    }
                    row += 1;
                }
            }
        }
        Ok(())
    }

    fn hidden_state(&self, _: usize) -> Option<Vec<f32>> {
        None
    }
}
