//! Where the parts of latent attention's heads lie.

use ponder_kernels::Activations;

use super::super::{Expanded, LatentOps, OpsError};
use super::{CpuOps, CpuRows};
use crate::model::mla::MlaConfig;

/// Moves the rotated part of each head to its front.
fn queries(mla: &MlaConfig, wide: &CpuRows, q: &mut CpuRows) {
    let (nope, rope, head_dim) = (mla.nope_head_dim, mla.rope_head_dim, mla.head_dim());
    q.shape(wide.num_rows(), wide.width);
    let heads = wide.values.chunks_exact(head_dim);
    for (q, head) in q.values.chunks_exact_mut(head_dim).zip(heads) {
        q[..rope].copy_from_slice(&head[nope..]);
        q[rope..].copy_from_slice(&head[..nope]);
    }
}

/// Puts keys and values together, head by head.
fn keys_values(
    mla: &MlaConfig,
    latent: &CpuRows,
    expanded: &Expanded<'_, CpuOps>,
    [k, v]: [&mut CpuRows; 2],
) {
    let (nope, rope, v_dim) = (mla.nope_head_dim, mla.rope_head_dim, mla.v_head_dim);
    let head_dim = mla.head_dim();
    // Where a head's key and value begin, and how far the next one's are.
    let (keys, key_stride, values, value_stride) = match expanded {
        Expanded::Joined(joined) => {
            let stride = nope + v_dim;
            let values = joined.values.get(nope..).unwrap_or_default();
            (&joined.values[..], stride, values, stride)
        }
        Expanded::Split(keys, values) => (&keys.values[..], nope, &values.values[..], v_dim),
    };
    let num_rows = latent.num_rows();
    let num_heads = keys.len() / key_stride / num_rows.max(1);
    let width = num_heads * head_dim;
    k.shape(num_rows, width);
    v.shape(num_rows, width);
    v.values.fill(0.0);
    for (row, latent) in latent.values.chunks_exact(latent.width).enumerate() {
        let shared = &latent[mla.kv_lora_rank..][..rope];
        for head in 0..num_heads {
            let index = row * num_heads + head;
            let key = &mut k.values[index * head_dim..][..head_dim];
            key[..rope].copy_from_slice(shared);
            key[rope..].copy_from_slice(&keys[index * key_stride..][..nope]);
            let value = &mut v.values[index * head_dim..][..v_dim];
            value.copy_from_slice(&values[index * value_stride..][..v_dim]);
        }
    }
}

/// Keeps the first `v_head_dim` elements of each head.
fn keep_values(mla: &MlaConfig, rows: &mut CpuRows) {
    let (head_dim, v_dim) = (mla.head_dim(), mla.v_head_dim);
    let num_heads = rows.values.len() / head_dim;
    for head in 0..num_heads {
        let from = head * head_dim;
        rows.values.copy_within(from..from + v_dim, head * v_dim);
    }
    rows.values.truncate(num_heads * v_dim);
    rows.width = rows.width / head_dim * v_dim;
}

impl LatentOps for CpuOps {
    fn latent_queries(
        &mut self,
        mla: &MlaConfig,
        wide: &CpuRows,
        q: &mut CpuRows,
    ) -> Result<(), OpsError> {
        queries(mla, wide, q);
        Ok(())
    }

    fn latent_norm(
        &mut self,
        mla: &MlaConfig,
        latent: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let rank = mla.kv_lora_rank;
        self.normed.clear();
        for row in latent.values.chunks_exact(latent.width) {
            self.normed.extend_from_slice(&row[..rank]);
        }
        out.load_normed(&self.pool, &self.normed, weight, eps);
        Ok(())
    }

    fn latent_keys_values(
        &mut self,
        mla: &MlaConfig,
        latent: &CpuRows,
        expanded: Expanded<'_, Self>,
        kv: [&mut CpuRows; 2],
    ) -> Result<(), OpsError> {
        keys_values(mla, latent, &expanded, kv);
        Ok(())
    }

    fn latent_values(&mut self, mla: &MlaConfig, rows: &mut CpuRows) -> Result<(), OpsError> {
        keep_values(mla, rows);
        Ok(())
    }
}
