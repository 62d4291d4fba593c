//! The text of what the engine samples for a search.

use super::confidence::Groups;
use super::engine_policy::EnginePolicy;
use super::policy::Expansion;
use super::step::{StepRule, StepWatcher};
use crate::engine::{TokenId, Watch};
use crate::text::{Detokenizer, StopMatcher};

impl EnginePolicy {
    pub(super) fn watcher(
        &self,
        expansion: &Expansion,
        step: Option<(StepRule, Watch)>,
    ) -> StepWatcher {
        let stops = self.stops(expansion.prefix.len());
        let confidence = expansion.confidence.map(Groups::new);
        let text = &expansion.prefix_text;
        StepWatcher::new(self.detokenizer(), stops, text, step, confidence)
    }

    /// Turns the tokens of an answer into its text.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::with_visible(&self.tokenizer, self.skip_special, &self.visible)
    }

    /// Stop strings wait for `min_tokens`, those of the prefix among them.
    fn stops(&self, num_prefix_tokens: usize) -> StopMatcher {
        let num_waiting = self.params.min_tokens.saturating_sub(num_prefix_tokens + 1);
        StopMatcher::new(self.stops.clone(), self.include_stop).after(num_waiting)
    }

    /// The text of a finished sample, and whether a stop string ended it.
    pub(super) fn text(&self, source: &Expansion, token_ids: &[TokenId]) -> (String, bool) {
        let mut detokenizer = self.detokenizer();
        let mut stops = self.stops(source.prefix.len());
        let start = source.prefix_text.len();
        let own = |text: &str| text.get(start..).unwrap_or_default().to_owned();
        let mut text = stops.pass(&source.prefix_text);
        for token_id in token_ids {
            let outcome = stops.push(&detokenizer.push(*token_id));
            text.push_str(&outcome.text);
            if outcome.stopped.is_some() {
                return (own(&text), true);
            }
        }
        let rest = stops.push(&detokenizer.finish());
        text.push_str(&rest.text);
        if rest.stopped.is_none() {
            text.push_str(&stops.finish());
        }
        (own(&text), rest.stopped.is_some())
    }
}
