//! Where the parts of latent attention's heads lie.

use ponder_kernels_cuda::rows::{self, LatentShape, Norm};
use ponder_kernels_cuda::{Activations, Buffer, Rows};

use super::super::{Expanded, LatentOps, OpsError};
use super::CudaOps;
use crate::model::mla::MlaConfig;

fn shape(mla: &MlaConfig) -> LatentShape {
    LatentShape {
        nope_head_dim: mla.nope_head_dim,
        rope_head_dim: mla.rope_head_dim,
        v_head_dim: mla.v_head_dim,
    }
}

impl LatentOps for CudaOps {
    fn latent_queries(
        &mut self,
        mla: &MlaConfig,
        wide: &Rows,
        q: &mut Rows,
    ) -> Result<(), OpsError> {
        Ok(rows::latent_queries(&self.gpu, &shape(mla), wide, q)?)
    }

    fn latent_norm(
        &mut self,
        mla: &MlaConfig,
        latent: &Rows,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        debug_assert_eq!(weight.len(), mla.kv_lora_rank);
        let norm = Norm { weight, eps };
        Ok(rows::latent_norm(&self.gpu, latent, norm, out)?)
    }

    fn latent_keys_values(
        &mut self,
        mla: &MlaConfig,
        latent: &Rows,
        expanded: Expanded<'_, Self>,
        kv: [&mut Rows; 2],
    ) -> Result<(), OpsError> {
        let expanded = match expanded {
            Expanded::Joined(joined) => rows::Expanded::Joined(joined),
            Expanded::Split(keys, values) => rows::Expanded::Split(keys, values),
        };
        Ok(rows::latent_keys_values(
            &self.gpu,
            &shape(mla),
            latent,
            &expanded,
            kv,
        )?)
    }

    fn latent_values(&mut self, mla: &MlaConfig, rows: &mut Rows) -> Result<(), OpsError> {
        let shape = shape(mla);
        Ok(rows::latent_values(
            &self.gpu,
            &shape,
            rows,
            &mut self.latent,
        )?)
    }
}
