//! Norms, products and the head by their definitions.

use ponder_kernels::Glu;

use super::super::{
    LayerAttention, LayerOps, Linear, LogitsTransform, OpsError, Residual, Rotation, Step,
};
use super::attention::{Cache, attend, visible};
use super::experts::gated;
use super::{Dense, ReferenceOps, Rows, add, rms_norm};

fn linear(linear: &Linear<ReferenceOps>, x: &[f32]) -> Vec<f32> {
    let mut out = linear.weights.product(0, x);
    if let Some(bias) = &linear.bias {
        add(&mut out, 1.0, bias);
    }
    out
}

impl LayerOps for ReferenceOps {
    fn embed(
        &mut self,
        step: Step<'_, Self>,
        table: &Dense,
        scale: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        let row = |token_id: &u32| {
            let row = table.matrices[0][*token_id as usize].iter();
            row.map(|value| scale * value).collect()
        };
        *out = step.inputs.token_ids.iter().map(row).collect();
        Ok(())
    }

    fn norm(
        &mut self,
        x: &Rows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        *out = x.iter().map(|row| rms_norm(row, weight, eps)).collect();
        Ok(())
    }

    fn norm_rows(&mut self, x: &mut Rows, weight: &Vec<f32>, eps: f32) -> Result<(), OpsError> {
        self.run()?;
        for row in x {
            *row = rms_norm(row, weight, eps);
        }
        Ok(())
    }

    fn quantise(&mut self, x: &Rows, out: &mut Rows) -> Result<(), OpsError> {
        self.run()?;
        out.clone_from(x);
        Ok(())
    }

    fn project<const N: usize>(
        &mut self,
        x: &Rows,
        linears: [&Linear<Self>; N],
        outs: [&mut Rows; N],
    ) -> Result<(), OpsError> {
        self.run()?;
        for (weights, out) in linears.into_iter().zip(outs) {
            *out = x.iter().map(|row| linear(weights, row)).collect();
        }
        Ok(())
    }

    fn project_add(
        &mut self,
        x: &Rows,
        weights: &Linear<Self>,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        for (x, out) in x.iter().zip(out) {
            add(out, 1.0, &linear(weights, x));
        }
        Ok(())
    }

    fn add_residual(
        &mut self,
        h: &mut Rows,
        residual: &Residual<'_, Self>,
        x: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        for (h, x) in h.iter().zip(x) {
            match residual.post_norm {
                Some(norm) => add(x, 1.0, &rms_norm(h, norm, residual.eps)),
                None => add(x, residual.scale, h),
            }
        }
        Ok(())
    }

    fn rotate_and_cache(
        &mut self,
        step: Step<'_, Self>,
        rotation: &Rotation<'_, Self>,
        cache: &mut Cache,
        layer: usize,
        [q, k, v]: [&mut Rows; 3],
    ) -> Result<(), OpsError> {
        self.run()?;
        for (row, position) in step.inputs.positions.iter().enumerate() {
            for (values, norm) in [
                (&mut q[row], rotation.q_norm),
                (&mut k[row], rotation.k_norm),
            ] {
                for head in values.chunks_exact_mut(cache.head_dim) {
                    if let Some(norm) = norm {
                        head.copy_from_slice(&rms_norm(head, norm, rotation.eps));
                    }
                    rotation.table.rotate(rotation.kind, *position, head);
                }
            }
            let slot = step.inputs.slots[row];
            cache.write(layer, slot, &k[row], &v[row]);
        }
        Ok(())
    }

    fn attention(
        &mut self,
        step: Step<'_, Self>,
        attention: &LayerAttention<'_, Self>,
        cache: &Cache,
        q: &Rows,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        out.clear();
        let window = attention.params.sliding_window;
        for sequence in &step.inputs.sequences {
            for row in 0..sequence.num_rows {
                let (tokens, own) = visible(sequence, row, window);
                let q = &q[out.len()];
                out.push(attend(attention, cache, sequence, tokens, own, q));
            }
        }
        Ok(())
    }

    fn keep_rows(&mut self, step: Step<'_, Self>, rows: &mut Rows) -> Result<(), OpsError> {
        self.run()?;
        let kept = step.inputs.kept.iter();
        *rows = kept.map(|row| rows[*row].clone()).collect();
        Ok(())
    }

    fn gate_up(
        &mut self,
        x: &Rows,
        [gate, up]: [&Dense; 2],
        glu: Glu,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        *out = x
            .iter()
            .map(|x| gated(glu, &gate.product(0, x), &up.product(0, x)))
            .collect();
        Ok(())
    }

    fn activate(
        &mut self,
        gate: &mut Rows,
        up: &Rows,
        glu: Glu,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = gated(glu, gate, up);
        }
        out.clone_from(gate);
        Ok(())
    }

    fn final_norm(
        &mut self,
        step: Step<'_, Self>,
        x: &Rows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.norm(x, weight, eps, out)?;
        for (row, steering) in out.iter_mut().zip(step.inputs.steering(step.rows)) {
            let offset = steering.and_then(|steering| steering.hidden.as_deref());
            add(row, 1.0, offset.unwrap_or_default());
        }
        Ok(())
    }

    fn head(
        &mut self,
        x: &Rows,
        head: &Dense,
        transform: &LogitsTransform,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        let logit = |value: f32| {
            let value = value / transform.divisor;
            (transform.softcap).map_or(value, |cap| cap * (value / cap).tanh())
        };
        let row = |x: &Vec<f32>| head.product(0, x).into_iter().map(logit).collect();
        *out = x.iter().map(row).collect();
        Ok(())
    }

    fn read_normed(
        &self,
        rows: &Rows,
        row: usize,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError> {
        Ok(rows.get(row).map(|row| rms_norm(row, weight, eps)))
    }
}
