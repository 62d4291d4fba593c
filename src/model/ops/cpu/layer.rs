//! Norms, products and attention by the kernels.

use ponder_kernels::elementwise::{glu, scale, softcap};
use ponder_kernels::norm::{add_normed, rms_norm_in_place};
use ponder_kernels::{
    Activations, Glu, KvCache, PackedMatrix, Product, matmul, matmul_glu, matmul_many,
    paged_attention_with_sinks, rotate_and_cache,
};

use super::super::{
    LayerAttention, LayerOps, Linear, LogitsTransform, OpsError, Residual, Rotation, RowSet, Step,
};
use super::{CpuOps, CpuRows};
use crate::model::adapt::add_offset;

pub(super) fn product<'a>(linear: &'a Linear<CpuOps>, out: &'a mut [f32]) -> Product<'a> {
    Product {
        weights: &linear.weights,
        bias: linear.bias.as_deref(),
        out,
        accumulate: false,
    }
}

impl LayerOps for CpuOps {
    fn embed(
        &mut self,
        step: Step<'_, Self>,
        table: &PackedMatrix,
        factor: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let width = table.in_features();
        out.shape(step.num_rows(), width);
        let rows = out.values.chunks_exact_mut(width);
        for (token_id, row) in step.batch.token_ids.iter().zip(rows) {
            table.dequantize_row(*token_id as usize, row);
        }
        if factor != 1.0 {
            scale(&mut out.values, factor);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        x: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        out.load_normed(&self.pool, &x.values, weight, eps);
        Ok(())
    }

    fn norm_rows(&mut self, x: &mut CpuRows, weight: &Vec<f32>, eps: f32) -> Result<(), OpsError> {
        rms_norm_in_place(&self.pool, &mut x.values, weight, eps);
        Ok(())
    }

    fn quantise(&mut self, x: &CpuRows, out: &mut Activations) -> Result<(), OpsError> {
        out.load(&self.pool, &x.values, x.num_rows(), x.width);
        Ok(())
    }

    fn project<const N: usize>(
        &mut self,
        x: &Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut CpuRows; N],
    ) -> Result<(), OpsError> {
        let mut outs = outs.into_iter();
        let products = linears.map(|linear| {
            let out = outs.next().expect("an output a product; this is a bug");
            out.shape(x.num_rows(), linear.weights.out_features());
            product(linear, &mut out.values)
        });
        matmul_many(&self.pool, x, products);
        Ok(())
    }

    fn project_add(
        &mut self,
        x: &Activations,
        linear: &Linear<Self>,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let product = Product {
            accumulate: true,
            ..product(linear, &mut out.values)
        };
        matmul_many(&self.pool, x, [product]);
        Ok(())
    }

    fn add_residual(
        &mut self,
        h: &mut CpuRows,
        residual: &Residual<'_, Self>,
        x: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let (x, h) = (&mut x.values, &mut h.values);
        match residual.post_norm {
            Some(norm) => add_normed(&self.pool, x, h, norm, residual.eps),
            None => {
                for (x, h) in x.iter_mut().zip(h.iter()) {
                    *x += residual.scale * h;
                }
            }
        }
        Ok(())
    }

    fn rotate_and_cache(
        &mut self,
        step: Step<'_, Self>,
        rotation: &Rotation<'_, Self>,
        cache: &mut KvCache,
        layer: usize,
        [q, k, v]: [&mut CpuRows; 3],
    ) -> Result<(), OpsError> {
        let rotation = ponder_kernels::Rotation {
            table: rotation.table,
            kind: rotation.kind,
            q_norm: rotation.q_norm.map(Vec::as_slice),
            k_norm: rotation.k_norm.map(Vec::as_slice),
            eps: rotation.eps,
            positions: step.batch.positions,
        };
        let slots = step.batch.slot_mapping;
        let (q, k, v) = (&mut q.values, &mut k.values, &v.values);
        rotate_and_cache(&self.pool, &rotation, cache, layer, slots, q, k, v);
        Ok(())
    }

    fn attention(
        &mut self,
        step: Step<'_, Self>,
        attention: &LayerAttention<'_, Self>,
        cache: &KvCache,
        q: &CpuRows,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        out.shape(q.num_rows(), q.width);
        paged_attention_with_sinks(
            &self.pool,
            attention.params,
            attention.sinks.map(Vec::as_slice),
            cache,
            attention.layer,
            step.inputs,
            &q.values,
            step.batch.sequences,
            &mut out.values,
        );
        Ok(())
    }

    fn keep_rows(&mut self, step: Step<'_, Self>, rows: &mut CpuRows) -> Result<(), OpsError> {
        let (width, kept) = (rows.width, step.batch.logits_rows);
        for (target, row) in kept.iter().enumerate() {
            let start = *row as usize * width;
            rows.values
                .copy_within(start..start + width, target * width);
        }
        rows.values.truncate(kept.len() * width);
        Ok(())
    }

    fn gate_up(
        &mut self,
        x: &Activations,
        [gate, up]: [&PackedMatrix; 2],
        glu: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        match &mut self.kept {
            Some(kept) => kept.dense(&self.pool, x, [gate, up], glu, &mut self.normed, out),
            None => matmul_glu(&self.pool, x, gate, up, glu, out),
        }
        Ok(())
    }

    fn activate(
        &mut self,
        gate: &mut CpuRows,
        up: &CpuRows,
        kind: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        glu(kind, &mut gate.values, &up.values);
        self.quantise(gate, out)
    }

    fn final_norm(
        &mut self,
        step: Step<'_, Self>,
        x: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let mut steering = step.batch.steering.iter().flatten();
        if !steering.any(|steering| steering.hidden.is_some()) {
            return self.norm(x, weight, eps, out);
        }
        // The same sums as in one pass: rows that nothing is added to keep their bits.
        let width = x.width;
        self.normed.clone_from(&x.values);
        rms_norm_in_place(&self.pool, &mut self.normed, weight, eps);
        for ((rows, kept), steering) in step.batch.ranges().zip(step.batch.steering) {
            let offset = steering.and_then(|steering| steering.hidden.as_deref());
            let rows = match step.rows {
                RowSet::All => rows,
                RowSet::Kept => kept,
            };
            add_offset(
                &mut self.normed[rows.start * width..rows.end * width],
                offset,
            );
        }
        out.load(&self.pool, &self.normed, x.num_rows(), width);
        Ok(())
    }

    fn head(
        &mut self,
        x: &Activations,
        head: &PackedMatrix,
        transform: &LogitsTransform,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        // Every value is overwritten, so only a longer result than the last is filled.
        out.shape(x.num_rows(), head.out_features());
        matmul(&self.pool, x, head, None, &mut out.values);
        if transform.divisor != 1.0 {
            scale(&mut out.values, 1.0 / transform.divisor);
        }
        if let Some(cap) = transform.softcap {
            softcap(&mut out.values, cap);
        }
        Ok(())
    }

    fn read_normed(
        &self,
        rows: &CpuRows,
        row: usize,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError> {
        let Some(row) = rows.values.chunks_exact(weight.len()).nth(row) else {
            return Ok(None);
        };
        let mut row = row.to_vec();
        rms_norm_in_place(&self.pool, &mut row, weight, eps);
        Ok(Some(row))
    }
}
