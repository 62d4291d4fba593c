//! How likely a draft token is to be accepted, learned from those before it.

/// Kinds of evidence that are told apart: the tokens that agreed before a looked-up token (this many or more together), or
/// how sure the model was that drafted it.
pub(super) const NUM_KINDS: usize = 16;
/// Trials that an estimate remembers.
const MEMORY: f32 = 64.0;
/// Share of a token in what is known of the latest ones.
const RECENT_SHARE: f32 = 0.05;
/// Trials of a sequence that say too little.
const FEW_TRIALS: u32 = 12;
/// Acceptance before anything is known.
const FIRST_GUESS: f32 = 0.7;
/// How many trials the estimate for all sequences is worth in a sequence's own estimate.
const PRIOR_TRIALS: f32 = 4.0;

/// Of every kind of evidence, how many tokens were tried and accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::engine) struct AcceptanceTable {
    tried: [f32; NUM_KINDS],
    accepted: [f32; NUM_KINDS],
    /// The share of the latest tokens that were accepted, whatever spoke for them, and how many there were.
    recent: f32,
    num_tried: u32,
}

impl Default for AcceptanceTable {
    fn default() -> Self {
        Self {
            tried: [0.0; NUM_KINDS],
            accepted: [0.0; NUM_KINDS],
            recent: FIRST_GUESS,
            num_tried: 0,
        }
    }
}

impl AcceptanceTable {
    /// Before anything is known of a looked-up token: the longer the match, the likelier.
    pub(super) fn prior_of_matches() -> Self {
        Self::with_prior(|kind| (1.0 - 0.8_f32.powi(kind as i32)).min(0.9))
    }

    /// Before anything is known of a forced token: the model may only cut the same text into tokens
    /// otherwise.
    pub(super) fn prior_of_forced() -> Self {
        Self::with_prior(|_| 0.95)
    }

    /// Before anything is known of a model's draft: it is as likely as the model says, or a little less.
    pub(super) fn prior_of_confidence() -> Self {
        Self::with_prior(|kind| 0.1 + 0.8 * (kind as f32 + 0.5) / NUM_KINDS as f32)
    }

    fn with_prior(probability: impl Fn(usize) -> f32) -> Self {
        let mut table = Self::default();
        for kind in 0..NUM_KINDS {
            table.tried[kind] = PRIOR_TRIALS;
            table.accepted[kind] = PRIOR_TRIALS * probability(kind);
        }
        table
    }

    /// The kind of a token that was drafted with this probability.
    pub(super) fn kind_of(confidence: f32) -> usize {
        ((confidence * NUM_KINDS as f32) as usize).min(NUM_KINDS - 1)
    }

    /// The share of a sequence's latest tokens that were accepted, or that of all sequences' while it has few.
    pub(super) fn recent(&self, all: &Self) -> f32 {
        if self.num_tried < FEW_TRIALS {
            return all.recent;
        }
        self.recent
    }

    /// Counts one token that was verified after all before it were accepted.
    pub(super) fn observe(&mut self, kind: usize, is_accepted: bool) {
        let kind = kind.min(NUM_KINDS - 1);
        if self.tried[kind] >= MEMORY {
            self.tried[kind] *= 0.5;
            self.accepted[kind] *= 0.5;
        }
        let accepted = f32::from(u8::from(is_accepted));
        self.tried[kind] += 1.0;
        self.accepted[kind] += accepted;
        self.recent += RECENT_SHARE * (accepted - self.recent);
        self.num_tried = self.num_tried.saturating_add(1);
    }

    /// The share of the tokens with this evidence that were accepted.
    pub(super) fn share(&self, kind: usize) -> f32 {
        self.accepted[kind] / self.tried[kind].max(f32::MIN_POSITIVE)
    }

    /// The probability that a sequence's next draft token is accepted, given the estimate `all` for all sequences.
    pub(super) fn probability(&self, kind: usize, all: &Self) -> f32 {
        let kind = kind.min(NUM_KINDS - 1);
        let prior = all.share(kind) * PRIOR_TRIALS;
        (self.accepted[kind] + prior) / (self.tried[kind] + PRIOR_TRIALS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_starts_at_what_all_show_and_learns_its_own() {
        let mut all = AcceptanceTable::prior_of_matches();
        for trial in 0..400 {
            all.observe(3, trial % 4 == 0);
        }
        let mut own = AcceptanceTable::default();
        assert!((own.probability(3, &all) - 0.25).abs() < 0.05);
        for _ in 0..40 {
            own.observe(3, true);
        }
        assert!(own.probability(3, &all) > 0.9);
        assert_eq!(own.probability(5, &all), all.share(5));
    }

    #[test]
    fn old_trials_are_forgotten() {
        let mut table = AcceptanceTable::prior_of_matches();
        for _ in 0..1000 {
            table.observe(2, true);
        }
        for _ in 0..200 {
            table.observe(2, false);
        }
        assert!(table.share(2) < 0.1, "{}", table.share(2));
    }
}
