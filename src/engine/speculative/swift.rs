//! SWIFT's search while serving (Xia et al. 2025, section 3.2): now and then another skip set is
//! tried on what was just written, and the better one stays.
//!
//! Differences from the released code: the set in use is scored again on the same tokens, so that a
//! lucky score does not stick; half of the candidates are neighbours of it; the tokens are the
//! newest ones; the time is bounded; and the search starts again when the drafts are accepted less
//! often than they were.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::skip_search::MATCHNESS_WINDOW;
use super::{Drafter, Speculator};
use crate::engine::executor::ExecutorError;
use crate::engine::runner::Runner;
use crate::engine::sequence::Sequence;
use crate::engine::sequences::Sequences;
use crate::model::{SkipSet, SubLayer};

/// Share of the time that the search may take.
const TIME_SHARE: f64 = 0.02;
/// What the first candidate is taken to cost before one was tried: there must be time for it.
const FIRST_SEARCH: Duration = Duration::from_millis(250);
/// Candidates in a row without a better one that end the search (`max_tolerance_iter`, for candidates that cost more here).
const TOLERANCE: u32 = 60;
/// A set this good is not searched further (`max_score`).
const GOOD_ENOUGH: f64 = 0.95;
/// The search starts again when acceptance falls by this much.
const REARM_BELOW: f32 = 0.8;

/// The set in use and the search for a better one.
pub(super) struct Swift {
    pub skip: Arc<SkipSet>,
    num_layers: usize,
    num_fruitless: u32,
    is_good_enough: bool,
    /// Acceptance when the search ended.
    settled_at: Option<f32>,
    searched: Duration,
    decoded: Duration,
    random: u64,
}

impl Swift {
    /// Starts with a stored set, or with one MLP of four: attention costs little beside them.
    pub fn new(stored: Option<SkipSet>, num_layers: usize) -> Self {
        let some = (2..num_layers).step_by(4).map(SubLayer::Mlp);
        Self {
            skip: (stored.unwrap_or_else(|| SkipSet::new(num_layers, some))).into(),
            num_layers,
            num_fruitless: 0,
            is_good_enough: false,
            settled_at: None,
            searched: FIRST_SEARCH,
            decoded: Duration::ZERO,
            random: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are good enough to choose with.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound.max(1)
    }

    /// A set of the same size: another one altogether, or one with a sub-layer exchanged.
    fn candidate(&mut self) -> Arc<SkipSet> {
        let mut rest = SkipSet::candidates(self.num_layers);
        let mut chosen: Vec<SubLayer> = self.skip.sub_layers().collect();
        let num_chosen = chosen.len();
        if self.below(2) == 0 {
            chosen.clear();
        } else if !chosen.is_empty() {
            let at = self.below(chosen.len());
            chosen.swap_remove(at);
        }
        rest.retain(|sub_layer| !chosen.contains(sub_layer));
        while chosen.len() < num_chosen && !rest.is_empty() {
            let at = self.below(rest.len());
            chosen.push(rest.swap_remove(at));
        }
        Arc::new(SkipSet::new(self.num_layers, chosen))
    }

    fn is_searching(&mut self, acceptance: f32) -> bool {
        let is_settled = self.is_good_enough || self.num_fruitless >= TOLERANCE;
        if !is_settled {
            return true;
        }
        let settled_at = *self.settled_at.get_or_insert(acceptance);
        if acceptance < settled_at * REARM_BELOW {
            self.settled_at = None;
            self.is_good_enough = false;
            self.num_fruitless = 0;
            return true;
        }
        false
    }

    /// Takes the scores of the set in use and of a candidate on the same tokens.
    fn compare(&mut self, own: f64, other: f64, candidate: Arc<SkipSet>) -> bool {
        let is_better = other > own;
        if is_better {
            self.skip = candidate;
            self.num_fruitless = 0;
        } else {
            self.num_fruitless += 1;
        }
        self.is_good_enough = own.max(other) >= GOOD_ENOUGH;
        is_better
    }
}

impl Speculator {
    /// After a step that only decoded and took `elapsed`: tries a candidate on one of the sequences that asked for SWIFT, when
    /// there is time. True when the set in use has changed.
    pub(in crate::engine) fn search_skips(
        &mut self,
        runner: &mut Runner,
        sequences: &Sequences,
        elapsed: Duration,
    ) -> Result<bool, ExecutorError> {
        let all = &self.acceptance[Drafter::Swift as usize];
        let acceptance = all.recent(all);
        let is_worthwhile = self.could_pay(Drafter::Swift, GOOD_ENOUGH);
        let Some(swift) = &mut self.swift else {
            return Ok(false);
        };
        swift.decoded += elapsed;
        if !is_worthwhile {
            return Ok(false);
        }
        let is_early = swift.searched.as_secs_f64() > TIME_SHARE * swift.decoded.as_secs_f64();
        if is_early || !swift.is_searching(acceptance) {
            return Ok(false);
        }
        let fits = |sequence: &&Sequence| {
            sequence.draft.speculative == super::Speculative::Swift
                && sequence.adapter.is_none()
                && sequence.num_output_tokens() > MATCHNESS_WINDOW + 1
                && sequence.num_computed_tokens > MATCHNESS_WINDOW
        };
        let Some(sequence) = sequences.running().find(fits) else {
            return Ok(false);
        };
        let started = Instant::now();
        let candidate = swift.candidate();
        let own = runner.matchness(sequence, MATCHNESS_WINDOW, &swift.skip)?;
        let other = runner.matchness(sequence, MATCHNESS_WINDOW, &candidate)?;
        let is_better = swift.compare(own, other, candidate);
        if is_better {
            self.measure_swift(runner);
        }
        if let Some(swift) = &mut self.swift {
            swift.searched += started.elapsed();
        }
        Ok(is_better)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_better_set_stays_and_a_settled_search_starts_again() {
        let mut swift = Swift::new(None, 12);
        assert_eq!(swift.skip.len(), 3);
        for _ in 0..40 {
            let candidate = swift.candidate();
            assert_eq!(candidate.len(), 3);
            assert!(candidate.fits(12));
        }
        let better = swift.candidate();
        assert!(swift.compare(0.4, 0.5, better.clone()));
        assert_eq!(swift.skip, better);
        for _ in 0..TOLERANCE {
            assert!(swift.is_searching(0.7));
            let candidate = swift.candidate();
            assert!(!swift.compare(0.5, 0.5, candidate));
        }
        assert_eq!(swift.skip, better);
        assert!(!swift.is_searching(0.7));
        assert!(!swift.is_searching(0.6));
        assert!(swift.is_searching(0.5), "what is written has changed");
        let candidate = swift.candidate();
        swift.compare(0.96, 0.2, candidate);
        assert!(!swift.is_searching(0.9));
    }
}
