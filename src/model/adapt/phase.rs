//! A phase: some gradient steps on one sequence's window, one call each.

use std::sync::Arc;

use super::config::{
    AdaptationConfig, AdaptationMethod, KvPolicy, LayerScore, MAX_DELTA, RouterGradient,
    RouterLayers, ScoreOrder,
};
use super::optimiser::Adam;
use super::window::{Recorded, Tape};
use crate::model::causal_lm::{Adaptable, ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::moe::LayerRouting;
use crate::model::steering::Steering;

/// PyTorch's default.
const ROUTER_EPSILON: f64 = 1e-8;
/// Those of SLOT's code.
const SLOT_EPSILON: f64 = 1e-5;
const SLOT_WEIGHT_DECAY: f64 = 1e-8;

/// The state between a phase's steps.
#[derive(Debug, Clone)]
pub struct AdaptationPhase {
    config: Arc<AdaptationConfig>,
    /// What the sequence was computed under before.
    start: Steering,
    pub(super) current: Steering,
    /// The lowest loss yet, and what gave it.
    best: Option<(f32, Steering)>,
    losses: Vec<f32>,
    /// Adapted layers with their learning rates, lowest first; SLOT has none.
    layers: Option<Vec<(usize, f32)>>,
    optimisers: Vec<Adam>,
    tape: Tape,
    routing: Vec<LayerRouting>,
    report: AdaptationReport,
    is_done: bool,
}

/// What a phase did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdaptationReport {
    /// Tokens that were predicted.
    pub num_tokens: usize,
    /// Mean cross-entropy before each step, and after the last.
    pub losses: Vec<f32>,
    /// Layers whose routers were adapted.
    pub layers: Vec<usize>,
    /// Euclidean length of all that was added.
    pub delta_norm: f32,
    /// Of the experts that the window's tokens chose in adapted layers and above, the share that was not chosen before.
    pub moved: f32,
    /// Mean entropy of the router's probabilities, before and after, in nats.
    pub entropy: [f32; 2],
}

impl AdaptationPhase {
    /// Starts from what the sequence is steered by.
    pub fn new(config: Arc<AdaptationConfig>, start: Steering) -> Self {
        let current = match config.reset_each_phase {
            true => Steering::default(),
            false => start.clone(),
        };
        Self {
            config,
            start,
            current,
            best: None,
            losses: Vec::new(),
            layers: None,
            optimisers: Vec::new(),
            tape: Tape::default(),
            routing: Vec::new(),
            report: AdaptationReport::default(),
            is_done: false,
        }
    }

    /// Whether no more steps are to come.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// What was found, and how.
    pub fn finish(self) -> (Steering, AdaptationReport) {
        (self.current, self.report)
    }

    /// Remembers a loss and its steering; true when the phase has had its last step or failed.
    pub(super) fn judge(&mut self, loss: f32) -> bool {
        self.losses.push(loss);
        if !loss.is_finite() {
            return true;
        }
        if self.best.as_ref().is_none_or(|(best, _)| loss < *best) {
            self.best = Some((loss, self.current.clone()));
        }
        self.losses.len() > self.config.steps
    }

    /// Goes back to the best steering; true when that is another than the last one judged.
    pub(super) fn settle(&mut self) -> bool {
        self.is_done = true;
        let start = self.start.clone();
        let best = self.best.take().map_or(start, |(_, steering)| steering);
        let is_other = best != self.current;
        self.current = best;
        self.report.losses.clone_from(&self.losses);
        let layers = self.layers.iter().flatten();
        self.report.layers = layers.map(|(layer, _)| *layer).collect();
        let router = self.current.router.iter().flatten().flatten();
        let all = router.chain(self.current.hidden.iter().flatten());
        self.report.delta_norm = all.map(|value| value * value).sum::<f32>().sqrt();
        self.tape = Tape::default();
        is_other
    }
}

/// `batch`, of one sequence, steered by `steering` alone.
fn steered<'a>(batch: &ForwardBatch<'a>, steering: &'a [Option<&'a Steering>]) -> ForwardBatch<'a> {
    ForwardBatch { steering, ..*batch }
}

impl Adaptable for Decoder {
    fn adapt(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        phase.report.num_tokens = targets.len();
        match phase.config.method {
            AdaptationMethod::Slot => self.step_slot(batch, targets, phase),
            AdaptationMethod::Router => self.step_router(batch, targets, phase),
        }
    }
}

impl Decoder {
    fn step_slot(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        let hidden_size = self.config.hidden_size;
        if phase.losses.is_empty() {
            let steering = [Some(&phase.current)];
            let nothing = Recorded::nothing(self.layers.len());
            self.run_window(&steered(batch, &steering), &mut phase.tape, None, nothing)?;
            phase.optimisers = vec![Adam::new(hidden_size, SLOT_EPSILON, SLOT_WEIGHT_DECAY)];
        } else {
            self.put_rows(&phase.tape.last);
        }
        let offset = phase.current.hidden.clone();
        let wants_gradient = phase.losses.len() < phase.config.steps;
        let loss = self.loss(targets, offset.as_deref(), wants_gradient);
        if phase.judge(loss.mean) {
            phase.settle();
            return Ok(());
        }
        let mut gradient = vec![0.0; hidden_size];
        for row in loss.gradient.chunks_exact(hidden_size) {
            for (sum, value) in gradient.iter_mut().zip(row) {
                *sum += value;
            }
        }
        let mut hidden = offset.unwrap_or_else(|| vec![0.0; hidden_size]);
        let rate = f64::from(phase.config.learning_rate);
        phase.optimisers[0].update(&mut hidden, &gradient, rate);
        phase.current.hidden = Some(hidden);
        Ok(())
    }

    fn step_router(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        let candidates = self.candidate_layers(&phase.config.layers);
        let Some(lowest_candidate) = candidates.first().copied() else {
            let message = "the model has no experts to route to".to_owned();
            return Err(ForwardError::Internal(message));
        };
        let from = phase.layers.as_ref().map(|layers| layers[0].0);
        let is_exact = phase.config.gradient == RouterGradient::Exact;
        let recorded = Recorded {
            lowest: from.unwrap_or(lowest_candidate),
            inputs: is_exact,
            units: is_exact && phase.losses.len() < phase.config.steps,
        };
        let steering = [Some(&phase.current)];
        let routing =
            self.run_window(&steered(batch, &steering), &mut phase.tape, from, recorded)?;
        if phase.layers.is_none() {
            phase.choose_layers(&candidates, &routing, self.num_chosen_experts());
            phase.routing = routing;
        } else {
            phase.report.compare(&phase.routing, &routing);
        }
        let wants_gradient = phase.losses.len() < phase.config.steps;
        let mut loss = self.loss(targets, phase.current.hidden.as_deref(), wants_gradient);
        let is_last = phase.judge(loss.mean);
        if !is_last {
            self.through_final_norm(&phase.tape.last, &mut loss.gradient);
            let chosen: Vec<usize> = phase.layers.iter().flatten().map(|(l, _)| *l).collect();
            let steering = [Some(&phase.current)];
            let steered = steered(batch, &steering);
            let (tape, by_rows) = (&mut phase.tape, loss.gradient);
            let gradients = self.router_gradients(&steered, tape, &chosen, is_exact, by_rows)?;
            let is_finite = gradients.iter().flatten().all(|value| value.is_finite());
            if is_finite {
                phase.update(&gradients);
                return Ok(());
            }
        }
        self.settle(batch, phase)
    }

    /// Ends a phase: the window's keys and values are those of the last steering that was tried, and become what they should be.
    fn settle(
        &mut self,
        batch: &ForwardBatch<'_>,
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        let is_other = phase.settle();
        let is_stale = phase.config.kv == KvPolicy::Stale;
        if !is_other && !is_stale {
            return Ok(());
        }
        let kept = match is_stale {
            true => &phase.start,
            false => &phase.current,
        };
        let steering = [Some(kept)];
        let nothing = Recorded::nothing(self.layers.len());
        let mut tape = Tape::default();
        let routing = self.run_window(&steered(batch, &steering), &mut tape, None, nothing)?;
        if !is_stale {
            phase.report.compare(&phase.routing, &routing);
        }
        Ok(())
    }

    /// The mixture-of-experts layers that may be adapted, lowest first.
    fn candidate_layers(&self, layers: &RouterLayers) -> Vec<usize> {
        let all = (0..self.layers.len()).filter(|index| self.layers[*index].moe().is_some());
        let mut all: Vec<usize> = all.collect();
        if layers.depth > 0 {
            all.drain(..all.len().saturating_sub(layers.depth));
        }
        all
    }

    fn num_chosen_experts(&self) -> usize {
        let moe = self.config.moe.as_ref();
        moe.map_or(0, |moe| moe.gating.num_experts_per_tok)
    }
}

impl AdaptationPhase {
    /// Ranks the candidates by what their routers did, and keeps the best share.
    fn choose_layers(&mut self, candidates: &[usize], routing: &[LayerRouting], chosen: usize) {
        let layers = &self.config.layers;
        let is_candidate = |routing: &&LayerRouting| candidates.contains(&routing.layer);
        let mut ranked: Vec<(usize, f32)> = routing
            .iter()
            .filter(is_candidate)
            .map(|routing| (routing.layer, routing.score(layers.score, chosen)))
            .collect();
        ranked.sort_by(|a, b| match layers.order {
            ScoreOrder::High => b.1.total_cmp(&a.1),
            ScoreOrder::Low => a.1.total_cmp(&b.1),
        });
        let count = (candidates.len() as f32 * layers.share).ceil() as usize;
        ranked.truncate(count.clamp(1, candidates.len()));
        let largest = ranked.iter().map(|(_, score)| *score).fold(0.0, f32::max);
        for (_, rate) in &mut ranked {
            let weight = if layers.weighted && largest > 0.0 {
                *rate / largest
            } else {
                1.0
            };
            *rate = weight.max(0.0) * self.config.learning_rate;
        }
        ranked.sort_by_key(|(layer, _)| *layer);
        let num_layers = ranked.last().map_or(0, |(layer, _)| layer + 1);
        let old = self.current.router.len();
        self.current.router.resize(num_layers.max(old), None);
        for (layer, _) in &ranked {
            let num_experts = routing
                .iter()
                .find(|routing| routing.layer == *layer)
                .map_or(0, |routing| routing.num_experts(chosen));
            self.current.router[*layer].get_or_insert_with(|| vec![0.0; num_experts]);
            self.optimisers
                .push(Adam::new(num_experts, ROUTER_EPSILON, 0.0));
        }
        self.layers = Some(ranked);
    }

    /// Moves every adapted layer's vector against its gradient.
    fn update(&mut self, gradients: &[Vec<f32>]) {
        let layers = self.layers.iter().flatten();
        for (((layer, rate), optimiser), gradient) in
            layers.zip(&mut self.optimisers).zip(gradients)
        {
            let Some(Some(delta)) = self.current.router.get_mut(*layer) else {
                continue;
            };
            optimiser.update(delta, gradient, f64::from(*rate));
            for value in delta {
                *value = value.clamp(-MAX_DELTA, MAX_DELTA);
            }
        }
    }
}

impl LayerRouting {
    fn num_experts(&self, chosen: usize) -> usize {
        let num_rows = self.experts.len() / chosen.max(1);
        self.router_logits.len() / num_rows.max(1)
    }

    /// The mean over rows of what ranks layers.
    fn score(&self, score: LayerScore, chosen: usize) -> f32 {
        let rows = self.log_probabilities(chosen);
        let scores = rows.map(|(mut logs, experts)| match score {
            LayerScore::Confidence => {
                let sum: f32 = experts.iter().map(|expert| logs[*expert as usize]).sum();
                -sum / chosen as f32
            }
            LayerScore::NegativeEntropy => -entropy(&logs),
            LayerScore::Margin => {
                logs.sort_by(|a, b| b.total_cmp(a));
                let next = logs.get(chosen).map_or(0.0, |log| log.exp());
                logs[chosen - 1].exp() - next
            }
        });
        mean(scores)
    }

    fn log_probabilities(&self, chosen: usize) -> impl Iterator<Item = (Vec<f32>, &[u32])> {
        let num_experts = self.num_experts(chosen);
        let rows = self.router_logits.chunks_exact(num_experts.max(1));
        rows.zip(self.experts.chunks_exact(chosen.max(1)))
            .map(|(logits, experts)| {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
                let logs = logits.iter().map(|logit| logit - max - sum.ln());
                (logs.collect(), experts)
            })
    }

    fn mean_entropy(&self, chosen: usize) -> f32 {
        mean(
            self.log_probabilities(chosen)
                .map(|(logs, _)| entropy(&logs)),
        )
    }
}

fn entropy(log_probabilities: &[f32]) -> f32 {
    -log_probabilities
        .iter()
        .map(|log| log * log.exp())
        .sum::<f32>()
}

fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let (mut sum, mut count) = (0.0, 0_u32);
    for value in values {
        sum += value;
        count += 1;
    }
    sum / count.max(1) as f32
}

impl AdaptationReport {
    /// How far the routing `after` is from that `before`, over the layers of `after`.
    fn compare(&mut self, before: &[LayerRouting], after: &[LayerRouting]) {
        let (mut moved, mut all) = (0, 0);
        let (mut entropies, mut num_layers) = ([0.0; 2], 0.0);
        for new in after {
            let Some(old) = before.iter().find(|old| old.layer == new.layer) else {
                continue;
            };
            let num_rows = new.router_logits.len() / self.width(old).max(1);
            let chosen = new.experts.len() / num_rows.max(1);
            let rows = old.experts.chunks_exact(chosen.max(1));
            for (old, new) in rows.zip(new.experts.chunks_exact(chosen.max(1))) {
                moved += new.iter().filter(|expert| !old.contains(expert)).count();
                all += new.len();
            }
            entropies[0] += old.mean_entropy(chosen);
            entropies[1] += new.mean_entropy(chosen);
            num_layers += 1.0;
        }
        self.moved = moved as f32 / all.max(1) as f32;
        self.entropy = entropies.map(|sum| sum / f32::max(num_layers, 1.0));
    }

    /// Experts of a layer: rows are those that were predicted.
    fn width(&self, routing: &LayerRouting) -> usize {
        routing.router_logits.len() / self.num_tokens.max(1)
    }
}
