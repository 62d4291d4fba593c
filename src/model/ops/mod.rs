//! The operations that a decoder is made of. A model is written once over them; an implementation
//! runs them on one kind of device. Nothing outside an implementation sees the values of rows,
//! except by the operations that read them.
//!
//! **Shapes.** Rows are row-major `[num_rows, width]`. An operation gives what it writes its shape,
//! whatever it was before. Rows, matrices and caches of one model always go to the same
//! implementation.
//!
//! **The law of rows.** A row of a result depends on its own inputs alone: never on the rows beside
//! it, on how many there are, on how a prompt was cut into steps, or on where a sequence's blocks
//! lie. The same row gives the same bits.
//!
//! **Errors.** An operation tells when its device fails. Shapes that do not fit are bugs of the
//! caller and may panic; what comes from a request (tokens, positions, slots, block tables) is
//! checked before by the decoder.
//!
//! `conformance` holds an implementation to all of this.

mod adapters;
#[cfg(test)]
mod conformance;
pub mod cpu;
pub mod cuda;
mod experts;
mod latent;
mod layer;
#[cfg(test)]
mod reference;
mod types;

use ponder_kernels::DType;

pub use adapters::{AdapterOps, AddsAfter};
pub use cpu::CpuOps;
pub use cuda::{CudaOps, StepKey};
pub use experts::ExpertOps;
pub use latent::LatentOps;
pub use layer::LayerOps;
pub use types::*;

use super::causal_lm::{Adaptable, BlockId, ForwardBatch};
use super::decoder::Decoder;
use super::lora::LowRank;

/// What runs a decoder. See the module's promises.
pub trait Ops: AdapterOps + ExpertOps + LatentOps {
    /// Test-time adaptation, of implementations that gradients go back through.
    fn adaptable(_decoder: &mut Decoder<Self>) -> Option<&mut dyn Adaptable> {
        None
    }
}

/// What a device holds, and how it gets there and back.
pub trait Device: Send + Sized + 'static {
    /// Weights `[out_features, in_features]`.
    type Matrix: WeightMatrix;
    /// One matrix of every expert, `[num_experts, out_features, in_features]`, with its biases.
    type Experts: WeightMatrix;
    /// What an adapter adds to products of the same input.
    type LowRank: Send;
    /// Weights `[width]`, as f32.
    type Vector: Send;
    /// Rows of f32: the residual stream, queries, logits.
    type Rows: Default + Send;
    /// Rows as products read them: quantised where the implementation does that.
    type Activations: Default + Send;
    /// Which experts the rows of a layer go to, and what their products need room for.
    type Routing: Default + Send;
    /// The angles of all positions.
    type RopeTable: Send;
    /// Keys and values of all layers, in blocks of tokens.
    type KvCache: Send;
    /// What [`Self::prepare`] makes of a step.
    type StepInputs: Default + Send;

    /// Packs the row-major bytes of a GGUF or safetensors tensor.
    fn matrix(
        &self,
        dtype: DType,
        bytes: &[u8],
        shape: [usize; 2],
    ) -> Result<Self::Matrix, OpsError>;

    /// The first of a model's needs that is not met here. A model with one is refused when it is
    /// loaded.
    fn lacks(&self, _needs: Needs) -> Option<&'static str> {
        None
    }

    /// Packs `[num_experts, out_features, in_features]`; `bias` (`[num_experts, out_features]`) is
    /// added to every product.
    fn experts(
        &self,
        dtype: DType,
        bytes: &[u8],
        shape: [usize; 3],
        bias: Option<Vec<f32>>,
    ) -> Result<Self::Experts, OpsError>;

    /// Packs what an adapter adds to products of the same input, `None` for those it leaves alone.
    /// `reads_floats`: one of their matrices has [`WeightMatrix::reads_floats`].
    fn low_rank(
        &self,
        parts: &[Option<&LowRank>],
        reads_floats: bool,
    ) -> Result<Self::LowRank, OpsError>;

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, OpsError>;

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<Self::RopeTable, OpsError>;

    /// Whether layers with a sliding window may have a cache of their own: their operations are
    /// given steps with other block tables and slots than the step that was prepared.
    fn has_local_cache(&self) -> bool {
        false
    }

    /// A cache of zeros. Errors when there is no memory for it.
    fn kv_cache(&self, shape: &KvShape) -> Result<Self::KvCache, OpsError>;

    /// Room for activations of up to `max_num_rows` by `max_width`. `keeps_floats`: a matrix with
    /// [`WeightMatrix::reads_floats`] will read them.
    fn activations(
        &self,
        max_num_rows: usize,
        max_width: usize,
        keeps_floats: bool,
    ) -> Result<Self::Activations, OpsError>;

    /// Room for routes. `keeps_floats`: some experts' matrices read floats.
    fn routing(&self, keeps_floats: bool) -> Result<Self::Routing, OpsError>;

    /// Takes over what the host knows of a step, once for all its layers: token ids, positions, slots, block tables, steering, and
    /// the rows of each adapter.
    fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
        groups: &[AdapterRows],
        shape: AttentionShape,
        inputs: &mut Self::StepInputs,
    ) -> Result<(), OpsError>;

    /// Copies whole blocks `(source, destination)` in every layer.
    fn copy_blocks(
        &mut self,
        cache: &mut Self::KvCache,
        copies: &[(BlockId, BlockId)],
    ) -> Result<(), OpsError>;

    /// Moves rows to the host; what is left of `rows` has no meaning.
    fn take(&mut self, rows: &mut Self::Rows, out: &mut Vec<f32>) -> Result<(), OpsError>;

    /// Copies rows to the host.
    fn read(&mut self, rows: &Self::Rows, out: &mut Vec<f32>) -> Result<(), OpsError>;

    /// Copies rows of `width` values from the host.
    fn write(
        &mut self,
        values: &[f32],
        width: usize,
        rows: &mut Self::Rows,
    ) -> Result<(), OpsError>;
}
