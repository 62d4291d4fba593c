//! The operations as their definitions say them: one row after the other, sums in f64, nothing quantised.
//!
//! It takes over what [`Ops::prepare`] is given and never looks at the batch again, as a device would, and it can be told to fail.

mod attention;
mod experts;

use ponder_kernels::reference::dequantize;
use ponder_kernels::{AttentionParams, DType, Gating, Glu};

use super::{
    AdaptedInput, AdapterRows, Expanded, ExpertWeights, KvShape, Linear, LogitsTransform,
    LowRankFactors, Ops, OpsError, Residual, RopeParams, Rotation, RowSet, Step, WeightMatrix,
};
use crate::model::causal_lm::{BlockId, ForwardBatch};
use crate::model::mla::MlaConfig;
use crate::model::moe::{ExpertLoad, LayerRouting};
use crate::model::steering::Steering;
use attention::{Angles, Cache};
use experts::Routing;

type Rows = Vec<Vec<f32>>;

/// Plain operations.
#[derive(Default)]
pub(in crate::model) struct ReferenceOps {
    /// Operations that were run.
    pub num_run: usize,
    /// The operation that fails, counted from 0.
    pub failing: Option<usize>,
}

/// `[num_matrices, out_features, in_features]`
pub(in crate::model) struct Dense {
    matrices: Vec<Rows>,
}

impl Dense {
    fn new(dtype: DType, bytes: &[u8], [count, outputs, inputs]: [usize; 3]) -> Self {
        let mut values = vec![0.0; count * outputs * inputs];
        dequantize(dtype, bytes, &mut values);
        let matrices = values.chunks_exact(outputs * inputs);
        let rows = |matrix: &[f32]| matrix.chunks_exact(inputs).map(<[f32]>::to_vec).collect();
        Self {
            matrices: matrices.map(rows).collect(),
        }
    }

    fn product(&self, index: usize, x: &[f32]) -> Vec<f32> {
        self.matrices[index].iter().map(|row| dot(row, x)).collect()
    }
}

impl WeightMatrix for Dense {
    fn out_features(&self) -> usize {
        self.matrices[0].len()
    }

    fn nbytes(&self) -> usize {
        self.matrices
            .iter()
            .flatten()
            .map(|row| 4 * row.len())
            .sum()
    }

    fn reads_floats(&self) -> bool {
        true
    }
}

/// What is kept of a step.
#[derive(Default)]
pub(in crate::model) struct Inputs {
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    sequences: Vec<Sequence>,
    groups: Vec<AdapterRows>,
    kept: Vec<usize>,
}

struct Sequence {
    block_table: Vec<BlockId>,
    num_rows: usize,
    context_len: usize,
    leaves: Vec<u32>,
    steering: Option<Steering>,
}

impl Inputs {
    /// The steering of each row that is there.
    fn steering(&self, rows: RowSet) -> Vec<Option<&Steering>> {
        let all: Vec<_> = (self.sequences.iter())
            .flat_map(|sequence| vec![sequence.steering.as_ref(); sequence.num_rows])
            .collect();
        match rows {
            RowSet::All => all,
            RowSet::Kept => self.kept.iter().map(|row| all[*row]).collect(),
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "inner sizes differ");
    let products = a.iter().zip(b);
    products
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum::<f64>() as f32
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = f64::from(dot(x, x)) / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    let pairs = x.iter().zip(weight);
    pairs
        .map(|(x, weight)| (f64::from(*x) * factor * f64::from(*weight)) as f32)
        .collect()
}

fn act(glu: Glu, gate: f32, up: f32) -> f32 {
    let x = f64::from(gate);
    let activated = match glu {
        Glu::Silu => x / (1.0 + (-x).exp()),
        Glu::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    (activated * f64::from(up)) as f32
}

fn add(out: &mut [f32], scale: f32, values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += scale * value;
    }
}

impl ReferenceOps {
    fn run(&mut self) -> Result<(), OpsError> {
        let index = self.num_run;
        self.num_run += 1;
        match self.failing == Some(index) {
            true => Err(OpsError::Device(format!("operation {index}"))),
            false => Ok(()),
        }
    }
}

fn linear(linear: &Linear<ReferenceOps>, x: &[f32]) -> Vec<f32> {
    let mut out = linear.weights.product(0, x);
    if let Some(bias) = &linear.bias {
        add(&mut out, 1.0, bias);
    }
    out
}

impl Ops for ReferenceOps {
    type Matrix = Dense;
    type Experts = Dense;
    type Vector = Vec<f32>;
    type Rows = Rows;
    type Activations = Rows;
    type Routing = Routing;
    type RopeTable = Angles;
    type KvCache = Cache;
    type StepInputs = Inputs;

    fn matrix(&self, dtype: DType, bytes: &[u8], shape: [usize; 2]) -> Result<Dense, OpsError> {
        Ok(Dense::new(dtype, bytes, [1, shape[0], shape[1]]))
    }

    fn experts(&self, dtype: DType, bytes: &[u8], shape: [usize; 3]) -> Result<Dense, OpsError> {
        Ok(Dense::new(dtype, bytes, shape))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, OpsError> {
        Ok(values)
    }

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<Angles, OpsError> {
        Ok(Angles::new(params))
    }

    fn kv_cache(&self, shape: &KvShape) -> Result<Cache, OpsError> {
        Ok(Cache::new(shape))
    }

    fn activations(&self, _: usize, _: usize, _: bool) -> Result<Rows, OpsError> {
        Ok(Vec::new())
    }

    fn routing(&self, _: bool) -> Result<Routing, OpsError> {
        Ok(Routing::default())
    }

    fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
        groups: &[AdapterRows],
        _: usize,
        inputs: &mut Inputs,
    ) -> Result<(), OpsError> {
        self.run()?;
        let sequence = |(index, rows): (usize, &crate::model::SequenceRows<'_>)| Sequence {
            block_table: rows.block_table.to_vec(),
            num_rows: rows.num_rows,
            context_len: rows.context_len,
            leaves: rows.leaves.to_vec(),
            steering: batch.steering.get(index).copied().flatten().cloned(),
        };
        *inputs = Inputs {
            token_ids: batch.token_ids.to_vec(),
            positions: batch.positions.to_vec(),
            slots: batch.slot_mapping.to_vec(),
            sequences: batch.sequences.iter().enumerate().map(sequence).collect(),
            groups: groups.to_vec(),
            kept: batch.logits_rows.iter().map(|row| *row as usize).collect(),
        };
        Ok(())
    }

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
        params: &AttentionParams,
        cache: &Cache,
        layer: usize,
        q: &Rows,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        out.clear();
        for sequence in &step.inputs.sequences {
            for row in 0..sequence.num_rows {
                let (tokens, own) = attention::visible(sequence, row, params.sliding_window);
                let q = &q[out.len()];
                out.push(attention::attend(
                    params, cache, layer, sequence, tokens, own, q,
                ));
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
            .map(|x| experts::gated(glu, &gate.product(0, x), &up.product(0, x)))
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
            *gate = experts::gated(glu, gate, up);
        }
        out.clone_from(gate);
        Ok(())
    }

    fn add_low_rank<const N: usize>(
        &mut self,
        step: Step<'_, Self>,
        group: usize,
        input: &AdaptedInput<'_, Self>,
        products: [(Option<&LowRankFactors<Self>>, &mut Rows); N],
    ) -> Result<(), OpsError> {
        self.run()?;
        let group = &step.inputs.groups[group];
        let rows = match step.rows {
            RowSet::All => &group.rows,
            RowSet::Kept => &group.kept,
        };
        for (factors, out) in products {
            let Some(factors) = factors else { continue };
            for row in rows {
                let x = match input {
                    AdaptedInput::Plain(x) => x[*row].clone(),
                    AdaptedInput::Normed { rows, weight, eps } => {
                        rms_norm(&rows[*row], weight, *eps)
                    }
                };
                let low = factors.down.product(0, &x);
                add(&mut out[*row], 1.0, &factors.up.product(0, &low));
            }
        }
        Ok(())
    }

    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        for (logits, steering) in logits.iter_mut().zip(step.inputs.steering(step.rows)) {
            let delta = steering.and_then(|steering| steering.router_delta(layer));
            add(logits, 1.0, delta.unwrap_or_default());
        }
        Ok(())
    }

    fn route(
        &mut self,
        gating: &Gating,
        logits: &Rows,
        bias: Option<&Vec<f32>>,
        routing: &mut Routing,
    ) -> Result<(), OpsError> {
        self.run()?;
        *routing = Routing::new(gating, logits, bias.map(Vec::as_slice));
        Ok(())
    }

    fn add_experts(
        &mut self,
        x: &Rows,
        routing: &mut Routing,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        routing.add(x, experts, scale, out);
        Ok(())
    }

    fn add_weighted(
        &mut self,
        h: &Rows,
        weights: &Rows,
        scale: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.run()?;
        for ((h, weight), out) in h.iter().zip(weights).zip(out) {
            add(out, scale / (1.0 + (-weight[0]).exp()), h);
        }
        Ok(())
    }

    fn count_experts(
        &mut self,
        routing: &Routing,
        layer: usize,
        load: &ExpertLoad,
    ) -> Result<(), OpsError> {
        self.run()?;
        let chosen = || routing.experts.iter().flatten();
        load.add(layer, |expert| {
            chosen()
                .filter(|chosen| **chosen as usize == expert)
                .count()
        });
        Ok(())
    }

    fn read_routing(
        &mut self,
        layer: usize,
        logits: &Rows,
        routing: &Routing,
    ) -> Result<LayerRouting, OpsError> {
        self.run()?;
        Ok(LayerRouting {
            layer,
            router_logits: logits.concat(),
            experts: routing.experts.concat(),
            gates: routing.gates.concat(),
        })
    }

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

    fn copy_blocks(
        &mut self,
        cache: &mut Cache,
        copies: &[(BlockId, BlockId)],
    ) -> Result<(), OpsError> {
        self.run()?;
        copies.iter().for_each(|copy| cache.copy(*copy));
        Ok(())
    }

    fn take(&mut self, rows: &mut Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        self.run()?;
        *out = std::mem::take(rows).concat();
        Ok(())
    }

    fn read(&mut self, rows: &Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        self.run()?;
        *out = rows.concat();
        Ok(())
    }

    fn write(&mut self, values: &[f32], width: usize, rows: &mut Rows) -> Result<(), OpsError> {
        self.run()?;
        *rows = values.chunks_exact(width).map(<[f32]>::to_vec).collect();
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
