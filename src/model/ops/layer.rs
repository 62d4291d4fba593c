//! The operations of attention, MLPs and the head.

use ponder_kernels::Glu;

use super::{Device, LayerAttention, Linear, LogitsTransform, OpsError, Residual, Rotation, Step};

/// The fused operations of a dense layer, of the embedding and the head.
pub trait LayerOps: Device {
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
        attention: &LayerAttention<'_, Self>,
        cache: &Self::KvCache,
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

    /// The RMS norm of one row, on the host; `None` when there is no such row.
    fn read_normed(
        &self,
        rows: &Self::Rows,
        row: usize,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError>;
}
