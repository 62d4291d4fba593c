//! One layer over the rows of a step.

use super::adapted::{Adapters, Site};
use super::causal_lm::ForwardError;
use super::config::ModelConfig;
use super::families::QkNorm;
use super::layers::{Attention, Mlp, Projections};
use super::mla::LatentScratch;
use super::moe::MoeScratch;
use super::ops::{AdaptedInput, LayerAttention, Linear, Ops, Residual, Rotation, Step};
use super::profile::{Operator, Stopwatch};

/// Rows of one step. Buffers grow to the largest step and stay.
pub(super) struct Scratch<O: Ops> {
    pub activations: O::Activations,
    /// What the MLP's down projection reads.
    pub gated: O::Activations,
    /// `[rows, hidden_size]`, the residual stream.
    pub x: O::Rows,
    /// `[rows, hidden_size]`, a sub-layer's output where it is not added by its product.
    pub h: O::Rows,
    /// `[rows, num_heads * head_dim]`
    pub q: O::Rows,
    /// `[rows, num_kv_heads * head_dim]`
    k: O::Rows,
    v: O::Rows,
    /// Attention's result, `[rows, num_heads * head_dim]`; of latent attention without the padding of values.
    attended: O::Rows,
    /// `[rows, intermediate_size]`, where an adapter changes the MLP.
    gate: O::Rows,
    up: O::Rows,
    pub latent: LatentScratch<O>,
    pub moe: MoeScratch<O>,
    /// `[kept rows, vocab_size]`
    pub logits: O::Rows,
}

impl<O: Ops> Default for Scratch<O> {
    fn default() -> Self {
        Self {
            activations: O::Activations::default(),
            gated: O::Activations::default(),
            x: O::Rows::default(),
            h: O::Rows::default(),
            q: O::Rows::default(),
            k: O::Rows::default(),
            v: O::Rows::default(),
            attended: O::Rows::default(),
            gate: O::Rows::default(),
            up: O::Rows::default(),
            latent: LatentScratch::default(),
            moe: MoeScratch::default(),
            logits: O::Rows::default(),
        }
    }
}

/// One layer over the rows in the scratch.
pub(super) struct LayerStep<'a, 't, O: Ops> {
    pub ops: &'a mut O,
    pub config: &'a ModelConfig,
    pub scratch: &'a mut Scratch<O>,
    pub adapters: &'a Adapters<O>,
    pub step: Step<'a, O>,
    /// Of the layer.
    pub index: usize,
    /// The layer's place in its KV cache.
    pub cache_layer: usize,
    pub stopwatch: &'a mut Stopwatch<'t>,
}

impl<O: Ops> LayerStep<'_, '_, O> {
    /// Norm and projections: queries, keys and values as they are before the rotation.
    fn project(&mut self, layer: &Attention<O>) -> Result<(), ForwardError> {
        let (ops, eps) = (&mut *self.ops, self.config.rms_norm_eps);
        let s = &mut *self.scratch;
        ops.norm(&s.x, &layer.norm, eps, &mut s.activations)?;
        self.stopwatch.mark(Operator::Norm);
        let outs = [&mut s.q, &mut s.k, &mut s.v];
        match &layer.projections {
            Projections::Plain { q, k, v } => {
                let input = AdaptedInput::Normed {
                    rows: &s.x,
                    weight: &layer.norm,
                    eps,
                };
                let (linears, x) = ([q, k, v], &s.activations);
                match (self.adapters).additions(self.step, self.index, Site::Qkv, input) {
                    Some(additions) => ops.project_adapted(x, linears, outs, &additions)?,
                    None => ops.project(x, linears, outs)?,
                }
            }
            Projections::Latent(latent) => {
                latent.project(ops, &s.activations, &mut s.latent, outs)?;
            }
        }
        self.stopwatch.mark(Operator::Qkv);
        if self.config.family.qk_norm == QkNorm::Whole {
            for (rows, norm) in [(&mut s.q, &layer.q_norm), (&mut s.k, &layer.k_norm)] {
                let norm = norm.as_ref().expect("loaded with the layer; this is a bug");
                ops.norm_rows(rows, norm, eps)?;
            }
        }
        Ok(())
    }

    /// Norm, QKV, rotation, KV write and attention; leaves the result in `attended`.
    pub fn attend(
        &mut self,
        layer: &Attention<O>,
        rope: &O::RopeTable,
        cache: &mut O::KvCache,
    ) -> Result<(), ForwardError> {
        let config = self.config;
        self.project(layer)?;
        let s = &mut *self.scratch;
        let is_by_head = self.config.family.qk_norm == QkNorm::Heads;
        let [q_norm, k_norm] =
            [&layer.q_norm, &layer.k_norm].map(|norm| norm.as_ref().filter(|_| is_by_head));
        let rotation = Rotation {
            table: rope,
            kind: config.rope.kind(),
            q_norm,
            k_norm,
            eps: config.rms_norm_eps,
        };
        let qkv = [&mut s.q, &mut s.k, &mut s.v];
        self.ops
            .rotate_and_cache(self.step, &rotation, cache, self.cache_layer, qkv)?;
        self.stopwatch.mark(Operator::RotateAndCache);
        let params = config.attention_params(layer.is_local);
        let attention = LayerAttention {
            layer: self.cache_layer,
            params: &params,
            sinks: layer.sinks.as_ref(),
        };
        let out = &mut s.attended;
        self.ops
            .attention(self.step, &attention, cache, &s.q, out)?;
        if let Some(mla) = &config.mla {
            self.ops.latent_values(mla, &mut s.attended)?;
        }
        self.stopwatch.mark(Operator::Attention);
        Ok(())
    }

    /// Past the last layer's attention only the rows whose logits are wanted matter: the others go.
    pub fn keep_rows(&mut self) -> Result<(), ForwardError> {
        let s = &mut *self.scratch;
        self.ops.keep_rows(self.step, &mut s.x)?;
        self.ops.keep_rows(self.step, &mut s.attended)?;
        Ok(())
    }

    pub fn add_attention(&mut self, layer: &Attention<O>) -> Result<(), ForwardError> {
        let s = &mut *self.scratch;
        self.ops.quantise(&s.attended, &mut s.activations)?;
        self.stopwatch.mark(Operator::Quantise);
        self.add_product(Site::Output, &layer.output, layer.post_norm.as_ref())?;
        self.stopwatch.mark(Operator::AttentionOutput);
        Ok(())
    }

    pub fn add_mlp(&mut self, layer: &Mlp<O>) -> Result<(), ForwardError> {
        let s = &mut *self.scratch;
        let eps = self.config.rms_norm_eps;
        self.ops.norm(&s.x, &layer.norm, eps, &mut s.activations)?;
        self.stopwatch.mark(Operator::Norm);
        let input = AdaptedInput::Normed {
            rows: &s.x,
            weight: &layer.norm,
            eps,
        };
        let (x, out, glu) = (&s.activations, &mut s.gated, self.config.family.glu);
        match (self.adapters).additions(self.step, self.index, Site::GateUp, input) {
            Some(additions) => {
                let linears = [&layer.gate, &layer.up];
                let rows = [&mut s.gate, &mut s.up];
                (self.ops).gate_up_adapted(x, linears, glu, &additions, rows, out)?;
            }
            None => {
                let weights = [&layer.gate.weights, &layer.up.weights];
                self.ops.gate_up(x, weights, glu, out)?;
            }
        }
        self.stopwatch.mark(Operator::GateUp);
        self.add_product(Site::Down, &layer.down, layer.post_norm.as_ref())?;
        self.stopwatch.mark(Operator::Down);
        Ok(())
    }

    /// Adds the last product of a sub-layer, attention's output or the MLP's down projection, to the residual stream.
    fn add_product(
        &mut self,
        site: Site,
        linear: &Linear<O>,
        post_norm: Option<&O::Vector>,
    ) -> Result<(), ForwardError> {
        let s = &mut *self.scratch;
        // What it reads, and the rows that this was made of where an adapter may read them.
        let (input, rows) = match site {
            Site::Down => (&s.gated, &s.gate),
            _ => (&s.activations, &s.attended),
        };
        let residual = Residual {
            post_norm,
            eps: self.config.rms_norm_eps,
            scale: self.config.residual_scale,
        };
        let rows = AdaptedInput::Plain(rows);
        let additions = (self.adapters).additions(self.step, self.index, site, rows);
        let is_plain = post_norm.is_none() && residual.scale == 1.0;
        match (additions, is_plain) {
            (None, true) => return Ok(self.ops.project_add(input, linear, &mut s.x)?),
            (Some(additions), true) => {
                let x = &mut s.x;
                return Ok((self.ops).project_add_adapted(input, linear, x, &additions)?);
            }
            (None, false) => self.ops.project(input, [linear], [&mut s.h])?,
            (Some(additions), false) => {
                let outs = [&mut s.h];
                (self.ops).project_adapted(input, [linear], outs, &additions)?;
            }
        }
        self.ops.add_residual(&mut s.h, &residual, &mut s.x)?;
        Ok(())
    }
}
