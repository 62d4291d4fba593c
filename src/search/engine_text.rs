//! The text of what the engine samples for a search.

use std::sync::Arc;

use super::calling::Insertion;
use super::confidence::Groups;
use super::engine_policy::EnginePolicy;
use super::inserted::Inserted;
use super::policy::Expansion;
use super::step::{StepRule, StepWatcher};
use super::text_rules::{Standing, TextRules};
use crate::engine::{TokenId, Watch};
use crate::text::{Detokenizer, StopMatcher};

/// What a finished sample says.
pub(super) struct SampleText {
    pub text: String,
    pub inserted: Vec<Inserted>,
    /// A stop string ended it.
    pub hits_stop: bool,
}

impl EnginePolicy {
    pub(super) fn text_rules(&self) -> TextRules {
        TextRules {
            tokenizer: self.tokenizer.clone(),
            stops: self.stops.clone(),
            include_stop: self.include_stop,
            skip_special: self.skip_special,
            visible: self.visible.clone(),
            min_tokens: self.params.min_tokens,
        }
    }

    pub(super) fn watcher(
        &self,
        expansion: &Expansion,
        step: Option<(StepRule, Watch)>,
    ) -> StepWatcher {
        let tool = self.code.as_ref();
        let standing = Standing {
            num_own: expansion.num_own(),
            before: match expansion.inserted.is_empty() {
                true => &self.code_before,
                false => "",
            },
            text: expansion.own_text(),
            may_call: tool.is_some_and(|it| expansion.inserted.len() < it.limits.max_calls),
        };
        self.text_rules()
            .watcher(standing, step, expansion.confidence.map(Groups::new))
    }

    /// Turns the tokens of an answer into its text.
    pub fn detokenizer(&self) -> Detokenizer {
        self.text_rules().detokenizer()
    }

    /// The text of a finished sample; `insertions` with the number of tokens before each.
    pub(super) fn text(
        &self,
        source: &Expansion,
        token_ids: &[TokenId],
        insertions: Vec<(usize, Insertion)>,
    ) -> SampleText {
        let stops = self.text_rules().stops(source.num_own());
        let mut reading = Reading {
            detokenizer: self.detokenizer(),
            stops,
            text: String::new(),
            hits_stop: false,
        };
        let before = source.own_text();
        reading.text = reading.stops.pass(before);
        // What of the prefix is read again is no part of the sample.
        let start = before.len();
        let mut inserted = Vec::new();
        let mut from = 0;
        for (at, insertion) in insertions {
            reading.own(&token_ids[from..at]);
            reading.flush();
            from = at + insertion.token_ids.len();
            let begin = reading.text.len() - start;
            reading.text.push_str(&insertion.text);
            inserted.push(Inserted {
                tokens: at..from,
                text: begin..begin + insertion.text.len(),
                call: Arc::clone(&insertion.call),
            });
        }
        reading.own(&token_ids[from..]);
        if !reading.hits_stop {
            reading.flush();
        }
        SampleText {
            text: reading.text.get(start..).unwrap_or_default().to_owned(),
            inserted,
            hits_stop: reading.hits_stop,
        }
    }
}

/// A text while it is read from its tokens.
struct Reading {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    text: String,
    hits_stop: bool,
}

impl Reading {
    fn own(&mut self, token_ids: &[TokenId]) {
        for token_id in token_ids {
            if self.hits_stop {
                return;
            }
            let piece = self.detokenizer.push(*token_id);
            self.piece(&piece);
        }
    }

    fn piece(&mut self, piece: &str) {
        let outcome = self.stops.push(piece);
        self.text.push_str(&outcome.text);
        self.hits_stop = outcome.stopped.is_some();
    }

    /// Nothing follows that belongs to what is held back.
    fn flush(&mut self) {
        let rest = self.detokenizer.finish();
        if !rest.is_empty() {
            self.piece(&rest);
        }
        if !self.hits_stop {
            let held = self.stops.flush();
            self.text.push_str(&held);
        }
    }
}
