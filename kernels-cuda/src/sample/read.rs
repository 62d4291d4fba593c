//! What came of a step's slots. Log-probabilities are finished here: the device reports logits, the
//! largest of a row and the sum of its exponentials, so that the last bits are the host's.

use super::{MAX_TOP, SampleBuffers};
use crate::{CudaError, Gpu};

/// As `Header` in kernels/sample.cuh.
pub(super) const HEADER_WORDS: usize = 8;
/// A token and its logit.
pub(super) const TOP_WORDS: usize = 2;

const STATUS_TOKEN: u32 = 0;
const STATUS_NOT_FINITE: u32 = 1;
const STATUS_NOTHING_ALLOWED: u32 = 2;

/// What is read for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Host,
    Sample {
        num_logprobs: Option<usize>,
        num_alternatives: Option<usize>,
    },
    Score {
        token_id: u32,
        num_top: usize,
    },
}

/// What came of a slot.
#[derive(Debug, Clone, PartialEq)]
pub enum SampledRow {
    Token {
        token_id: u32,
        /// `None` too where the unmodified logits are not finite.
        logprobs: Option<Logprobs>,
        alternatives: Option<Alternatives>,
    },
    /// Of a [`ScoreRow`](super::ScoreRow); `None` where the logits are not finite.
    Score(Option<Logprobs>),
    /// The logits are not finite numbers.
    NotFinite,
    /// Masks leave no token.
    NothingAllowed,
    /// The device cannot decide this one: the host's sampler must, from the row's logits.
    Host,
}

/// Log-probabilities under unmodified logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    pub token_id: u32,
    pub logprob: f32,
    /// Likeliest first, ties to the lower id.
    pub top: Vec<(u32, f32)>,
}

/// How sure the model is of a token, and what else it might have been.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternatives {
    /// Under unmodified logits.
    pub probability: f32,
    /// `(token_id, probability)`, likeliest first, without the token itself.
    pub others: Vec<(u32, f32)>,
}

/// A slot's part of what came back.
struct Answer<'a> {
    header: &'a [u32],
    tops: &'a [u32],
}

impl SampleBuffers {
    /// Waits for the launches, and reads what came of each slot of [`Self::prepare`], in one copy.
    ///
    /// # Errors
    /// When a launch has failed.
    pub fn read(&mut self, gpu: &Gpu) -> Result<Vec<SampledRow>, CudaError> {
        let has_tops = |wanted: &Wanted| match wanted {
            Wanted::Host => false,
            Wanted::Sample {
                num_logprobs,
                num_alternatives,
            } => num_logprobs.is_some_and(|count| count > 0) || num_alternatives.is_some(),
            Wanted::Score { num_top, .. } => *num_top > 0,
        };
        let headers = self.num_slots * HEADER_WORDS;
        let tops_words = MAX_TOP * TOP_WORDS;
        let last_top = self.wanted.iter().rposition(has_tops);
        let num_tops = last_top.map_or(0, |slot| slot + 1);
        self.answers.resize(headers + num_tops * tops_words, 0);
        if self.wanted.is_empty() {
            return Ok(Vec::new());
        }
        gpu.read(&self.out, 0, &mut self.answers)?;
        let (headers, tops) = self.answers.split_at(headers);
        let answers = self.wanted.iter().enumerate().map(|(slot, wanted)| {
            let tops = tops.get(slot * tops_words..).unwrap_or_default();
            let answer = Answer {
                header: &headers[slot * HEADER_WORDS..][..HEADER_WORDS],
                tops: &tops[..tops.len().min(tops_words)],
            };
            answer.row(*wanted, self.vocab)
        });
        Ok(answers.collect())
    }
}

impl Answer<'_> {
    fn row(&self, wanted: Wanted, vocab: usize) -> SampledRow {
        let (num_logprobs, num_alternatives) = match wanted {
            Wanted::Host => return SampledRow::Host,
            Wanted::Score { token_id, num_top } => {
                let logit = f32::from_bits(self.header[3]);
                return match self.is_raw_known() {
                    true => SampledRow::Score(self.logprobs(token_id, logit, num_top.min(vocab))),
                    false => SampledRow::Host,
                };
            }
            Wanted::Sample {
                num_logprobs,
                num_alternatives,
            } => (num_logprobs, num_alternatives),
        };
        let token_id = self.header[0];
        match self.header[1] {
            STATUS_TOKEN => {}
            STATUS_NOT_FINITE => return SampledRow::NotFinite,
            STATUS_NOTHING_ALLOWED => return SampledRow::NothingAllowed,
            _ => return SampledRow::Host,
        }
        let is_raw = num_logprobs.is_some() || num_alternatives.is_some();
        // What is likely among logits that are no numbers is for the host to say.
        let is_number = self.header[7] == STATUS_TOKEN && !self.raw_sum().is_nan();
        if is_raw && !self.is_raw_known() || num_alternatives.is_some() && !is_number {
            return SampledRow::Host;
        }
        let logit = f32::from_bits(self.header[2]);
        let logprobs = num_logprobs.and_then(|k| self.logprobs(token_id, logit, k.min(vocab)));
        let alternatives = num_alternatives.map(|count| Alternatives {
            probability: self.probability(logit),
            others: (self.tops().take((1 + count).min(vocab)))
                .filter(|(other, _)| *other != token_id)
                .map(|(other, logit)| (other, self.probability(logit)))
                .collect(),
        });
        SampledRow::Token {
            token_id,
            logprobs,
            alternatives,
        }
    }

    /// Whether the likeliest tokens were found, or nothing is to be said of them.
    fn is_raw_known(&self) -> bool {
        matches!(self.header[7], STATUS_TOKEN | STATUS_NOT_FINITE)
    }

    fn raw_max(&self) -> f32 {
        f32::from_bits(self.header[6])
    }

    fn raw_sum(&self) -> f64 {
        f64::from_bits(u64::from(self.header[4]) | u64::from(self.header[5]) << 32)
    }

    fn tops(&self) -> impl Iterator<Item = (u32, f32)> {
        let pairs = self.tops.chunks_exact(TOP_WORDS);
        pairs.map(|pair| (pair[0], f32::from_bits(pair[1])))
    }

    fn logprobs(&self, token_id: u32, logit: f32, num_top: usize) -> Option<Logprobs> {
        if self.header[7] != STATUS_TOKEN {
            return None;
        }
        let total = f64::from(self.raw_max()) + self.raw_sum().ln();
        let logprob = |logit: f32| (f64::from(logit) - total) as f32;
        total.is_finite().then(|| Logprobs {
            token_id,
            logprob: logprob(logit),
            top: (self.tops().take(num_top))
                .map(|(id, logit)| (id, logprob(logit)))
                .collect(),
        })
    }

    fn probability(&self, logit: f32) -> f32 {
        (f64::from((logit - self.raw_max()).exp()) / self.raw_sum()) as f32
    }
}
