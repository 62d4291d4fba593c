//! Where the parts of latent attention's heads lie, by their definitions.

use super::super::{Expanded, LatentOps, OpsError};
use super::{ReferenceOps, Rows, rms_norm};
use crate::model::mla::MlaConfig;

impl LatentOps for ReferenceOps {
    fn latent_queries(
        &mut self,
        mla: &MlaConfig,
        wide: &Rows,
        q: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        let moved = |row: &Vec<f32>| {
            let heads = row.chunks_exact(mla.head_dim());
            heads
                .flat_map(|head| {
                    let (nope, rope) = head.split_at(mla.nope_head_dim);
                    [rope, nope].concat()
                })
                .collect()
        };
        *q = wide.iter().map(moved).collect();
        Ok(())
    }

    fn latent_norm(
        &mut self,
        mla: &MlaConfig,
        latent: &Rows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        let normed = |row: &Vec<f32>| rms_norm(&row[..mla.kv_lora_rank], weight, eps);
        *out = latent.iter().map(normed).collect();
        Ok(())
    }

    fn latent_keys_values(
        &mut self,
        mla: &MlaConfig,
        latent: &Rows,
        expanded: Expanded<'_, Self>,
        [k, v]: [&mut Rows; 2],
    ) -> Result<(), OpsError> {
        self.run()?;
        k.clear();
        v.clear();
        let (nope, v_dim) = (mla.nope_head_dim, mla.v_head_dim);
        for (row, latent) in latent.iter().enumerate() {
            // Every head's key and value.
            let heads: Vec<(&[f32], &[f32])> = match expanded {
                Expanded::Joined(joined) => {
                    let heads = joined[row].chunks_exact(nope + v_dim);
                    heads.map(|head| head.split_at(nope)).collect()
                }
                Expanded::Split(keys, values) => {
                    let values = values[row].chunks_exact(v_dim);
                    keys[row].chunks_exact(nope).zip(values).collect()
                }
            };
            let shared = &latent[mla.kv_lora_rank..];
            k.push(
                heads
                    .iter()
                    .flat_map(|(key, _)| [shared, key].concat())
                    .collect(),
            );
            let padding = vec![0.0; mla.head_dim() - v_dim];
            let padded = |(_, value): &(&[f32], &[f32])| [value, &padding[..]].concat();
            v.push(heads.iter().flat_map(padded).collect());
        }
        Ok(())
    }

    fn latent_values(&mut self, mla: &MlaConfig, rows: &mut Rows) -> Result<(), OpsError> {
        self.run()?;
        for row in rows {
            let heads = row.chunks_exact(mla.head_dim());
            *row = heads
                .flat_map(|head| head[..mla.v_head_dim].to_vec())
                .collect();
        }
        Ok(())
    }
}
