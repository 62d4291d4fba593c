//! Norms, products and attention by the kernels.

use ponder_kernels::Glu;
use ponder_kernels_cuda::attention::{self, KvCache, StepPart};
use ponder_kernels_cuda::product::{self, Job, Matrix, Workspace};
use ponder_kernels_cuda::rows::{self, Norm};
use ponder_kernels_cuda::{Activations, Buffer, CudaError, Gpu, Rows};

use super::super::{
    LayerAttention, LayerOps, Linear, LogitsTransform, OpsError, Residual, Rotation, Step,
};
use super::{CudaMatrix, CudaOps, NO_SINKS};

/// Rows of the largest products whose parts of a sum are computed apart: with more there are blocks enough.
const MAX_APART_ROWS: usize = 256;

/// Makes room for the parts of the matrices' sums.
fn reserve(
    gpu: &Gpu,
    workspace: &mut Workspace,
    matrices: &[&Matrix],
    num_rows: usize,
) -> Result<(), CudaError> {
    workspace.reserve(gpu, matrices)?;
    let has_parts = |matrix: &&&Matrix| matrix.splits().num_parts > 1;
    let in_parts: Vec<&Matrix> = matrices.iter().filter(has_parts).copied().collect();
    match num_rows > MIN_WIDE_ROWS && num_rows <= MAX_APART_ROWS && !in_parts.is_empty() {
        true => workspace.reserve_rows(gpu, &in_parts, MAX_APART_ROWS),
        false => Ok(()),
    }
}

/// Up to here [`Workspace::reserve`] has made room.
const MIN_WIDE_ROWS: usize = 64;

impl CudaOps {
    /// `out = x · weights^T + bias`, or added to `out`.
    fn product(
        &mut self,
        x: &Activations,
        linear: &Linear<Self>,
        accumulates: bool,
        out: &mut Rows,
    ) -> Result<(), CudaError> {
        self.matrix_product(x, &linear.weights, linear.bias.as_ref(), accumulates, out)
    }

    fn matrix_product(
        &mut self,
        x: &Activations,
        weights: &CudaMatrix,
        bias: Option<&Buffer<f32>>,
        accumulates: bool,
        out: &mut Rows,
    ) -> Result<(), CudaError> {
        let gpu = &self.gpu;
        match (weights, accumulates) {
            (CudaMatrix::Float(matrix), false) => rows::project(gpu, x, matrix, bias, out),
            (CudaMatrix::Float(matrix), true) => rows::project_add(gpu, x, matrix, bias, out),
            (CudaMatrix::Packed(matrix), accumulate) => {
                reserve(gpu, &mut self.workspace, &[matrix], x.num_rows())?;
                let job = Job {
                    matrix,
                    bias,
                    out,
                    accumulate,
                };
                product::project(gpu, &self.workspace, x, &mut [job])
            }
        }
    }
}

impl LayerOps for CudaOps {
    fn embed(
        &mut self,
        step: Step<'_, Self>,
        table: &CudaMatrix,
        factor: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        let ids = step.inputs.buffers().list(StepPart::TokenIds);
        match table {
            CudaMatrix::Float(table) => rows::embed_floats(&self.gpu, table, ids, factor, out)?,
            CudaMatrix::Packed(table) => {
                product::embed(&self.gpu, table, ids.indices, ids.len, factor, out)?;
            }
        }
        Ok(())
    }

    fn norm(
        &mut self,
        x: &Rows,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        Ok(rows::norm(&self.gpu, x, Norm { weight, eps }, out)?)
    }

    fn norm_rows(&mut self, x: &mut Rows, weight: &Buffer<f32>, eps: f32) -> Result<(), OpsError> {
        Ok(rows::norm_rows(&self.gpu, x, Norm { weight, eps })?)
    }

    fn quantise(&mut self, x: &Rows, out: &mut Activations) -> Result<(), OpsError> {
        Ok(rows::quantise(&self.gpu, x, out)?)
    }

    fn project<const N: usize>(
        &mut self,
        x: &Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut Rows; N],
    ) -> Result<(), OpsError> {
        // Those for the tensor cores are one launch.
        let mut jobs = Vec::with_capacity(N);
        for (linear, out) in linears.into_iter().zip(outs) {
            match &linear.weights {
                CudaMatrix::Packed(matrix) => jobs.push(Job {
                    matrix,
                    bias: linear.bias.as_ref(),
                    out,
                    accumulate: false,
                }),
                CudaMatrix::Float(_) => self.product(x, linear, false, out)?,
            }
        }
        let matrices: Vec<&Matrix> = jobs.iter().map(|job| job.matrix).collect();
        reserve(&self.gpu, &mut self.workspace, &matrices, x.num_rows())?;
        Ok(product::project(&self.gpu, &self.workspace, x, &mut jobs)?)
    }

    fn project_add(
        &mut self,
        x: &Activations,
        linear: &Linear<Self>,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        Ok(self.product(x, linear, true, out)?)
    }

    fn add_residual(
        &mut self,
        h: &mut Rows,
        residual: &Residual<'_, Self>,
        x: &mut Rows,
    ) -> Result<(), OpsError> {
        match residual.post_norm {
            Some(weight) => {
                let norm = Norm {
                    weight,
                    eps: residual.eps,
                };
                rows::add_normed(&self.gpu, x, h, norm)?;
            }
            None => rows::add_scaled(&self.gpu, x, h, residual.scale)?,
        }
        Ok(())
    }

    fn rotate_and_cache(
        &mut self,
        step: Step<'_, Self>,
        rotation: &Rotation<'_, Self>,
        cache: &mut KvCache,
        layer: usize,
        qkv: [&mut Rows; 3],
    ) -> Result<(), OpsError> {
        let rotation = attention::Rotation {
            table: rotation.table,
            kind: rotation.kind,
            q_norm: rotation.q_norm,
            k_norm: rotation.k_norm,
            eps: rotation.eps,
        };
        let step = step.inputs.buffers();
        Ok(attention::rotate_and_cache(
            &self.gpu, &rotation, step, cache, layer, qkv,
        )?)
    }

    fn attention(
        &mut self,
        step: Step<'_, Self>,
        of_layer: &LayerAttention<'_, Self>,
        cache: &KvCache,
        q: &Rows,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        if of_layer.sinks.is_some() {
            return Err(OpsError::Device(NO_SINKS.to_owned()));
        }
        let (params, layer) = (of_layer.params, of_layer.layer);
        let step = step.inputs.buffers();
        Ok(attention::attention(
            &self.gpu, params, cache, layer, step, q, out,
        )?)
    }

    fn keep_rows(&mut self, step: Step<'_, Self>, rows: &mut Rows) -> Result<(), OpsError> {
        if step.batch.logits_rows.len() == step.batch.token_ids.len() {
            // They ascend: all stay where they are.
            return Ok(());
        }
        let kept = step.inputs.buffers().list(StepPart::LogitsRows);
        Ok(rows::keep_rows(&self.gpu, rows, kept)?)
    }

    fn gate_up(
        &mut self,
        x: &Activations,
        [gate, up]: [&CudaMatrix; 2],
        glu: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let gpu = &self.gpu;
        let [gates, ups] = &mut self.gates;
        match (gate, up) {
            (CudaMatrix::Packed(gate), CudaMatrix::Packed(up)) if gate.layout() == up.layout() => {
                let matrices = [gate, up];
                reserve(gpu, &mut self.workspace, &matrices, x.num_rows())?;
                let biases = [None, None];
                product::gate_up(gpu, &self.workspace, x, matrices, biases, glu, out)?;
            }
            (CudaMatrix::Float(gate), CudaMatrix::Float(up)) => {
                rows::gate_up(gpu, x, [gate, up], glu, [gates, ups], out)?;
            }
            // Of two types: apart.
            (gate, up) => {
                let mut products = std::mem::take(&mut self.gates);
                for (weights, out) in [gate, up].into_iter().zip(&mut products) {
                    self.matrix_product(x, weights, None, false, out)?;
                }
                let [gates, ups] = &mut products;
                rows::activate(&self.gpu, gates, ups, glu, out)?;
                self.gates = products;
            }
        }
        Ok(())
    }

    fn activate(
        &mut self,
        gate: &mut Rows,
        up: &Rows,
        glu: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        Ok(rows::activate(&self.gpu, gate, up, glu, out)?)
    }

    fn final_norm(
        &mut self,
        step: Step<'_, Self>,
        x: &Rows,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let offsets = step.inputs.hidden(step.rows);
        Ok(rows::final_norm(
            &self.gpu,
            x,
            Norm { weight, eps },
            offsets,
            out,
        )?)
    }

    fn head(
        &mut self,
        x: &Activations,
        head: &CudaMatrix,
        transform: &LogitsTransform,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        let (factor, softcap) = (1.0 / transform.divisor, transform.softcap);
        match head {
            CudaMatrix::Packed(matrix) => {
                reserve(&self.gpu, &mut self.workspace, &[matrix], x.num_rows())?;
                product::head(&self.gpu, &self.workspace, x, matrix, factor, softcap, out)?;
            }
            CudaMatrix::Float(matrix) => {
                rows::project(&self.gpu, x, matrix, None, out)?;
                if factor != 1.0 || softcap.is_some() {
                    rows::transform_logits(&self.gpu, out, factor, softcap)?;
                }
            }
        }
        Ok(())
    }

    fn read_normed(
        &self,
        x: &Rows,
        row: usize,
        weight: &Buffer<f32>,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError> {
        Ok(rows::read_normed(&self.gpu, x, row, Norm { weight, eps })?)
    }
}
