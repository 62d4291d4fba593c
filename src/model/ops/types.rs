//! What operations take beside rows.

use ponder_kernels::{AttentionParams, Glu, KernelError, KvDtype, RopeKind};

use super::Device;
use crate::model::causal_lm::{AdapterId, ForwardBatch, ForwardError};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What the device's driver says.
    #[error("the device failed: {0}")]
    Device(String),
    /// What the device has no operations for.
    #[error("{0} is not yet on the device")]
    Lacks(String),
    /// The same, and the device is of no more use to this process.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
}

impl From<OpsError> for ForwardError {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::DeviceLost(message) => Self::DeviceLost(message),
            error => Self::Internal(error.to_string()),
        }
    }
}

/// What a decoder asks of packed weights.
pub trait WeightMatrix: Send {
    /// Of one expert, where there are several.
    fn out_features(&self) -> usize;

    /// Bytes held in memory.
    fn nbytes(&self) -> usize;

    /// Whether products read the values of activations instead of their codes.
    fn reads_floats(&self) -> bool;
}

/// A matrix with an optional bias.
pub struct Linear<O: Device> {
    pub weights: O::Matrix,
    /// `[out_features]`
    pub bias: Option<O::Vector>,
}

impl<O: Device> Linear<O> {
    /// Without a bias.
    pub(in crate::model) fn plain(weights: O::Matrix) -> Self {
        Self {
            weights,
            bias: None,
        }
    }
}

/// Frequencies of a rotary embedding.
#[derive(Debug, Clone, Copy)]
pub struct RopeParams<'a> {
    /// Elements of a head that rotate.
    pub rotary_dim: usize,
    pub num_positions: usize,
    pub theta: f32,
    /// `[rotary_dim / 2]`, divide the frequencies one by one.
    pub freq_factors: Option<&'a [f32]>,
    /// Divides positions.
    pub linear_scale: f32,
    /// Multiplies cosines and sines.
    pub magnitude: f32,
}

/// The sizes of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    pub num_layers: usize,
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub dtype: KvDtype,
}

/// What the attention of a step's layers reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub num_heads: usize,
    pub cache: KvShape,
}

/// The rows of a step that use one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRows {
    pub adapter: AdapterId,
    /// Ascending.
    pub rows: Vec<usize>,
    /// Those of them that are left after [`super::LayerOps::keep_rows`], counted among what is left.
    pub kept: Vec<usize>,
}

/// Which rows of a step are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSet {
    All,
    /// Those whose logits are wanted: past the last layer's attention the others do not matter.
    Kept,
}

/// A step that was prepared.
pub struct Step<'a, O: Device> {
    pub batch: &'a ForwardBatch<'a>,
    pub groups: &'a [AdapterRows],
    /// What the implementation made of both.
    pub inputs: &'a O::StepInputs,
    pub rows: RowSet,
}

impl<O: Device> Clone for Step<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: Device> Copy for Step<'_, O> {}

impl<'a, O: Device> Step<'a, O> {
    /// Rows that are there.
    pub fn num_rows(&self) -> usize {
        match self.rows {
            RowSet::All => self.batch.token_ids.len(),
            RowSet::Kept => self.batch.logits_rows.len(),
        }
    }

    /// The rows of a group that are there.
    pub fn group_rows(&self, group: usize) -> &'a [usize] {
        let group = &self.groups[group];
        match self.rows {
            RowSet::All => &group.rows,
            RowSet::Kept => &group.kept,
        }
    }
}

/// How queries and keys become what attention reads.
pub struct Rotation<'a, O: Device> {
    pub table: &'a O::RopeTable,
    pub kind: RopeKind,
    /// `[head_dim]`: RMS norm of each head of Q, of K, before the rotation.
    pub q_norm: Option<&'a O::Vector>,
    pub k_norm: Option<&'a O::Vector>,
    pub eps: f32,
}

/// The attention of one layer.
pub struct LayerAttention<'a, O: Device> {
    /// Whose keys and values are read: its place in the cache.
    pub layer: usize,
    pub params: &'a AttentionParams,
    /// `[num_heads]`: a score of each head beside those of the tokens, of no value, that takes its
    /// share of the softmax.
    pub sinks: Option<&'a O::Vector>,
}

/// What of a model's layers not every device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub attention_sinks: bool,
    pub expert_biases: bool,
}

impl Needs {
    /// What every device does.
    pub const NONE: Self = Self {
        attention_sinks: false,
        expert_biases: false,
    };
}

/// How a sub-layer's result joins the residual stream.
pub struct Residual<'a, O: Device> {
    /// RMS norm of the result.
    pub post_norm: Option<&'a O::Vector>,
    pub eps: f32,
    /// Multiplies a result that is not normed.
    pub scale: f32,
}

/// What a step's adapters add to products of one input.
pub struct Additions<'a, O: Device> {
    pub step: Step<'a, O>,
    pub input: AdaptedInput<'a, O>,
    /// By group of the step; `None` where the group's adapter changes none of the products.
    pub factors: Vec<Option<&'a O::LowRank>>,
}

/// The rows that adapted products read, for implementations that do not take them from the
/// products' activations.
pub enum AdaptedInput<'a, O: Device> {
    /// The rows as they are.
    Plain(&'a O::Rows),
    /// Their RMS norm.
    Normed {
        rows: &'a O::Rows,
        weight: &'a O::Vector,
        eps: f32,
    },
}

/// The experts of a layer.
pub struct ExpertWeights<'a, O: Device> {
    pub gate: &'a O::Experts,
    pub up: &'a O::Experts,
    pub down: &'a O::Experts,
    pub glu: Glu,
}

/// What was expanded from the latent vector of keys and values, head by head.
pub enum Expanded<'a, O: Device> {
    /// `[num_rows, num_heads * (nope_head_dim + v_head_dim)]`, a head's key before its value.
    Joined(&'a O::Rows),
    /// `[num_rows, num_heads * nope_head_dim]` and `[num_rows, num_heads * v_head_dim]`
    Split(&'a O::Rows, &'a O::Rows),
}

/// What becomes of logits after the product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitsTransform {
    /// Divides them.
    pub divisor: f32,
    /// Then `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}
