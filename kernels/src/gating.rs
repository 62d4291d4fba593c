//! Which experts a row goes to and with what weight: the conventions of all mixture-of-experts
//! families.
//!
//! | family | scoring | normalise | scale | groups |
//! |---|---|---|---|---|
//! | OLMoE, Qwen2-MoE | softmax | no | 1 | – |
//! | Qwen3-MoE, Mixtral | softmax | yes | 1 | – |
//! | Granite-MoE, gpt-oss: softmax over the chosen logits, which is the same as normalising | softmax | yes | 1 | – |
//! | DeepSeek-V2-Lite | softmax | no | 1 | – |
//! | DeepSeek-V2 | softmax | no | 16 | 3 of 8 by their best |
//! | DeepSeek-V3: chosen by score plus correction bias, weighted by score | sigmoid | yes | 2.5 | 4 of 8 by their best two |

use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// How a logit becomes a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    Sigmoid,
}

/// What makes a group of experts worth choosing from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert.
    Best,
    /// The sum of its best two.
    BestTwo,
}

/// Experts are chosen from the best groups alone (DeepSeek-V2, section 2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub num_chosen: usize,
    pub score: GroupScore,
}

/// A routing convention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gating {
    pub num_experts_per_tok: usize,
    pub scoring: Scoring,
    /// The chosen experts' scores are divided by their sum (`norm_topk_prob`).
    pub normalise: bool,
    /// Multiplies the weights (`routed_scaling_factor`).
    pub scale: f32,
    pub groups: Option<Groups>,
}

/// Where the rows of a step go. Reused between calls: buffers only grow.
#[derive(Debug, Default)]
pub struct Routes {
    num_experts: usize,
    num_experts_per_tok: usize,
    /// `[rows, experts]`
    scores: Vec<f32>,
    /// `[rows, chosen]`, highest score first.
    experts: Vec<u32>,
    /// `[rows, chosen]`
    gates: Vec<f32>,
    /// `[experts + 1]`: where an expert's rows begin among those sorted by expert.
    offsets: Vec<u32>,
    /// `[rows * chosen]`: the rows sorted by expert.
    rows: Vec<u32>,
    /// `[rows * chosen]`: where a row's chosen experts' results lie among those sorted by expert.
    slots: Vec<u32>,
    /// The experts that have rows, ascending.
    busy: Vec<u32>,
}

impl Routes {
    /// Routes rows by their router logits (`[rows, num_experts]`). `bias` (`[num_experts]`) counts in the choice but not in the
    /// weights. A row's route depends on its own logits alone; of equal scores the lower expert wins.
    ///
    /// # Panics
    /// When lengths do not fit, or more experts are to be chosen than there are.
    pub fn plan(
        &mut self,
        pool: &ThreadPool,
        gating: &Gating,
        logits: &[f32],
        num_experts: usize,
        bias: Option<&[f32]>,
    ) {
        let chosen = gating.num_experts_per_tok;
        assert!((1..=num_experts).contains(&chosen), "choose some experts");
        assert!(logits.len().is_multiple_of(num_experts), "whole rows");
        let num_rows = logits.len() / num_experts;
        self.num_experts = num_experts;
        self.num_experts_per_tok = chosen;
        self.scores.resize(num_rows * num_experts, 0.0);
        self.experts.resize(num_rows * chosen, 0);
        self.gates.resize(num_rows * chosen, 0.0);
        let scores = SharedSlice::new(&mut self.scores);
        let experts = SharedSlice::new(&mut self.experts);
        let gates = SharedSlice::new(&mut self.gates);
        // A score, and a look for each choice.
        for_rows(pool, num_rows, num_experts * (4 + chosen), |row| {
            // SAFETY: each row is taken once.
            let (scores, experts, gates) = unsafe {
                (
                    scores.slice_mut(row * num_experts, num_experts),
                    experts.slice_mut(row * chosen, chosen),
                    gates.slice_mut(row * chosen, chosen),
                )
            };
            let logits = &logits[row * num_experts..][..num_experts];
            gating.route_row(logits, bias, scores, experts, gates);
        });
        self.sort();
    }

    /// Groups the rows by expert, in the order of rows.
    fn sort(&mut self) {
        self.offsets.clear();
        self.offsets.resize(self.num_experts + 1, 0);
        for expert in &self.experts {
            self.offsets[*expert as usize + 1] += 1;
        }
        for expert in 0..self.num_experts {
            self.offsets[expert + 1] += self.offsets[expert];
        }
        self.rows.resize(self.experts.len(), 0);
        self.slots.resize(self.experts.len(), 0);
        for (index, expert) in self.experts.iter().enumerate() {
            // An offset moves to its expert's end while the expert's rows are put down …
            let slot = &mut self.offsets[*expert as usize];
            self.slots[index] = *slot;
            self.rows[*slot as usize] = (index / self.num_experts_per_tok) as u32;
            *slot += 1;
        }
        // … which is where the next one's begin.
        self.offsets.rotate_right(1);
        self.offsets[0] = 0;
        let offsets = self.offsets.windows(2).enumerate();
        let busy = offsets.filter(|(_, ends)| ends[0] < ends[1]);
        self.busy.clear();
        self.busy.extend(busy.map(|(expert, _)| expert as u32));
    }

    pub fn num_rows(&self) -> usize {
        self.experts.len() / self.num_experts_per_tok.max(1)
    }

    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    pub fn num_experts_per_tok(&self) -> usize {
        self.num_experts_per_tok
    }

    /// Every expert's score, `[rows, experts]`.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The chosen experts, `[rows, num_experts_per_tok]`, highest score first.
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }

    /// The weights of the chosen experts' results, shaped as [`Self::experts`].
    pub fn gates(&self) -> &[f32] {
        &self.gates
    }

    /// The rows sorted by expert, each as often as it chose experts.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Where the results of [`Self::experts`] lie among those sorted by expert.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The experts that have rows, ascending.
    pub fn busy_experts(&self) -> &[u32] {
        &self.busy
    }

    /// Where the rows of `expert` lie among those sorted by expert.
    pub fn rows_of(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// `out[row] += scale * sum of gate * result` over the row's experts, in the order of their scores. `results` is
    /// `[rows * chosen, width]`, sorted by expert; `out` is `[rows, width]`.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn combine(&self, pool: &ThreadPool, results: &[f32], scale: f32, out: &mut [f32]) {
        let (num_rows, chosen) = (self.num_rows(), self.num_experts_per_tok);
        if num_rows == 0 {
            return;
        }
        let width = out.len() / num_rows;
        assert_eq!(results.len(), num_rows * chosen * width, "a result a slot");
        let out = SharedSlice::new(out);
        for_rows(pool, num_rows, chosen * width, |row| {
            // SAFETY: each row is taken once.
            let out = unsafe { out.slice_mut(row * width, width) };
            for index in row * chosen..(row + 1) * chosen {
                let gate = scale * self.gates[index];
                let result = &results[self.slots[index] as usize * width..][..width];
                for (out, value) in out.iter_mut().zip(result) {
                    *out += gate * value;
                }
            }
        });
    }
}

impl Gating {
    fn route_row(
        &self,
        logits: &[f32],
        bias: Option<&[f32]>,
        scores: &mut [f32],
        experts: &mut [u32],
        gates: &mut [f32],
    ) {
        self.score(logits, scores);
        let biased = |expert: usize| scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
        let is_allowed = self.allowed_groups(logits.len(), biased);
        let group_len = self.groups.map_or(1, |groups| logits.len() / groups.count);
        for rank in 0..experts.len() {
            let mut best: Option<(usize, f32)> = None;
            for expert in 0..logits.len() {
                let is_free = !experts[..rank].contains(&(expert as u32))
                    && is_allowed >> (expert / group_len).min(63) & 1 == 1;
                let score = biased(expert);
                if is_free && best.is_none_or(|(_, highest)| score > highest) {
                    best = Some((expert, score));
                }
            }
            // Not-a-number logits choose anything: their row is an error later.
            let expert = best.map_or(rank, |(expert, _)| expert);
            experts[rank] = expert as u32;
            gates[rank] = scores[expert];
        }
        let sum: f32 = gates.iter().sum();
        let factor = if self.normalise {
            self.scale / sum
        } else {
            self.scale
        };
        for gate in gates {
            *gate *= factor;
        }
    }

    fn score(&self, logits: &[f32], scores: &mut [f32]) {
        match self.scoring {
            Scoring::Softmax => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for (score, logit) in scores.iter_mut().zip(logits) {
                    *score = (logit - max).exp();
                    sum += *score;
                }
                for score in scores {
                    *score /= sum;
                }
            }
            Scoring::Sigmoid => {
                for (score, logit) in scores.iter_mut().zip(logits) {
                    *score = 1.0 / (1.0 + (-logit).exp());
                }
            }
        }
    }

    /// A bit for every group that experts may be chosen from; all bits without groups.
    fn allowed_groups(&self, num_experts: usize, score: impl Fn(usize) -> f32) -> u64 {
        let Some(groups) = self.groups else {
            return u64::MAX;
        };
        let len = num_experts / groups.count;
        let group_score = |group: usize| {
            let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for score in (group * len..(group + 1) * len).map(&score) {
                if score > best {
                    (best, second) = (score, best);
                } else if score > second {
                    second = score;
                }
            }
            match groups.score {
                GroupScore::Best => best,
                GroupScore::BestTwo => best + second,
            }
        };
        let mut allowed = 0_u64;
        for _ in 0..groups.num_chosen {
            let mut best: Option<(usize, f32)> = None;
            for group in (0..groups.count).filter(|group| allowed >> group & 1 == 0) {
                let score = group_score(group);
                if best.is_none_or(|(_, highest)| score > highest) {
                    best = Some((group, score));
                }
            }
            allowed |= best.map_or(0, |(group, _)| 1 << group);
        }
        allowed
    }
}
