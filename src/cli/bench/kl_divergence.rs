//! How far the next-token distributions of a model lie from those it has with an f16 KV cache.

use ponder_kernels::KvDtype;
use serde_json::{Value, json};

use super::lone_sequence::{LoneSequence, Sizes};
use super::statistics::{percentile, sorted};
use crate::cli::device::cpu_pool;
use crate::cli::engine_args::EngineArgs;
use crate::model::ModelFiles;

/// Rows of a step.
const STEP_ROWS: usize = 256;

/// Two models of the same weights, one of them with an f16 cache.
pub(super) struct Pair {
    base: LoneSequence,
    other: LoneSequence,
    /// KL divergence at each position, in nats.
    divergences: Vec<f64>,
    num_same_likeliest: usize,
}

impl Pair {
    pub(super) fn load(
        args: &EngineArgs,
        files: &ModelFiles,
        context: usize,
    ) -> anyhow::Result<Self> {
        let pool = cpu_pool(args)?;
        let load = |kv_cache_dtype| {
            let sizes = Sizes {
                max_tokens: context,
                max_rows: STEP_ROWS,
                kv_cache_dtype,
            };
            LoneSequence::load(args, files, &pool, sizes)
        };
        Ok(Self {
            base: load(KvDtype::F16)?,
            other: load(args.kv_cache_dtype.dtype())?,
            divergences: Vec::new(),
            num_same_likeliest: 0,
        })
    }

    /// Compares the distributions behind every token from `first` on.
    pub(super) fn compare(&mut self, token_ids: &[u32], first: usize) -> anyhow::Result<()> {
        let vocab_size = self.base.info().vocab_size;
        for (step, token_ids) in token_ids.chunks(STEP_ROWS).enumerate() {
            let (start, rows) = (step * STEP_ROWS, token_ids.len());
            let wanted = first.saturating_sub(start).min(rows)..rows;
            let base = self.base.forward(token_ids, start, wanted.clone())?;
            let other = self.other.forward(token_ids, start, wanted)?;
            let pairs = base
                .chunks_exact(vocab_size)
                .zip(other.chunks_exact(vocab_size));
            for (base, other) in pairs {
                let (divergence, is_same) = divergence(base, other);
                self.divergences.push(divergence);
                self.num_same_likeliest += usize::from(is_same);
            }
        }
        Ok(())
    }

    pub(super) fn to_json(&self) -> Value {
        let count = self.divergences.len() as f64;
        let all = sorted(self.divergences.clone());
        json!({
            "positions": self.divergences.len(),
            "mean": self.divergences.iter().sum::<f64>() / count,
            "median": percentile(&all, 0.5),
            "p99": percentile(&all, 0.99),
            "largest": all.last(),
            "same_likeliest": self.num_same_likeliest as f64 / count,
        })
    }
}

/// KL divergence of `other` from `base`, in nats, and whether both have the same likeliest token.
fn divergence(base: &[f32], other: &[f32]) -> (f64, bool) {
    let (of_base, of_other) = (log_sum_exp(base), log_sum_exp(other));
    let terms = base.iter().zip(other).map(|(base, other)| {
        let logprob = f64::from(*base) - of_base;
        logprob.exp() * (logprob - (f64::from(*other) - of_other))
    });
    let likeliest = |logits: &[f32]| {
        let tokens = logits.iter().enumerate();
        tokens.max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id)
    };
    (terms.sum(), likeliest(base) == likeliest(other))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = (logits.iter())
        .map(|logit| (f64::from(*logit) - largest).exp())
        .sum();
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_equal_their_definition() {
        // Probabilities 1/4, 3/4 and 1/2, 1/2, whatever is added to all logits.
        let base = [7.0, 7.0 + 3.0_f32.ln()];
        let expected = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        let (actual, _) = divergence(&base, &[-2.0, -2.0]);
        assert!(
            (actual - expected).abs() < 1e-6,
            "{actual} is not {expected}"
        );
        assert_eq!(divergence(&base, &base), (0.0, true));
        assert!(!divergence(&base, &[1.0, 0.0]).1);
    }
}
