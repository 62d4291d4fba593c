//! Where the parts of latent attention's heads go.

use std::ops::Range;

use super::{Case, FLOATS, check, host, norm, observe, random, rows};
use crate::model::mla::MlaConfig;
use crate::model::ops::{Expanded, Ops, OpsError};

const NUM_HEADS: usize = 3;
const NUM_ROWS: usize = 11;

pub(super) fn check_all<O: Ops>(ops: &mut O) {
    for (nope_head_dim, rope_head_dim, v_head_dim) in [(8, 4, 8), (5, 6, 3), (4, 2, 6)] {
        for is_joined in [false, true] {
            let case = Latent {
                mla: MlaConfig {
                    q_lora_rank: None,
                    kv_lora_rank: 13,
                    nope_head_dim,
                    rope_head_dim,
                    v_head_dim,
                },
                is_joined,
            };
            check(ops, "latent heads", FLOATS, &case);
        }
    }
}

struct Latent {
    mla: MlaConfig,
    is_joined: bool,
}

impl Case for Latent {
    fn num_units(&self) -> usize {
        NUM_ROWS
    }

    /// Queries, the normed latent, keys, values, and what is left of a result, row by row.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let mla = &self.mla;
        let part = |seed, width: usize| {
            random(seed, NUM_ROWS * width)[units.start * width..units.end * width].to_vec()
        };
        let (head_dim, rank) = (mla.head_dim(), mla.kv_lora_rank);
        let width = NUM_HEADS * head_dim;
        let wide = rows(ops, &part(70, width), width)?;
        let [mut q, mut k, mut v] = std::array::from_fn(|_| O::Rows::default());
        ops.latent_queries(mla, &wide, &mut q)?;
        let latent_width = rank + mla.rope_head_dim;
        let latent = rows(ops, &part(71, latent_width), latent_width)?;
        let weight = ops.vector(norm(72, rank))?;
        let mut normed = ops.activations(0, 0, true)?;
        ops.latent_norm(mla, &latent, &weight, 1e-6, &mut normed)?;
        let (nope, v_dim) = (NUM_HEADS * mla.nope_head_dim, NUM_HEADS * mla.v_head_dim);
        if self.is_joined {
            let joined = rows(ops, &part(73, nope + v_dim), nope + v_dim)?;
            let expanded = Expanded::Joined(&joined);
            ops.latent_keys_values(mla, &latent, expanded, [&mut k, &mut v])?;
        } else {
            let keys = rows(ops, &part(74, nope), nope)?;
            let values = rows(ops, &part(75, v_dim), v_dim)?;
            let expanded = Expanded::Split(&keys, &values);
            ops.latent_keys_values(mla, &latent, expanded, [&mut k, &mut v])?;
        }
        let mut result = rows(ops, &part(76, width), width)?;
        ops.latent_values(mla, &mut result)?;
        let parts = [
            (host(ops, &q)?, width),
            (observe(ops, &normed, rank)?, rank),
            (host(ops, &k)?, width),
            (host(ops, &v)?, width),
            (host(ops, &result)?, v_dim),
        ];
        let of_row = |row: usize| {
            let of_part = move |(values, width): &(Vec<f32>, usize)| {
                values[row * width..(row + 1) * width].to_vec()
            };
            parts.iter().flat_map(of_part)
        };
        Ok((0..units.len()).flat_map(of_row).collect())
    }
}
