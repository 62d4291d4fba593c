//! Log-probabilities of the model's unmodified logits.

use ponder_kernels::logits::{argmax, sum_exp, top};

use super::request::{TokenId, TokenLogprobs};

/// The log of the sum of exponentials, or `None` when the row is not finite.
pub(super) fn log_sum_exp(logits: &[f32]) -> Option<f64> {
    let (_, max) = argmax(logits).filter(|(_, max)| max.is_finite())?;
    let result = f64::from(max) + sum_exp(logits, max).ln();
    result.is_finite().then_some(result)
}

/// The logprob of `token_id` and the `num_top` most likely tokens, ties to the lower id.
pub(super) fn token_logprobs(
    logits: &[f32],
    token_id: TokenId,
    num_top: usize,
) -> Option<TokenLogprobs> {
    let total = log_sum_exp(logits)?;
    let logprob = |id: TokenId| (f64::from(logits[id as usize]) - total) as f32;
    Some(TokenLogprobs {
        token_id,
        logprob: logprob(token_id),
        top: top(logits, num_top)
            .into_iter()
            .map(|id| (id, logprob(id)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_equal_the_definition() {
        let logits = [1.0, 3.0, 3.0, -2.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let result = token_logprobs(&logits, 3, 2).unwrap();
        assert!((f64::from(result.logprob) - ((-2.0_f64).exp() / total).ln()).abs() < 1e-6);
        assert_eq!(
            result.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [1, 2]
        );
        assert!(token_logprobs(&[f32::NAN, 1.0], 1, 0).is_none());
    }
}
