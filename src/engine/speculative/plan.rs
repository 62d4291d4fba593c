//! Before a step is scheduled: which sequences draft how many tokens.

use super::prompt_lookup::{longest_match, predicted};
use super::{Drafter, Speculative, Speculator};
use crate::engine::request::{EngineConfig, TokenId};
use crate::engine::sequence::{SeqId, Sequence};
use crate::engine::sequences::Sequences;

/// Drafting must promise this many times the tokens a second of a plain step: estimates are noisy.
const LEAST_GAIN: f64 = 1.02;
/// After this many steps without a draft a sequence tries one token: what is being written may have changed.
const RETRY_AFTER: u32 = 64;
/// With more sequences a step of theirs is no longer bound by memory, and a model's drafts cost as much as the tokens they save.
const MOST_SEQUENCES_FOR_MODELS: usize = 8;

/// One looked-up token that may be verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    seq: SeqId,
    /// That it is accepted, with all before it.
    probability: f64,
}

/// What a step is expected to be without a model's drafts.
#[derive(Debug, Clone, Copy)]
struct Outlook {
    num_tokens: f64,
    num_rows: usize,
}

impl Speculator {
    /// Looks up drafts for the sequences that decode and plans those of models. `config` bounds the rows of a step.
    pub(in crate::engine) fn plan(&mut self, sequences: &mut Sequences, config: &EngineConfig) {
        let num_decoding = sequences.running().filter(|s| s.is_decoding()).count();
        // A sequence has one or two rows of its own.
        let room = config
            .max_num_batched_tokens
            .saturating_sub(2 * num_decoding);
        if !self.look_up_all(sequences, config, room) {
            return;
        }
        let (prompts, decoding): (Vec<_>, Vec<_>) = sequences
            .running()
            .map(|sequence| (sequence.is_decoding(), sequence.num_uncomputed_tokens()))
            .partition(|(is_decoding, _)| !is_decoding);
        let num_rows = |rows: &[(bool, usize)]| rows.iter().map(|(_, rows)| rows).sum::<usize>();
        let num_other_rows = num_rows(&prompts).min(room);
        let plain = Outlook {
            num_tokens: num_decoding as f64,
            num_rows: num_rows(&decoding) + num_other_rows,
        };
        let mut outlook = plain;
        if !self.config.ignores_costs {
            outlook = self.keep_what_pays(sequences, plain);
        }
        sequences.for_each_running(|sequence| {
            let draft = &mut sequence.draft;
            draft.num_steps_without_lookup = match draft.token_ids.is_empty() {
                true => draft.num_steps_without_lookup.saturating_add(1),
                false => 0,
            };
        });
        let is_light = num_decoding <= MOST_SEQUENCES_FOR_MODELS && num_other_rows == 0;
        if !is_light && !self.config.ignores_costs {
            return;
        }
        for drafter in [Drafter::DraftModel, Drafter::Swift] {
            if num_decoding == 1 && !self.config.ignores_costs {
                self.drop_worse(drafter, sequences, &mut outlook, plain);
            }
            self.plan_model(drafter, sequences, outlook, (room, config.max_model_len));
        }
    }

    /// Looks up drafts of at most `room` tokens in all; false where no sequence may have one.
    fn look_up_all(
        &mut self,
        sequences: &mut Sequences,
        config: &EngineConfig,
        room: usize,
    ) -> bool {
        let num_decoding = sequences.running().filter(|s| s.is_decoding()).count();
        self.candidates.clear();
        let mut may_draft = false;
        sequences.for_each_running(|sequence| {
            sequence.draft.clear();
            if sequence.draft.speculative == Speculative::Off || !sequence.is_decoding() {
                return;
            }
            may_draft = true;
            let most = self.config.num_speculative_tokens.min(room / num_decoding);
            let most = most.min(most_useful(sequence, config.max_model_len));
            let is_forced = self.draft_forced(sequence, most);
            if !is_forced && sequence.draft.speculative.allows(Drafter::PromptLookup) {
                self.look_up(sequence, most);
            }
        });
        may_draft
    }

    /// Takes a looked-up draft back where a model's promises more.
    fn drop_worse(
        &self,
        drafter: Drafter,
        sequences: &mut Sequences,
        outlook: &mut Outlook,
        plain: Outlook,
    ) {
        let most = self.config.num_speculative_tokens;
        sequences.for_each_running(|sequence| {
            let draft = &sequence.draft;
            if !sequence.is_decoding()
                || draft.token_ids.is_empty()
                || !draft.speculative.allows(drafter)
            {
                return;
            }
            let best = self.model_rate(drafter, plain, (1, most), sequence);
            if best.is_some_and(|best| best > self.rate(*outlook)) {
                sequence.draft.clear();
                *outlook = plain;
            }
        });
    }

    /// The most tokens a second that drafts of a model promise, for `num_drafting` sequences and at most `most` tokens each.
    fn model_rate(
        &self,
        drafter: Drafter,
        outlook: Outlook,
        (num_drafting, most): (usize, usize),
        sequence: &Sequence,
    ) -> Option<f64> {
        let recent = self.recent(&sequence.draft, drafter);
        let draft_costs = self.draft_costs[drafter as usize].as_ref()?;
        let draft_seconds = draft_costs.seconds(num_drafting);
        let num_behind = match drafter {
            Drafter::DraftModel => sequence.token_ids.len() - sequence.draft.num_computed_tokens,
            Drafter::Swift | Drafter::PromptLookup | Drafter::Forced => 1,
        };
        let catch_up = draft_costs.seconds(num_behind) - draft_costs.seconds(1);
        // A draft model that has fallen behind must first compute what was looked up meanwhile. That pays if it is needed for a
        // while: as long as it has been needed already.
        let num_sharing = 1 + sequence.draft.num_steps_without_lookup;
        let catch_up = catch_up.max(0.0) / f64::from(num_sharing);
        let rates = (1..=most).scan(
            (1.0, outlook.num_tokens),
            |(probability, num_tokens), len| {
                *probability *= recent;
                *num_tokens += *probability * num_drafting as f64;
                let verify = self.costs.seconds(outlook.num_rows + len * num_drafting);
                Some(*num_tokens / (verify + len as f64 * draft_seconds + catch_up))
            },
        );
        rates.reduce(f64::max)
    }

    /// Whether a model's drafts for one sequence would pay if so many of their tokens were accepted.
    pub(super) fn could_pay(&self, drafter: Drafter, acceptance: f64) -> bool {
        let Some(draft_costs) = &self.draft_costs[drafter as usize] else {
            return false;
        };
        let (mut probability, mut num_tokens) = (1.0, 1.0);
        let plain = self.costs.seconds(1);
        (1..=self.config.num_speculative_tokens).any(|len| {
            probability *= acceptance;
            num_tokens += probability;
            let seconds = self.costs.seconds(1 + len) + len as f64 * draft_costs.seconds(1);
            num_tokens / seconds > LEAST_GAIN / plain
        })
    }

    /// Drafts the tokens that the sequence's constraint leaves no choice about, at most `most`;
    /// false where there are none.
    fn draft_forced(&mut self, sequence: &mut Sequence, most: usize) -> bool {
        let constraint = sequence.constraint.as_mut().filter(|_| most > 0);
        let token_ids = constraint.map_or_else(Vec::new, |constraint| constraint.forced(most));
        if token_ids.is_empty() {
            return false;
        }
        self.propose(sequence, Drafter::Forced, token_ids, |offset| offset);
        true
    }

    /// Makes tokens the draft of a sequence. `kind` says what speaks for each.
    fn propose(
        &mut self,
        sequence: &mut Sequence,
        drafter: Drafter,
        token_ids: Vec<TokenId>,
        kind: impl Fn(usize) -> usize,
    ) {
        let mut probability = 1.0;
        for kind in (0..token_ids.len()).map(kind) {
            probability *= self.probability(&sequence.draft, drafter, kind);
            sequence.draft.kinds.push(kind);
            self.candidates.push(Candidate {
                seq: sequence.id,
                probability,
            });
        }
        sequence.draft.drafter = Some(drafter);
        sequence.draft.token_ids = token_ids;
    }

    /// Drafts at most `most` tokens that followed the sequence's newest ones before.
    fn look_up(&mut self, sequence: &mut Sequence, most: usize) {
        let least = self.config.prompt_lookup_min;
        let recent = &sequence.token_ids;
        let own = longest_match(recent, recent).map(|found| (found, &recent[..]));
        let prediction = sequence.draft.prediction.as_deref();
        let output = &recent[sequence.num_prompt_tokens..];
        let predicted = prediction.and_then(|text| Some((predicted(text, output)?, text)));
        let found = [predicted, own].into_iter().flatten();
        let Some((found, text)) = found
            .reduce(|a, b| if b.0.len > a.0.len { b } else { a })
            .filter(|(found, _)| found.len >= least && most > 0)
        else {
            return;
        };
        let token_ids = &text[found.next..];
        let mut token_ids = token_ids[..token_ids.len().min(most)].to_vec();
        // What a constraint forbids is never accepted.
        let allowed = token_ids.iter().position(|id| !sequence.accept(*id));
        let num_allowed = allowed.unwrap_or(token_ids.len());
        sequence.rollback(num_allowed);
        token_ids.truncate(num_allowed);
        if token_ids.is_empty() {
            return;
        }
        let len = found.len;
        self.propose(sequence, Drafter::PromptLookup, token_ids, |offset| {
            len + offset
        });
    }

    /// Shortens looked-up drafts to the likeliest tokens that make the step yield most tokens a second.
    fn keep_what_pays(&mut self, sequences: &mut Sequences, plain: Outlook) -> Outlook {
        // Stable, so that a sequence's tokens stay in order: their probabilities never rise.
        self.candidates
            .sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let mut best = self.rate(plain) * LEAST_GAIN;
        let (mut outlook, mut num_kept) = (plain, 0);
        let mut next = plain;
        for (index, candidate) in self.candidates.iter().enumerate() {
            next.num_tokens += candidate.probability;
            next.num_rows += 1;
            let rate = self.rate(next);
            if rate > best {
                (best, outlook, num_kept) = (rate, next, index + 1);
            }
        }
        let candidates = &self.candidates[..num_kept];
        sequences.for_each_running(|sequence| {
            let (seq, draft) = (sequence.id, &mut sequence.draft);
            if draft.token_ids.is_empty() {
                return;
            }
            let kept = candidates.iter().filter(|c| c.seq == seq).count();
            let kept = kept.max(usize::from(draft.num_idle_steps >= RETRY_AFTER));
            if kept == 0 {
                draft.num_idle_steps += 1;
                draft.clear();
            }
            draft.token_ids.truncate(kept);
        });
        outlook
    }

    /// Tokens a second.
    fn rate(&self, outlook: Outlook) -> f64 {
        outlook.num_tokens / self.costs.seconds(outlook.num_rows)
    }

    /// Lets a model draft for the sequences that nothing was looked up for, if that pays. How many tokens it drafts is decided as
    /// they come: see [`super::model_draft`].
    fn plan_model(
        &self,
        drafter: Drafter,
        sequences: &mut Sequences,
        outlook: Outlook,
        (room, max_model_len): (usize, usize),
    ) {
        if self.draft_costs[drafter as usize].is_none() {
            return;
        }
        let may_draft = |sequence: &Sequence| {
            sequence.is_decoding()
                && sequence.draft.speculative.allows(drafter)
                && sequence.draft.num_rows() == 0
        };
        let num_drafting = sequences.running().filter(|s| may_draft(s)).count();
        if num_drafting == 0 {
            return;
        }
        let most = self.config.num_speculative_tokens.min(room / num_drafting);
        sequences.for_each_running(|sequence| {
            if !may_draft(sequence) {
                return;
            }
            let best = self.model_rate(drafter, outlook, (num_drafting, most), sequence);
            let pays = self.config.ignores_costs
                || best.is_some_and(|best| best > self.rate(outlook) * LEAST_GAIN);
            let is_retry = sequence.draft.num_idle_steps >= RETRY_AFTER;
            let most = most.min(most_useful(sequence, max_model_len));
            let draft = &mut sequence.draft;
            if pays || is_retry {
                draft.num_planned = if pays { most } else { most.min(1) };
                draft.drafter = Some(drafter);
            } else {
                draft.num_idle_steps += 1;
            }
        });
    }
}

/// Draft tokens that can still become part of the answer: the last token needs none after it.
fn most_useful(sequence: &Sequence, max_model_len: usize) -> usize {
    let num_tokens = sequence.token_ids.len();
    let left = sequence.params.max_tokens;
    let left = left.saturating_sub(sequence.num_output_tokens());
    let left = left.min(max_model_len.saturating_sub(num_tokens));
    left.saturating_sub(1)
}
