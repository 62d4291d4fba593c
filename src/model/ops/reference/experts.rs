//! Routing and experts by their definitions.

use std::sync::Arc;

use ponder_kernels::{Gating, Glu, GroupScore, Scoring};

use super::super::{ExpertOps, ExpertWeights, OpsError, Step};
use super::{ReferenceOps, Rows, act, add};
use crate::model::moe::{ExpertLoad, LayerRouting};

/// Of each row.
#[derive(Default)]
pub(in crate::model) struct Routing {
    pub(super) experts: Vec<Vec<u32>>,
    pub(super) gates: Vec<Vec<f32>>,
}

pub(super) fn gated(glu: Glu, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let pairs = gate.iter().zip(up);
    pairs.map(|(gate, up)| act(glu, *gate, *up)).collect()
}

impl Routing {
    pub(super) fn new(gating: &Gating, logits: &Rows, bias: Option<&[f32]>) -> Self {
        let mut routing = Self::default();
        for logits in logits {
            let scores = scores(gating.scoring, logits);
            let biased = |expert: usize| scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
            let allowed = allowed(gating, (0..logits.len()).map(biased).collect());
            let mut experts: Vec<usize> = (0..logits.len()).filter(|e| allowed[*e]).collect();
            // Stable: of equal scores the lower expert is first.
            experts.sort_by(|a, b| biased(*b).total_cmp(&biased(*a)));
            experts.truncate(gating.num_experts_per_tok);
            let sum: f32 = experts.iter().map(|expert| scores[*expert]).sum();
            let divisor = if gating.normalise { sum } else { 1.0 };
            let gate = |expert: &usize| gating.scale * scores[*expert] / divisor;
            routing.gates.push(experts.iter().map(gate).collect());
            let experts = experts.iter().map(|expert| *expert as u32);
            routing.experts.push(experts.collect());
        }
        routing
    }

    pub(super) fn add(
        &self,
        x: &Rows,
        weights: &ExpertWeights<'_, ReferenceOps>,
        scale: f32,
        out: &mut Rows,
    ) {
        for (row, x) in x.iter().enumerate() {
            for (expert, gate) in self.experts[row].iter().zip(&self.gates[row]) {
                let expert = *expert as usize;
                let up = weights.up.product(expert, x);
                let inner = gated(weights.glu, &weights.gate.product(expert, x), &up);
                let result = weights.down.product(expert, &inner);
                add(&mut out[row], scale * gate, &result);
            }
        }
    }
}

fn scores(scoring: Scoring, logits: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
            logits.iter().map(|x| (x - max).exp() / sum).collect()
        }
    }
}

/// Whether an expert may be chosen: it is in one of the best groups.
fn allowed(gating: &Gating, biased: Vec<f32>) -> Vec<bool> {
    let Some(groups) = gating.groups else {
        return vec![true; biased.len()];
    };
    let len = biased.len() / groups.count;
    let worth = |group: usize| {
        let mut scores = biased[group * len..(group + 1) * len].to_vec();
        scores.sort_by(|a, b| b.total_cmp(a));
        match groups.score {
            GroupScore::Best => scores[0],
            GroupScore::BestTwo => scores[0] + scores[1],
        }
    };
    let mut best: Vec<usize> = (0..groups.count).collect();
    best.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
    best.truncate(groups.num_chosen);
    (0..biased.len())
        .map(|expert| best.contains(&(expert / len)))
        .collect()
}

impl ExpertOps for ReferenceOps {
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
        load: &Arc<ExpertLoad>,
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
}
