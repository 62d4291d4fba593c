//! A model that runs one sequence, without an engine.

use std::ops::Range;
use std::sync::Arc;

use anyhow::ensure;
use ponder_kernels::{KvDtype, ThreadPool};

use crate::cli::engine_args::{DeviceArg, EngineArgs};
use crate::model::{
    CausalLm, ForwardBatch, LoadOptions, ModelFiles, ModelInfo, SequenceRows, load,
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
        model.allocate_kv_cache(num_blocks, BLOCK_SIZE, sizes.max_rows)?;
        Ok(Self {
            model,
            block_table: (0..u32::try_from(num_blocks)?).collect(),
            logits: Vec::new(),
        })
    }

    pub(super) fn info(&self) -> &ModelInfo {
        self.model.info()
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
        let batch = ForwardBatch {
            token_ids,
            positions: &positions,
            // Block `i` is the sequence's `i`-th.
            slot_mapping: &positions,
            sequences: &[SequenceRows {
                block_table: &self.block_table[..end.div_ceil(BLOCK_SIZE)],
                num_rows: token_ids.len(),
                context_len: end,
                leaves: &[],
            }],
            adapters: &[None],
            steering: &[],
            logits_rows: &logits_rows,
            skip: None,
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
        Ok(self.model.copy_blocks(&copies)?)
    }
}
