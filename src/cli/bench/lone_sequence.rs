//! A model that runs one sequence, without an engine.

use std::ops::Range;
use std::sync::Arc;

use anyhow::ensure;
use ponder_kernels::{KvDtype, ThreadPool};

use crate::cli::engine_args::{DeviceArg, EngineArgs};
use crate::model::{
    CausalLm, ForwardBatch, LoadOptions, LocalRows, ModelFiles, ModelInfo, NO_BLOCK, SequenceRows,
    load,
};

const BLOCK_SIZE: usize = 16;

/// How long a sequence may be, and how it is kept and computed.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub max_tokens: usize,
    /// Rows of a step.
    pub max_rows: usize,
    pub kv_cache_dtype: KvDtype,
}

/// A model on the processor whose KV cache holds one sequence, block after block.
pub(super) struct LoneSequence {
    model: Box<dyn CausalLm>,
    block_table: Vec<u32>,
    /// Of the layers with a sliding window, where they have a pool of their own.
    ring: Option<Ring>,
    logits: Vec<f32>,
}

impl LoneSequence {
    pub(super) fn load(
        args: &EngineArgs,
        files: &ModelFiles,
        pool: &Arc<ThreadPool>,
        sizes: Sizes,
    ) -> anyhow::Result<Self> {
        let is_here = matches!(args.device.device, DeviceArg::Cpu | DeviceArg::Auto);
        ensure!(is_here, "this measurement runs on the processor alone");
        let options = LoadOptions {
            pool: Some(Arc::clone(pool)),
            max_model_len: Some(sizes.max_tokens),
            quantize: args.quantize,
            kv_cache_dtype: sizes.kv_cache_dtype,
            ..LoadOptions::default()
        };
        let mut model = load(files, options)?;
        let num_blocks = sizes.max_tokens.div_ceil(BLOCK_SIZE);
        let ring = model.info().local.map(|kv| Ring {
            window: kv.window,
            // A window and a step begin and end anywhere in a block.
            len: ((kv.window + sizes.max_rows).div_ceil(BLOCK_SIZE) + 1).min(num_blocks),
        });
        if let (Some(ring), Some(pool)) = (ring, model.local_cache()) {
            pool.split(ring.len);
        }
        model.allocate_kv_cache(num_blocks, BLOCK_SIZE, sizes.max_rows)?;
        Ok(Self {
            model,
            block_table: (0..u32::try_from(num_blocks)?).collect(),
            ring,
            logits: Vec::new(),
        })
    }

    pub(super) fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// Bytes of keys and values behind so many tokens.
    pub(super) fn kv_bytes(&self, num_tokens: usize) -> usize {
        let info = self.model.info();
        let (Some(ring), Some(kv)) = (self.ring, info.local) else {
            return num_tokens * info.kv_bytes_per_token;
        };
        let of_others = num_tokens * (info.kv_bytes_per_token - kv.kv_bytes_per_token);
        of_others + num_tokens.min(ring.len * BLOCK_SIZE) * kv.kv_bytes_per_token
    }

    /// Computes the tokens from position `start` on. Returns `[wanted.len(), vocab_size]`, the
    /// logits of those rows.
    pub(super) fn forward(
        &mut self,
        token_ids: &[u32],
        start: usize,
        wanted: Range<usize>,
    ) -> anyhow::Result<&[f32]> {
        let end = start + token_ids.len();
        let positions: Vec<u32> = (start as u32..end as u32).collect();
        let logits_rows: Vec<u32> = wanted.map(|row| row as u32).collect();
        let rows = SequenceRows {
            block_table: &self.block_table[..end.div_ceil(BLOCK_SIZE)],
            num_rows: token_ids.len(),
            context_len: end,
            leaves: &[],
        };
        let ring = self.ring.map(|ring| ring.places(start, end));
        let (local_slots, local_table) = ring.unwrap_or_default();
        let local_rows = SequenceRows {
            block_table: &local_table,
            ..rows
        };
        let batch = ForwardBatch {
            token_ids,
            positions: &positions,
            // Block `i` is the sequence's `i`-th.
            slot_mapping: &positions,
            sequences: &[rows],
            adapters: &[None],
            steering: &[],
            logits_rows: &logits_rows,
            skip: None,
            local: self.ring.map(|_| LocalRows {
                slot_mapping: &local_slots,
                sequences: std::slice::from_ref(&local_rows),
            }),
        };
        self.model.forward(&batch, &mut self.logits)?;
        Ok(&self.logits)
    }

    /// Fills the cache up to `num_tokens` with copies of its first `piece` tokens' keys and values,
    /// which have been computed.
    pub(super) fn repeat(&mut self, piece: usize, num_tokens: usize) -> anyhow::Result<()> {
        let (from, to) = (piece / BLOCK_SIZE, num_tokens.div_ceil(BLOCK_SIZE));
        let copies: Vec<(u32, u32)> = (from..to.max(from))
            .map(|block| ((block % from.max(1)) as u32, block as u32))
            .collect();
        self.model.copy_blocks(&copies)?;
        if let (Some(ring), Some(pool)) = (self.ring, self.model.local_cache()) {
            let copies: Vec<(u32, u32)> = (from..to.clamp(from, ring.len.max(from)))
                .map(|block| ((block % from.max(1)) as u32, block as u32))
                .collect();
            pool.copy_local_blocks(&copies)?;
        }
        Ok(())
    }
}

/// The blocks of a window and a step, used again and again.
#[derive(Debug, Clone, Copy)]
struct Ring {
    window: usize,
    /// Blocks.
    len: usize,
}

impl Ring {
    /// Slots of the tokens from `start` on, and a block table up to `end`.
    fn places(self, start: usize, end: usize) -> (Vec<u32>, Vec<u32>) {
        let first = (start + 1).saturating_sub(self.window) / BLOCK_SIZE;
        let place = |block: usize| match block < first {
            true => NO_BLOCK,
            false => (block % self.len) as u32,
        };
        let slot = |token: usize| place(token / BLOCK_SIZE) as usize * BLOCK_SIZE;
        let slots = (start..end).map(|token| (slot(token) + token % BLOCK_SIZE) as u32);
        let table = (0..end.div_ceil(BLOCK_SIZE)).map(place);
        (slots.collect(), table.collect())
    }
}
