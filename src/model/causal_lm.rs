//! The contract between the engine and a model. No tensor type crosses it.

use std::ops::Range;
use std::sync::Arc;

use super::adapt::AdaptationPhase;
use super::lora::LoraAdapter;
use super::moe::ExpertLoad;
use super::skip::SkipSet;
use super::skip_search::{Probe, SkipCosts};
use super::steering::Steering;

/// Index of a KV block.
pub type BlockId = u32;

/// In the place of a block that a sequence has given back: whoever reads it makes a mistake.
pub const NO_BLOCK: BlockId = BlockId::MAX;

/// Names a loaded adapter. Never used again for another one: cached KV is told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u32);

/// The rows of one sequence in a step: its block table covers at least `context_len` tokens, which are those
/// in the KV cache once the step has run; rows of all sequences are concatenated.
pub use ponder_kernels::AttentionRows as SequenceRows;

/// One ragged step: prefill chunks, decode rows and (later) speculative rows mix freely.
#[derive(Debug, Clone, Copy)]
pub struct ForwardBatch<'a> {
    /// `[num_rows]`
    pub token_ids: &'a [u32],
    /// `[num_rows]`, position of each row in its sequence.
    pub positions: &'a [u32],
    /// `[num_rows]`, `block_id * block_size + offset` where the row's K and V are written.
    pub slot_mapping: &'a [u32],
    pub sequences: &'a [SequenceRows<'a>],
    /// The adapter of each sequence.
    pub adapters: &'a [Option<AdapterId>],
    /// What adaptation changes for each sequence; empty when it changes nothing.
    pub steering: &'a [Option<&'a Steering>],
    /// Ascending row indices whose logits are wanted.
    pub logits_rows: &'a [u32],
    /// Sub-layers left out of this step; `None` for the model itself. Nothing that such a step writes to the cache may outlive
    /// the draft that it is for.
    pub skip: Option<&'a SkipSet>,
    /// Where the layers with a sliding window keep keys and values, once they have a pool of their
    /// own ([`LocalCache`]); `None` before.
    pub local: Option<LocalRows<'a>>,
}

/// The places of a step's rows in the pool of the layers with a sliding window.
#[derive(Debug, Clone, Copy)]
pub struct LocalRows<'a> {
    /// As [`ForwardBatch::slot_mapping`].
    pub slot_mapping: &'a [u32],
    /// As [`ForwardBatch::sequences`], with the block tables of this pool. They have [`NO_BLOCK`]
    /// where a block lies behind the window of all the sequence's rows.
    pub sequences: &'a [SequenceRows<'a>],
}

impl ForwardBatch<'_> {
    /// The batch as layers see it that keep their keys and values in the pool of `local`.
    pub(super) fn local_view(&self) -> Option<ForwardBatch<'_>> {
        self.local.map(|local| ForwardBatch {
            slot_mapping: local.slot_mapping,
            sequences: local.sequences,
            ..*self
        })
    }

    /// The rows of each sequence, and where those of them whose logits are wanted lie among all such.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        let (mut first, mut first_kept) = (0, 0);
        self.sequences.iter().map(move |sequence| {
            let rows = first..first + sequence.num_rows;
            first = rows.end;
            let own = self.logits_rows[first_kept..].iter();
            let num_kept = own.take_while(|row| (**row as usize) < rows.end).count();
            let kept = first_kept..first_kept + num_kept;
            first_kept = kept.end;
            (rows, kept)
        })
    }
}

/// What the engine needs to know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    pub vocab_size: usize,
    /// The context length the model was trained for.
    pub max_position_embeddings: usize,
    pub num_layers: usize,
    pub hidden_size: usize,
    /// Bytes of K and V one token takes over all layers.
    pub kv_bytes_per_token: usize,
    /// Bytes of weights held in memory.
    pub weight_bytes: usize,
    /// `llama`, `qwen2`, …
    pub architecture: String,
    /// Experts of a mixture-of-experts layer; `None` for dense models.
    pub num_experts: Option<usize>,
    /// Whether gradients can go back through its layers.
    pub is_differentiable: bool,
    /// Its layers with a sliding window, where they can keep keys and values in a pool of their own
    /// ([`LocalCache`]).
    pub local: Option<LocalKv>,
}

/// What the layers with a sliding window keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalKv {
    /// Tokens that a row sees, itself included.
    pub window: usize,
    /// Their part of [`ModelInfo::kv_bytes_per_token`].
    pub kv_bytes_per_token: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("the KV cache is not allocated")]
    NoKvCache,
    #[error("this model lacks {0}")]
    Lacks(&'static str),
    #[error("{0}")]
    Internal(String),
    /// Whatever is asked of the device from now on fails.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
}

/// A causal language model that owns its KV cache. Lives on the engine's thread.
///
/// A row's logits depend only on its own sequence: never on the other rows, on how a prompt was cut
/// into chunks, or on the number of threads.
pub trait CausalLm: Send {
    fn info(&self) -> &ModelInfo;

    /// Allocates the cache: `num_blocks` blocks of `block_size` tokens for every layer, and scratch
    /// for steps of up to `max_num_rows` rows. Called once, before the first forward.
    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ForwardError>;

    /// Copies whole blocks `(source, destination)` in every layer (copy-on-write).
    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError>;

    /// Runs one step: writes K and V of all rows, then fills `logits` with
    /// `[logits_rows.len(), vocab_size]` row-major values (its old contents are dropped).
    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError>;

    /// The normalised final hidden state (`[hidden_size]`, what the head reads) behind logits row `index`
    /// of the last step; `None` where the model does not keep it.
    fn hidden_state(&self, index: usize) -> Option<Vec<f32>>;

    /// How many tokens each expert has had, of a mixture-of-experts model.
    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        None
    }

    /// Its layers with a sliding window, where they can have a pool of their own
    /// ([`ModelInfo::local`]).
    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        None
    }

    /// Its adapters, where it takes any.
    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        None
    }

    /// Its adaptation at test time, where it can be adapted.
    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        None
    }

    /// Its sub-layers, where steps may leave some out ([`ForwardBatch::skip`]).
    fn sub_layers(&mut self) -> Option<&mut dyn SkipsSubLayers> {
        None
    }
}

/// A model whose layers with a sliding window can keep keys and values in blocks of their own, of
/// which a sequence needs those of its window alone.
pub trait LocalCache {
    /// Gives these layers a pool of `num_blocks` blocks. Called before
    /// [`CausalLm::allocate_kv_cache`], whose blocks are the other layers' then; from there on each
    /// step has [`ForwardBatch::local`].
    fn split(&mut self, num_blocks: usize);

    /// [`CausalLm::copy_blocks`] in this pool.
    fn copy_local_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError>;
}

/// Adapters that sequences may be computed under ([`ForwardBatch::adapters`]).
pub trait AdapterStore {
    /// Makes an adapter usable in batches. Its layers fit the model.
    fn load(&mut self, id: AdapterId, adapter: &LoraAdapter) -> Result<(), ForwardError>;

    fn unload(&mut self, id: AdapterId);
}

/// A model that gradient steps can steer.
pub trait Adaptable {
    /// One step of `phase`: the window's rows, those of one sequence, are computed under the current steering, and, unless it was the
    /// last, the steering moves. Row `i` predicts `targets[i]`. When the phase is done, the window's keys and values are those that
    /// its policy asks for; other sequences' are not touched.
    fn adapt(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError>;
}

/// A model whose steps may leave sub-layers out.
pub trait SkipsSubLayers {
    /// For every number of saved units the sub-layers whose loss changes hidden states least. It writes to blocks from
    /// `first_scratch` on, `probes.len() * (costs.most + 1)` of them.
    fn skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError>;
}
