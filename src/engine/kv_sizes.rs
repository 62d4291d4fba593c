//! How many blocks the KV cache has, of all layers or of two kinds of layers.

use super::config::{EngineConfig, EngineOptions};
use super::speculative::skip_search::MATCHNESS_WINDOW;
use crate::model::{LocalKv, ModelInfo};

/// One block in so many has a place for the layers with a window beside those that running
/// sequences need, so that other sequences can start behind known prefixes. A prefix needs a
/// window's places however long it is: this many windows of text keep one.
const BLOCKS_PER_SPARE_PLACE: usize = 8;

/// The pool of the layers with a sliding window, where they have their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalBlocks {
    pub num_blocks: usize,
    /// Tokens that a row sees, itself included.
    pub window: usize,
}

impl LocalBlocks {
    /// Tokens before a sequence's next one whose places it needs: those that the next row sees, and
    /// those that the rows before it see which a skip set is tried on.
    pub(super) fn num_kept_tokens(&self, block_size: usize) -> usize {
        (self.window + MATCHNESS_WINDOW + block_size).saturating_sub(1)
    }
}

impl EngineConfig {
    /// Rows of the largest step.
    pub(super) fn max_num_rows(&self) -> usize {
        match self.enable_chunked_prefill {
            true => self.max_num_batched_tokens,
            false => self.max_num_batched_tokens.max(self.max_model_len),
        }
    }

    /// The fewest blocks of a pool of layers with this window: any one sequence can run.
    pub fn fewest_local_blocks(&self, window: usize) -> usize {
        let local = LocalBlocks {
            num_blocks: 0,
            window,
        };
        let num_tokens = local.num_kept_tokens(self.block_size) + self.max_num_rows();
        let num_blocks = num_tokens.div_ceil(self.block_size) + 1;
        num_blocks.min(self.max_model_len.div_ceil(self.block_size))
    }

    /// Blocks at a sequence's start, of whose tokens `num_computed` are computed, whose places it
    /// does not need. It keeps those of `num_more` tokens more than its next rows do, as far as the
    /// pool has room for any one sequence that does.
    pub(super) fn num_passed_blocks(&self, num_computed: usize, num_more: usize) -> usize {
        let Some(local) = &self.local else {
            return 0;
        };
        let room = local.num_blocks - self.fewest_local_blocks(local.window).min(local.num_blocks);
        let num_kept =
            local.num_kept_tokens(self.block_size) + num_more.min(room * self.block_size);
        num_computed.saturating_sub(num_kept) / self.block_size
    }

    /// Bytes of the KV cache.
    pub fn kv_cache_bytes(&self, info: &ModelInfo) -> usize {
        let local_bytes = match (&self.local, &info.local) {
            (Some(_), Some(kv)) => kv.kv_bytes_per_token,
            _ => 0,
        };
        let num_local_blocks = self.local.map_or(0, |local| local.num_blocks);
        let of_all = self.num_blocks * (info.kv_bytes_per_token - local_bytes);
        (of_all + num_local_blocks * local_bytes) * self.block_size
    }
}

impl EngineOptions {
    /// Sets the sizes of the KV cache; never more blocks than all sequences could use.
    pub(super) fn size_kv_cache(&self, info: &ModelInfo, config: &mut EngineConfig) {
        let block_bytes = (info.kv_bytes_per_token * self.block_size).max(1);
        let of_sequence = config.max_model_len.div_ceil(self.block_size);
        let useful = self.max_num_seqs * of_sequence;
        config.num_blocks = (self.kv_cache_bytes / block_bytes).min(useful);
        config.local = None;
        if let Some(kv) = &info.local
            && let Some((num_blocks, local)) = self.split(info, kv, config)
        {
            config.num_blocks = num_blocks;
            config.local = Some(local);
        }
    }

    /// Blocks of two pools, where that is more than one pool has: the layers with a window get
    /// places for the windows of all sequences, for a step's rows, and for some known prefixes.
    /// Where all windows do not fit, but one pool could not hold one sequence, they get what is
    /// left beside that one.
    fn split(
        &self,
        info: &ModelInfo,
        kv: &LocalKv,
        config: &EngineConfig,
    ) -> Option<(usize, LocalBlocks)> {
        let window = kv.window;
        let of_sequence = config.max_model_len.div_ceil(self.block_size);
        let useful = self.max_num_seqs * of_sequence;
        let local_bytes = kv.kv_bytes_per_token * self.block_size;
        let other_bytes = info.kv_bytes_per_token * self.block_size - local_bytes;
        let fewest = config.fewest_local_blocks(window);
        let local = |num_blocks| LocalBlocks { num_blocks, window };
        let of_window = local(0).num_kept_tokens(self.block_size);
        let of_window = (of_window.div_ceil(self.block_size) + 2).min(of_sequence);
        let of_windows = self.max_num_seqs * of_window;
        let of_windows = of_windows + config.max_num_rows().div_ceil(self.block_size);
        let of_windows = of_windows.max(fewest);

        let rest = self.kv_cache_bytes.saturating_sub(of_windows * local_bytes);
        let bytes_of_spares = BLOCKS_PER_SPARE_PLACE * other_bytes + local_bytes;
        let num_blocks = (rest / bytes_of_spares.max(1)).saturating_mul(BLOCKS_PER_SPARE_PLACE);
        let num_blocks = num_blocks.min(useful);
        let num_places = of_windows + num_blocks / BLOCKS_PER_SPARE_PLACE;
        if num_blocks >= of_sequence && num_places < num_blocks {
            return Some((num_blocks, local(num_places)));
        }
        if config.num_blocks >= of_sequence {
            return None;
        }
        let rest = self.kv_cache_bytes.checked_sub(of_sequence * other_bytes)?;
        let num_places = rest / local_bytes.max(1);
        (num_places >= fewest && num_places < of_sequence).then(|| (of_sequence, local(num_places)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::ConfigError;

    /// Of gemma-3-270m: 3 layers see everything, 15 see 512 tokens, each keeps 1 kB of a token.
    const GEMMA: LocalKv = LocalKv {
        window: 512,
        kv_bytes_per_token: 15 << 10,
    };
    const MIB: usize = 1 << 20;

    fn resolve(
        local: Option<LocalKv>,
        (max_num_seqs, max_model_len): (usize, usize),
        kv_cache_bytes: usize,
    ) -> Result<(usize, Option<usize>), ConfigError> {
        let info = ModelInfo {
            vocab_size: 1,
            max_position_embeddings: 1 << 15,
            num_layers: 18,
            hidden_size: 640,
            kv_bytes_per_token: 18 << 10,
            weight_bytes: 0,
            architecture: "gemma3".to_owned(),
            num_experts: None,
            is_differentiable: true,
            local,
        };
        let options = EngineOptions {
            max_model_len: Some(max_model_len),
            max_num_seqs,
            kv_cache_bytes,
            ..EngineOptions::default()
        };
        let config = options.resolve(&info)?;
        assert!(config.kv_cache_bytes(&info) <= kv_cache_bytes);
        Ok((
            config.num_blocks,
            config.local.map(|local| local.num_blocks),
        ))
    }

    #[test]
    fn memory_is_shared_out_between_the_pools() {
        let long = (1, 1 << 15);
        // One pool of 32k tokens takes 576 MiB.
        assert_eq!(resolve(None, long, 1024 * MIB), Ok((2048, None)));
        // 37 blocks for a window, 32 for a step, 256 for prefixes: 96 and 76 MiB.
        assert_eq!(
            resolve(Some(GEMMA), long, 1024 * MIB),
            Ok((2048, Some(325)))
        );
        let many = (16, 8192);
        assert_eq!(resolve(None, many, 1024 * MIB), Ok((3640, None)));
        assert_eq!(
            resolve(Some(GEMMA), many, 1024 * MIB),
            Ok((8192, Some(1648)))
        );
        // No room for all windows, but one pool could not hold a sequence.
        let (all, few) = ((64, 1 << 15), 150 * MIB);
        let too_small = |tokens| {
            Err(ConfigError::KvCacheTooSmall {
                needed: 1 << 15,
                available: tokens,
            })
        };
        assert_eq!(resolve(None, all, few), too_small(533 * 16));
        assert_eq!(resolve(Some(GEMMA), all, few), Ok((2048, Some(230))));
        assert_eq!(resolve(Some(GEMMA), all, 100 * MIB), too_small(355 * 16));
    }

    /// Where sequences are not longer than a window, all is as without one.
    #[test]
    fn short_contexts_have_one_pool() {
        for bytes in [64 * MIB, 300 * MIB, 4096 * MIB] {
            for shape in [(1, 512), (64, 512), (3, 560)] {
                let plain = resolve(None, shape, bytes);
                assert_eq!(resolve(Some(GEMMA), shape, bytes), plain);
            }
        }
    }
}
