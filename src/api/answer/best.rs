//! `best_of`: more samples than are returned, of which the likeliest by token are.

use super::deliver::{Produce, Sink};
use super::event::{AnswerEvent, Delta};
use super::whole::{Whole, WholeChoice};
use crate::api::error::ApiError;

/// An answer of which only the best choices are sent.
pub(super) struct BestOf<P> {
    /// Answers with log-probabilities.
    pub samples: P,
    /// Choices that are sampled of each prompt, and those that are sent.
    pub best_of: usize,
    pub n: usize,
    /// Whether the client asked for log-probabilities.
    pub shows_logprobs: bool,
}

/// The mean log-probability of a choice's tokens; that of one without tokens is the worst.
fn mean_logprob(choice: &WholeChoice) -> f64 {
    let tokens = choice.logprobs.as_deref().unwrap_or_default();
    let sum: f64 = tokens.iter().map(|token| f64::from(token.logprob)).sum();
    match tokens.len() {
        0 => f64::NEG_INFINITY,
        len => sum / len as f64,
    }
}

/// The best `n` of each prompt's `best_of` choices, the best first; of equals the earlier.
fn best(choices: Vec<WholeChoice>, best_of: usize, n: usize) -> Vec<WholeChoice> {
    let mut best = Vec::new();
    let mut rest = choices.into_iter();
    loop {
        let mut of_prompt: Vec<WholeChoice> = rest.by_ref().take(best_of).collect();
        if of_prompt.is_empty() {
            return best;
        }
        of_prompt.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
        best.extend(of_prompt.into_iter().take(n));
    }
}

impl<P: Produce> Produce for BestOf<P> {
    async fn run(self, sink: &mut Sink<'_>) -> Result<(), ApiError> {
        let mut whole = Whole::default();
        self.samples.run(&mut Sink::Whole(&mut whole)).await?;
        for report in whole.prompts {
            sink.send(AnswerEvent::Prompt(report)).await;
        }
        let choices = best(whole.choices, self.best_of, self.n);
        for (index, choice) in choices.into_iter().enumerate() {
            let Some(end) = choice.end else { continue };
            let last = Delta {
                text: choice.text,
                logprobs: choice.logprobs.filter(|_| self.shows_logprobs),
                token_ids: choice.token_ids,
                tool_outputs: choice.tool_outputs,
                ..Delta::default()
            };
            let choice = index;
            sink.send(AnswerEvent::End { choice, last, end }).await;
        }
        sink.send(AnswerEvent::Done(Box::new(whole.summary))).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::answer::event::{Token, TokenLogprob};

    fn choice(text: &str, logprobs: &[f32]) -> WholeChoice {
        let entry = |logprob: &f32| TokenLogprob {
            token: Token {
                id: 0,
                bytes: Vec::new(),
                is_special: false,
            },
            logprob: *logprob,
            top: Vec::new(),
        };
        WholeChoice {
            text: text.to_owned(),
            logprobs: Some(logprobs.iter().map(entry).collect()),
            ..WholeChoice::default()
        }
    }

    #[test]
    fn the_likeliest_by_token_come_first() {
        let choices = vec![
            choice("a", &[-1.0]),
            choice("b", &[-0.5, -0.5, -0.5]),
            choice("c", &[]),
            // Of another prompt.
            choice("d", &[-3.0]),
            choice("e", &[-2.0, -3.0]),
            choice("f", &[-3.0]),
        ];
        let best = best(choices, 3, 2);
        let texts: Vec<&str> = best.iter().map(|choice| choice.text.as_str()).collect();
        assert_eq!(texts, ["b", "a", "e", "d"]);
    }
}
