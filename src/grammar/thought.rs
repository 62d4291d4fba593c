//! Thoughts before an answer: free text up to an end, at most so many tokens of it, and only behind
//! the end what the answer itself must look like.

use std::sync::Arc;

use super::vocabulary::Vocabulary;
use crate::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// How a model thinks before it answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thought {
    /// What begins a thought.
    pub start: Vec<TokenId>,
    /// What ends it.
    pub end: Vec<TokenId>,
    /// The prompt has begun the thought; otherwise the model may begin it, or answer at once.
    pub is_open: bool,
    /// Tokens of the thought; then its end is forced.
    pub max_tokens: Option<usize>,
}

/// Lets the model think freely, and puts `rest` on what it says behind the thought.
///
/// The thought's end is found as a sequence of tokens. [`super::Grammars::after_thought`] knows the
/// tokens' texts: it finds the end in another tokenization, too.
pub fn after_thought(
    thought: Thought,
    rest: Option<Box<dyn TokenConstraint>>,
    vocab_size: usize,
) -> Box<dyn TokenConstraint> {
    Box::new(Thinking::new(thought, rest, vocab_size, None))
}

/// As [`after_thought`], with the tokens' texts. A thought before a constrained answer does not end
/// the answer.
pub(super) fn after_thought_within(
    thought: Thought,
    rest: Option<Box<dyn TokenConstraint>>,
    vocabulary: Arc<Vocabulary>,
) -> Box<dyn TokenConstraint> {
    let vocab_size = vocabulary.trie().vocab_size();
    Box::new(Thinking::new(thought, rest, vocab_size, Some(vocabulary)))
}

/// `prefix`, and behind it what `rest` allows: a thought that is over, whose end comes first.
pub fn prefixed(
    prefix: Vec<TokenId>,
    rest: Box<dyn TokenConstraint>,
    vocab_size: usize,
) -> Box<dyn TokenConstraint> {
    let over = Thought {
        end: prefix,
        is_open: true,
        max_tokens: Some(0),
        ..Thought::default()
    };
    after_thought(over, Some(rest), vocab_size)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// So many tokens of the thought's start have come; `rest` has taken them, too, if it can.
    Start {
        num_matched: usize,
        is_rest: bool,
    },
    /// So many tokens are thought, and the last of them may be the beginning of the end.
    Thought {
        num_tokens: usize,
        num_matched: usize,
    },
    Rest,
}

/// A phase, and how many tokens `rest` has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    phase: Phase,
    num_rest: usize,
}

/// What does not change.
#[derive(Debug)]
struct Plan {
    thought: Thought,
    /// For each length of a part of the end that has come: the next shorter part that has, too.
    fallback: Vec<usize>,
    /// The end as text.
    end_bytes: Vec<u8>,
    vocabulary: Option<Arc<Vocabulary>>,
    vocab_size: usize,
}

#[derive(Debug, Clone)]
struct Thinking {
    plan: Arc<Plan>,
    rest: Option<Box<dyn TokenConstraint>>,
    now: State,
    /// The accepted tokens, and the state before each of them.
    accepted: Vec<(TokenId, State)>,
}

impl Thinking {
    fn new(
        thought: Thought,
        rest: Option<Box<dyn TokenConstraint>>,
        vocab_size: usize,
        vocabulary: Option<Arc<Vocabulary>>,
    ) -> Self {
        let phase = match (thought.is_open, &*thought.start, &*thought.end) {
            // Nothing begins a thought, or nothing ends it.
            (_, _, []) | (false, [], _) => Phase::Rest,
            (true, _, _) => Phase::Thought {
                num_tokens: 0,
                num_matched: 0,
            },
            (false, _, _) => Phase::Start {
                num_matched: 0,
                is_rest: true,
            },
        };
        let bytes_of = |vocabulary: &Arc<Vocabulary>| {
            let bytes = |id: &TokenId| vocabulary.tokenizer().token_bytes(*id).to_vec();
            thought.end.iter().flat_map(bytes).collect()
        };
        let plan = Plan {
            fallback: fallback(&thought.end),
            end_bytes: vocabulary.as_ref().map_or(Vec::new(), bytes_of),
            thought,
            vocabulary,
            vocab_size,
        };
        Self {
            plan: Arc::new(plan),
            rest,
            now: State { phase, num_rest: 0 },
            accepted: Vec::new(),
        }
    }

    /// The token of the end that must come now, by its place in the end.
    fn forced_end(&self) -> Option<usize> {
        match (self.now.phase, self.plan.thought.max_tokens) {
            (
                Phase::Thought {
                    num_tokens,
                    num_matched,
                },
                Some(max_tokens),
            ) if num_tokens >= max_tokens => Some(num_matched),
            _ => None,
        }
    }

    /// Whether a token ends the answer, and must not do so inside of a thought.
    fn ends_too_early(&self, token_id: TokenId) -> bool {
        let vocabulary = self
            .plan
            .vocabulary
            .as_ref()
            .filter(|_| self.rest.is_some());
        vocabulary.is_some_and(|vocabulary| vocabulary.is_end(token_id))
    }

    fn rest_accepts(&mut self, token_id: TokenId) -> bool {
        match &mut self.rest {
            Some(rest) => rest.accept(token_id),
            None => (token_id as usize) < self.plan.vocab_size,
        }
    }

    /// The state behind a token; none where the token is not allowed.
    fn next(&mut self, token_id: TokenId) -> Option<State> {
        let State { phase, num_rest } = self.now;
        let state = |phase, num_rest| Some(State { phase, num_rest });
        match phase {
            Phase::Rest => match self.rest_accepts(token_id) {
                true => state(Phase::Rest, num_rest + 1),
                false => None,
            },
            Phase::Start {
                num_matched,
                is_rest,
            } => {
                let start = &self.plan.thought.start;
                let is_start = start.get(num_matched) == Some(&token_id);
                if is_start && num_matched + 1 == start.len() {
                    // It was no answer after all.
                    if let Some(rest) = self.rest.as_mut().filter(|_| num_rest > 0) {
                        rest.rollback(num_rest);
                    }
                    let phase = Phase::Thought {
                        num_tokens: 0,
                        num_matched: 0,
                    };
                    return state(phase, 0);
                }
                let is_rest = is_rest && self.rest_accepts(token_id);
                let num_rest = num_rest + usize::from(is_rest);
                match (is_start, is_rest) {
                    (true, _) => {
                        let num_matched = num_matched + 1;
                        state(
                            Phase::Start {
                                num_matched,
                                is_rest,
                            },
                            num_rest,
                        )
                    }
                    (false, true) => state(Phase::Rest, num_rest),
                    (false, false) => None,
                }
            }
            Phase::Thought {
                num_tokens,
                num_matched,
            } => {
                let forced = self.forced_end();
                let end = &self.plan.thought.end;
                let is_allowed = match forced {
                    Some(place) => end[place] == token_id,
                    None => {
                        (token_id as usize) < self.plan.vocab_size && !self.ends_too_early(token_id)
                    }
                };
                if !is_allowed {
                    return None;
                }
                let num_matched = self.plan.matched(num_matched, token_id);
                if num_matched == end.len() || self.ends_as_text(token_id, num_tokens) {
                    return state(Phase::Rest, 0);
                }
                let phase = Phase::Thought {
                    num_tokens: num_tokens + 1,
                    num_matched,
                };
                state(phase, 0)
            }
        }
    }

    /// Whether the thought's text has its end in it with this token, however it is tokenized.
    fn ends_as_text(&self, token_id: TokenId, num_tokens: usize) -> bool {
        let Some(vocabulary) = &self.plan.vocabulary else {
            return false;
        };
        let (tokenizer, end) = (vocabulary.tokenizer(), &self.plan.end_bytes);
        let last = tokenizer.token_bytes(token_id);
        if end.is_empty() || last.is_empty() {
            return false;
        }
        // The end's last byte is in the last token: enough of what is before it.
        let mut bytes = Vec::new();
        for (before, _) in self.accepted.iter().rev().take(num_tokens) {
            if bytes.len() + 1 >= end.len() {
                break;
            }
            bytes.splice(0..0, tokenizer.token_bytes(*before).iter().copied());
        }
        let kept = bytes.len().min(end.len() - 1);
        bytes.drain(..bytes.len() - kept);
        bytes.extend(last);
        bytes
            .windows(end.len())
            .any(|window| window == end.as_slice())
    }
}

impl Plan {
    /// How much of the end has come with a token behind `num_matched` tokens of it.
    fn matched(&self, mut num_matched: usize, token_id: TokenId) -> usize {
        let end = &self.thought.end;
        loop {
            if end.get(num_matched) == Some(&token_id) {
                return num_matched + 1;
            }
            match num_matched.checked_sub(1) {
                Some(shorter) => num_matched = self.fallback[shorter],
                None => return 0,
            }
        }
    }
}

/// For each prefix of a sequence the length of its longest proper prefix that is its suffix, too.
fn fallback(sequence: &[TokenId]) -> Vec<usize> {
    let mut lengths: Vec<usize> = Vec::with_capacity(sequence.len());
    for (index, token_id) in sequence.iter().enumerate() {
        let mut length = index.checked_sub(1).map_or(0, |before| lengths[before]);
        while length > 0 && sequence[length] != *token_id {
            length = lengths[length - 1];
        }
        let grows = index > 0 && sequence[length] == *token_id;
        lengths.push(length + usize::from(grows));
    }
    lengths
}

impl TokenConstraint for Thinking {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        if let Some(place) = self.forced_end() {
            mask.allow(self.plan.thought.end[place]);
            return Ok(());
        }
        let (is_rest, start) = match self.now.phase {
            Phase::Start {
                num_matched,
                is_rest,
            } => (is_rest, self.plan.thought.start.get(num_matched).copied()),
            Phase::Thought { .. } => (false, None),
            Phase::Rest => (true, None),
        };
        match (&mut self.rest, self.now.phase) {
            (Some(rest), Phase::Start { .. } | Phase::Rest) => {
                if is_rest {
                    rest.mask(mask)?;
                }
            }
            (None, Phase::Start { .. }) if !is_rest => {}
            _ => mask.allow_all(),
        }
        if let Some(start) = start {
            mask.allow(start);
        }
        if let (Phase::Thought { .. }, Some(vocabulary), Some(_)) =
            (self.now.phase, &self.plan.vocabulary, &self.rest)
        {
            for end in vocabulary.trie().eos_tokens() {
                mask.words_mut()[*end as usize / 32] &= !(1 << (end % 32));
            }
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let before = self.now;
        let Some(next) = self.next(token_id) else {
            return false;
        };
        self.accepted.push((token_id, before));
        self.now = next;
        true
    }

    fn rollback(&mut self, num_tokens: usize) {
        let len = self.accepted.len().saturating_sub(num_tokens);
        let is_thought = |state: &State| matches!(state.phase, Phase::Thought { .. });
        let mut undone = self.accepted[len..].iter().map(|(_, state)| state);
        let Some(state) = undone.next().copied() else {
            return;
        };
        let has_thought = is_thought(&self.now) || undone.any(is_thought);
        self.accepted.truncate(len);
        if let Some(rest) = &mut self.rest {
            // When the thought began, `rest` gave the start's tokens back.
            let num_kept = match state.phase {
                Phase::Start { .. } if has_thought => 0,
                _ => state.num_rest,
            };
            rest.rollback(self.now.num_rest - num_kept);
            let start = self.plan.thought.start.iter();
            for token_id in start.take(state.num_rest).skip(num_kept) {
                rest.accept(*token_id);
            }
        }
        self.now = state;
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        if let Some(place) = self.forced_end() {
            let end = &self.plan.thought.end[place..];
            return end.iter().take(most).copied().collect();
        }
        match (&mut self.rest, self.now.phase) {
            (Some(rest), Phase::Rest) => rest.forced(most),
            _ => Vec::new(),
        }
    }

    fn has_cheap_masks(&self) -> bool {
        match (&self.rest, self.now.phase) {
            (Some(rest), Phase::Start { .. } | Phase::Rest) => rest.has_cheap_masks(),
            _ => true,
        }
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}
