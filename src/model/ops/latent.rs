//! The operations of latent attention.

use super::{Device, Expanded, OpsError};
use crate::model::mla::MlaConfig;

/// How heads are made of a latent vector, beside norms and products: see [`crate::model::mla`].
pub trait LatentOps: Device {
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
}
