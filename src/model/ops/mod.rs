//! The operations that a decoder is made of. A model is written once over them; an implementation runs them on one kind of
//! device. Nothing outside an implementation sees the values of rows, except by the operations that read them.
//!
//! **Shapes.** Rows are row-major `[num_rows, width]`. An operation gives what it writes its shape, whatever it was before.
//! Rows, matrices and caches of one model always go to the same implementation.
//!
//! **The law of rows.** A row of a result depends on its own inputs alone: never on the rows beside it, on how many there are, on
//! how a prompt was cut into steps, or on where a sequence's blocks lie. The same row gives the same bits.
//!
//! **Errors.** An operation tells when its device fails. Shapes that do not fit are bugs of the caller and may panic; what comes
//! from a request (tokens, positions, slots, block tables) is checked before by the decoder.
//!
//! `conformance` holds an implementation to all of this.

#[cfg(test)]
mod conformance;
pub mod cpu;
#[cfg(test)]
mod reference;
mod types;

use ponder_kernels::{AttentionParams, DType, Gating, Glu};

pub use cpu::CpuOps;
pub use types::*;

use super::adapt::Adaptable;
use super::causal_lm::{BlockId, ForwardBatch};
use super::decoder::Decoder;
use super::mla::MlaConfig;
use super::moe::{ExpertLoad, LayerRouting};

/// What runs a decoder: the fused operations of a layer. See the module's promises.
pub trait Ops: Send + Sized + 'static {
    /// Weights `[out_features, in_features]`.
    type Matrix: WeightMatrix;
    /// One matrix of every expert, `[num_experts, out_features, in_features]`.
    type Experts: WeightMatrix;
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

    /// Packs `[num_experts, out_features, in_features]`.
    fn experts(
        &self,
        dtype: DType,
        bytes: &[u8],
        shape: [usize; 3],
    ) -> Result<Self::Experts, OpsError>;

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, OpsError>;

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<Self::RopeTable, OpsError>;

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
        num_kv_heads: usize,
        inputs: &mut Self::StepInputs,
    ) -> Result<(), OpsError>;

    /// `out[row] = scale * table[token_id]`, `[num_rows, hidden_size]`.
    fn embed(
        &mut self,
        step: Step<'_, Self>,
        table: &Self::Matrix,
        scale: f32,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// RMS norm with quantisation: `x / sqrt(mean(x^2) + eps) * weight`.
    fn norm(
        &mut self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;

    /// RMS norm of whole rows in place.
    fn norm_rows(
        &mut self,
        x: &mut Self::Rows,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<(), OpsError>;

    /// Rows as the next product reads them.
    fn quantise(&mut self, x: &Self::Rows, out: &mut Self::Activations) -> Result<(), OpsError>;

    /// Several products of the same activations: `out = x · weights^T + bias`, `[num_rows, out_features]` each.
    fn project<const N: usize>(
        &mut self,
        x: &Self::Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut Self::Rows; N],
    ) -> Result<(), OpsError>;

    /// `out += x · weights^T + bias`: a product with the residual add.
    fn project_add(
        &mut self,
        x: &Self::Activations,
        linear: &Linear<Self>,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// `x += scale * h`, or `x += norm(h)` with a post-norm. `h` may be overwritten.
    fn add_residual(
        &mut self,
        h: &mut Self::Rows,
        residual: &Residual<'_, Self>,
        x: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Norms of each head of Q and K where there are any, their rotation to the rows' positions, and the write of K and V to the
    /// rows' slots of one layer. `q` is `[num_rows, num_heads * head_dim]`, `k` and `v` `[num_rows, num_kv_heads * head_dim]`.
    fn rotate_and_cache(
        &mut self,
        step: Step<'_, Self>,
        rotation: &Rotation<'_, Self>,
        cache: &mut Self::KvCache,
        layer: usize,
        qkv: [&mut Self::Rows; 3],
    ) -> Result<(), OpsError>;

    /// Causal attention over the block tables, leaves of draft trees included. The rows' own keys and values are in the cache.
    /// `q` and `out` are `[num_rows, num_heads * head_dim]`.
    fn attention(
        &mut self,
        step: Step<'_, Self>,
        params: &AttentionParams,
        cache: &Self::KvCache,
        layer: usize,
        q: &Self::Rows,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Drops the rows whose logits nobody wants; the others keep their order.
    fn keep_rows(&mut self, step: Step<'_, Self>, rows: &mut Self::Rows) -> Result<(), OpsError>;

    /// `out = act(x · gate^T) * (x · up^T)`, as the down product reads it.
    fn gate_up(
        &mut self,
        x: &Self::Activations,
        gate_and_up: [&Self::Matrix; 2],
        glu: Glu,
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;

    /// The same from the two products: `gate = act(gate) * up`, and `out` is `gate` as the down product reads it. The bits are those
    /// of [`Self::gate_up`].
    fn activate(
        &mut self,
        gate: &mut Self::Rows,
        up: &Self::Rows,
        glu: Glu,
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;

    /// Adds what one adapter changes in products of the same input, at the rows of group `group` alone:
    /// `out[row] += input[row] · down^T · up^T`. Products without factors stay as they are.
    fn add_low_rank<const N: usize>(
        &mut self,
        step: Step<'_, Self>,
        group: usize,
        input: &AdaptedInput<'_, Self>,
        products: [(Option<&LowRankFactors<Self>>, &mut Self::Rows); N],
    ) -> Result<(), OpsError>;

    /// Adds each steered sequence's change of a layer's router to its rows' logits, `[num_rows, num_experts]`.
    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Chooses each row's experts by its router logits. `bias` (`[num_experts]`) counts in the choice but not in the weights; of
    /// equal scores the lower expert wins.
    fn route(
        &mut self,
        gating: &Gating,
        logits: &Self::Rows,
        bias: Option<&Self::Vector>,
        routing: &mut Self::Routing,
    ) -> Result<(), OpsError>;

    /// `out += scale * sum of weight * down_e(act(gate_e(x)) * up_e(x))` over each row's experts, in the order of their scores.
    fn add_experts(
        &mut self,
        x: &Self::Activations,
        routing: &mut Self::Routing,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// `out += scale * sigmoid(weight) * h`, one weight a row (`[num_rows, 1]`).
    fn add_weighted(
        &mut self,
        h: &Self::Rows,
        weights: &Self::Rows,
        scale: f32,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Counts where the rows of a layer went. It may count later, but before the process reads a count that should have it.
    fn count_experts(
        &mut self,
        routing: &Self::Routing,
        layer: usize,
        load: &ExpertLoad,
    ) -> Result<(), OpsError>;

    /// Reads where the rows of a layer went.
    fn read_routing(
        &mut self,
        layer: usize,
        logits: &Self::Rows,
        routing: &Self::Routing,
    ) -> Result<LayerRouting, OpsError>;

    /// Queries of latent attention with a head's rotated elements first: `wide` has them last.
    fn latent_queries(
        &mut self,
        mla: &MlaConfig,
        wide: &Self::Rows,
        q: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// RMS norm of the first `kv_lora_rank` elements of each row of `latent` (`[num_rows, kv_lora_rank + rope_head_dim]`).
    fn latent_norm(
        &mut self,
        mla: &MlaConfig,
        latent: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;

    /// Every head's key and value, `[num_rows, num_heads * head_dim]`: the rotated part of a key, one for all heads, comes from the
    /// end of `latent`, the rest from `expanded`; values are padded with zeros.
    fn latent_keys_values(
        &mut self,
        mla: &MlaConfig,
        latent: &Self::Rows,
        expanded: Expanded<'_, Self>,
        kv: [&mut Self::Rows; 2],
    ) -> Result<(), OpsError>;

    /// Drops the padding of attention's result: `[num_rows, num_heads * head_dim]` becomes `[num_rows, num_heads * v_head_dim]`.
    fn latent_values(&mut self, mla: &MlaConfig, rows: &mut Self::Rows) -> Result<(), OpsError>;

    /// [`Self::norm`] before the head, with what steers each sequence's hidden state added after the norm. Rows that nothing is
    /// added to keep the bits of [`Self::norm`].
    fn final_norm(
        &mut self,
        step: Step<'_, Self>,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;

    /// Logits, `[num_rows, vocab_size]`.
    fn head(
        &mut self,
        x: &Self::Activations,
        head: &Self::Matrix,
        transform: &LogitsTransform,
        out: &mut Self::Rows,
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

    /// The RMS norm of one row, on the host; `None` when there is no such row.
    fn read_normed(
        &self,
        rows: &Self::Rows,
        row: usize,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError>;

    /// Test-time adaptation, of implementations that gradients go back through.
    fn adaptable(_decoder: &mut Decoder<Self>) -> Option<&mut dyn Adaptable> {
        None
    }
}
