//! One layer over the rows of a step.

use ponder_kernels::elementwise::glu;
use ponder_kernels::norm::{add_normed, rms_norm_in_place};
use ponder_kernels::{
    Activations, AttentionParams, AttentionPlan, KvCache, Product, RopeTable, Rotation, ThreadPool,
    matmul_glu, matmul_many, paged_attention, rotate_and_cache,
};

use super::adapted::{Adapters, Input};
use super::causal_lm::ForwardBatch;
use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, Attention, Linear, Mlp, Projections, QkNorm};
use super::lora::Target;
use super::mla::{LatentScratch, keep_values};
use super::moe::{Moe, MoeScratch, MoeStep};
use super::profile::{Operator, Stopwatch};

/// Rows of one step. Buffers grow to the largest step and stay.
#[derive(Default)]
pub(super) struct Scratch {
    pub activations: Activations,
    /// What the MLP's down projection reads.
    pub gated: Activations,
    pub attention: AttentionPlan,
    /// `[rows, hidden_size]`, the residual stream.
    pub x: Vec<f32>,
    /// `[rows, hidden_size]`, a sub-layer's output where it is normalised before it is added.
    h: Vec<f32>,
    pub q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[rows, num_heads * head_dim]`
    attended: Vec<f32>,
    /// `[rows, intermediate_size]`, where an adapter changes the MLP.
    gate: Vec<f32>,
    up: Vec<f32>,
    latent: LatentScratch,
    pub moe: MoeScratch,
}

/// One layer over the rows in the scratch.
pub(super) struct LayerStep<'a, 't> {
    pub pool: &'a ThreadPool,
    pub config: &'a ModelConfig,
    pub plan: &'a ArchitecturePlan,
    pub scratch: &'a mut Scratch,
    pub adapters: &'a mut Adapters,
    /// Of the layer.
    pub index: usize,
    /// Only the rows whose logits are wanted are left.
    pub is_kept: bool,
    pub stopwatch: &'a mut Stopwatch<'t>,
}

impl LayerStep<'_, '_> {
    /// Norm and projections: queries, keys and values as they are before the rotation.
    fn project(&mut self, layer: &Attention, num_rows: usize) {
        let (config, pool) = (self.config, self.pool);
        let s = &mut *self.scratch;
        s.activations
            .load_normed(pool, &s.x, &layer.norm, config.rms_norm_eps);
        self.stopwatch.mark(Operator::Norm);
        s.q.resize(num_rows * config.num_heads * config.head_dim, 0.0);
        s.k.resize(num_rows * config.num_kv_heads * config.head_dim, 0.0);
        s.v.resize(s.k.len(), 0.0);
        match &layer.projections {
            Projections::Plain { q, k, v } => {
                let products = [
                    product(q, &mut s.q),
                    product(k, &mut s.k),
                    product(v, &mut s.v),
                ];
                matmul_many(pool, &s.activations, products);
            }
            Projections::Latent(latent) => {
                let heads = [&mut s.q[..], &mut s.k, &mut s.v];
                latent.project(pool, &s.activations, &mut s.latent, heads);
            }
        }
        if self.adapters.are_used() {
            let input = Input::Normed(&s.x, &layer.norm, config.rms_norm_eps);
            let outs = [
                (Target::Q, &mut s.q[..]),
                (Target::K, &mut s.k[..]),
                (Target::V, &mut s.v[..]),
            ];
            self.adapters
                .add(pool, self.index, self.is_kept, input, outs);
        }
        self.stopwatch.mark(Operator::Qkv);
        if self.plan.qk_norm == QkNorm::Whole {
            for (rows, norm) in [(&mut s.q, &layer.q_norm), (&mut s.k, &layer.k_norm)] {
                let norm = norm.as_ref().expect("loaded with the layer; this is a bug");
                rms_norm_in_place(pool, rows, norm, config.rms_norm_eps);
            }
        }
    }

    /// Norm, QKV, rotation, KV write and attention; leaves the result in `attended`.
    pub fn attend(
        &mut self,
        layer: &Attention,
        rope: &RopeTable,
        cache: &mut KvCache,
        batch: &ForwardBatch<'_>,
    ) {
        let (config, pool) = (self.config, self.pool);
        self.project(layer, batch.token_ids.len());
        let s = &mut *self.scratch;
        let is_by_head = self.plan.qk_norm == QkNorm::Heads;
        let [q_norm, k_norm] =
            [&layer.q_norm, &layer.k_norm].map(|norm| norm.as_deref().filter(|_| is_by_head));
        let rotation = Rotation {
            table: rope,
            kind: self.plan.rope_kind,
            q_norm,
            k_norm,
            eps: config.rms_norm_eps,
            positions: batch.positions,
        };
        let slots = batch.slot_mapping;
        rotate_and_cache(
            pool, &rotation, cache, self.index, slots, &mut s.q, &mut s.k, &s.v,
        );
        self.stopwatch.mark(Operator::RotateAndCache);
        let params = AttentionParams {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            sliding_window: config.sliding_window.filter(|_| layer.is_local),
            softcap: config.attention_softcap,
        };
        s.attended.resize(s.q.len(), 0.0);
        paged_attention(
            pool,
            &params,
            cache,
            self.index,
            &s.attention,
            &s.q,
            batch.sequences,
            &mut s.attended,
        );
        if let Some(mla) = &config.mla {
            keep_values(mla, &mut s.attended);
        }
        self.stopwatch.mark(Operator::Attention);
    }

    /// Past the last layer's attention only the rows whose logits are wanted matter.
    pub fn keep_rows(&mut self, rows: &[u32]) {
        self.is_kept = true;
        let width = self.attended_width();
        keep_rows(&mut self.scratch.x, self.config.hidden_size, rows);
        keep_rows(&mut self.scratch.attended, width, rows);
    }

    /// Values of a row of attention's result.
    fn attended_width(&self) -> usize {
        let mla = self.config.mla.as_ref();
        self.config.num_heads * mla.map_or(self.config.head_dim, |mla| mla.v_head_dim)
    }

    pub fn add_attention(&mut self, layer: &Attention) {
        let width = self.attended_width();
        let s = &mut *self.scratch;
        let num_rows = s.attended.len() / width;
        s.activations.load(self.pool, &s.attended, num_rows, width);
        self.stopwatch.mark(Operator::Quantise);
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let scale = self.config.residual_scale;
        let residual = Residual {
            pool,
            eps,
            scale,
            x,
            h,
        };
        let post_norm = layer.post_norm.as_deref();
        if self.adapters.are_used() {
            let input = Input::Plain(&s.attended, width);
            let (adapters, index, is_kept) = (&mut *self.adapters, self.index, self.is_kept);
            residual.add_adapted(&s.activations, &layer.output, post_norm, |h| {
                adapters.add(pool, index, is_kept, input, [(Target::Output, h)]);
            });
        } else {
            residual.add(&s.activations, &layer.output, post_norm);
        }
        self.stopwatch.mark(Operator::AttentionOutput);
    }

    pub fn add_mlp(&mut self, layer: &Mlp) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let s = &mut *self.scratch;
        s.activations.load_normed(pool, &s.x, &layer.norm, eps);
        self.stopwatch.mark(Operator::Norm);
        if self.adapters.are_used() {
            return self.add_adapted_mlp(layer);
        }
        let (gate, up) = (&layer.gate.weights, &layer.up.weights);
        matmul_glu(pool, &s.activations, gate, up, self.plan.glu, &mut s.gated);
        self.stopwatch.mark(Operator::GateUp);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let scale = self.config.residual_scale;
        let residual = Residual {
            pool,
            eps,
            scale,
            x,
            h,
        };
        residual.add(&s.gated, &layer.down, layer.post_norm.as_deref());
        self.stopwatch.mark(Operator::Down);
    }

    /// Norm, router, experts and the shared expert.
    pub fn add_moe(&mut self, layer: &Moe, batch: &ForwardBatch<'_>) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let Some(config) = &self.config.moe else {
            return;
        };
        let s = &mut *self.scratch;
        s.activations.load_normed(pool, &s.x, &layer.norm, eps);
        self.stopwatch.mark(Operator::Norm);
        s.moe.score(pool, layer, &s.activations);
        s.moe.steer(batch, self.index, self.is_kept);
        self.stopwatch.mark(Operator::Router);
        let step = MoeStep {
            pool,
            config,
            glu: self.plan.glu,
            residual_scale: self.config.residual_scale,
        };
        s.moe.add(&step, layer, &s.activations, &mut s.x);
        self.stopwatch.mark(Operator::Experts);
    }

    /// The same with the sums of gate and up before the gate is applied, so that adapters can add to them. Each value
    /// comes from the same sums as in the fused product: rows without an adapter get the same bits.
    fn add_adapted_mlp(&mut self, layer: &Mlp) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let width = self.config.intermediate_size;
        let (index, is_kept) = (self.index, self.is_kept);
        let s = &mut *self.scratch;
        let num_rows = s.x.len() / self.config.hidden_size;
        s.gate.resize(num_rows * width, 0.0);
        s.up.resize(num_rows * width, 0.0);
        let products = [
            product(&layer.gate, &mut s.gate),
            product(&layer.up, &mut s.up),
        ];
        matmul_many(pool, &s.activations, products);
        let input = Input::Normed(&s.x, &layer.norm, eps);
        let outs = [(Target::Gate, &mut s.gate[..]), (Target::Up, &mut s.up[..])];
        self.adapters.add(pool, index, is_kept, input, outs);
        glu(self.plan.glu, &mut s.gate, &s.up);
        s.gated.load(pool, &s.gate, num_rows, width);
        self.stopwatch.mark(Operator::GateUp);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let scale = self.config.residual_scale;
        let residual = Residual {
            pool,
            eps,
            scale,
            x,
            h,
        };
        let input = Input::Plain(&s.gate, width);
        let adapters = &mut *self.adapters;
        residual.add_adapted(&s.gated, &layer.down, layer.post_norm.as_deref(), |h| {
            adapters.add(pool, index, is_kept, input, [(Target::Down, h)]);
        });
        self.stopwatch.mark(Operator::Down);
    }
}

/// The last step of a sub-layer.
struct Residual<'a> {
    pool: &'a ThreadPool,
    eps: f32,
    /// Multiplies what is added.
    scale: f32,
    x: &'a mut [f32],
    h: &'a mut Vec<f32>,
}

impl Residual<'_> {
    /// Adds a product, normalised where the architecture does, to the residual stream.
    fn add(self, input: &Activations, linear: &Linear, post_norm: Option<&[f32]>) {
        let Some(norm) = post_norm else {
            if self.scale != 1.0 {
                return self.add_adapted(input, linear, None, |_| {});
            }
            let product = Product {
                accumulate: true,
                ..product(linear, self.x)
            };
            return matmul_many(self.pool, input, [product]);
        };
        self.add_adapted(input, linear, Some(norm), |_| {});
    }

    /// The same with `adapt` in between: it gets the product before it is normalised and added.
    fn add_adapted(
        self,
        input: &Activations,
        linear: &Linear,
        post_norm: Option<&[f32]>,
        adapt: impl FnOnce(&mut [f32]),
    ) {
        self.h.resize(self.x.len(), 0.0);
        matmul_many(self.pool, input, [product(linear, self.h)]);
        adapt(self.h);
        match post_norm {
            Some(norm) => add_normed(self.pool, self.x, self.h, norm, self.eps),
            None => {
                for (x, h) in self.x.iter_mut().zip(self.h.iter()) {
                    *x += self.scale * h;
                }
            }
        }
    }
}

fn product<'a>(linear: &'a Linear, out: &'a mut [f32]) -> Product<'a> {
    Product {
        weights: &linear.weights,
        bias: linear.bias.as_deref(),
        out,
        accumulate: false,
    }
}

/// Moves the chosen rows (ascending) to the front and drops the rest.
fn keep_rows(values: &mut Vec<f32>, width: usize, rows: &[u32]) {
    for (target, row) in rows.iter().enumerate() {
        let start = *row as usize * width;
        values.copy_within(start..start + width, target * width);
    }
    values.truncate(rows.len() * width);
}
