//! What a client has seen of a request.

use ponder::engine::{DraftCounts, EngineError, FinishReason, StreamEvent, TokenId};

/// A token as it was reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub token_id: TokenId,
    /// The bits of its logprob and the tokens beside it.
    pub logprobs: Option<(u32, Vec<TokenId>)>,
    pub hidden_state: Option<Vec<u32>>,
}

/// One continuation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub tokens: Vec<Seen>,
    pub reason: Option<FinishReason>,
}

impl Choice {
    pub fn token_ids(&self) -> Vec<TokenId> {
        self.tokens.iter().map(|token| token.token_id).collect()
    }
}

/// All that came of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub choices: Vec<Choice>,
    /// Tokens of the prompt, once it was computed.
    pub num_prompt_tokens: Option<usize>,
    /// Bits of the logprobs of the prompt's tokens.
    pub prompt_logprobs: Option<Vec<Option<u32>>>,
    /// Positions and bits of what a pooling request read.
    pub pooled: Vec<(usize, Vec<u32>)>,
    pub num_adaptations: usize,
    pub error: Option<EngineError>,
    pub drafts: DraftCounts,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl Answer {
    pub fn new(n: usize) -> Self {
        Self {
            choices: vec![Choice::default(); n],
            ..Self::default()
        }
    }

    pub fn is_over(&self) -> bool {
        self.error.is_some() || self.choices.iter().all(|choice| choice.reason.is_some())
    }

    /// # Errors
    /// The event may not come now.
    pub fn take(&mut self, event: StreamEvent) -> Result<(), String> {
        if self.is_over() {
            return Err(format!("{event:?} after the end"));
        }
        match event {
            StreamEvent::PromptDone {
                num_prompt_tokens,
                prompt_logprobs,
                ..
            } => {
                if self.num_prompt_tokens.replace(num_prompt_tokens).is_some() {
                    return Err("PromptDone came twice".to_owned());
                }
                let bits = |token: Option<ponder::engine::TokenLogprobs>| {
                    token.map(|token| token.logprob.to_bits())
                };
                self.prompt_logprobs =
                    prompt_logprobs.map(|all| all.into_iter().map(bits).collect());
            }
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                hidden_state,
            } => {
                let choice = &mut self.choices[index];
                if choice.reason.is_some() || self.num_prompt_tokens.is_none() {
                    return Err(format!("a token of choice {index} out of its place"));
                }
                choice.tokens.push(Seen {
                    token_id,
                    logprobs: logprobs.map(|token| {
                        let top = token.top.iter().map(|(id, _)| *id).collect();
                        (token.logprob.to_bits(), top)
                    }),
                    hidden_state: hidden_state.as_deref().map(bits),
                });
            }
            StreamEvent::Adapted { .. } => self.num_adaptations += 1,
            StreamEvent::Pooled {
                position,
                logits,
                hidden_state,
            } => {
                let hidden_state = hidden_state.unwrap_or_default();
                let read = [bits(&logits), bits(&hidden_state)].concat();
                self.pooled.push((position, read));
            }
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                if self.choices[index].reason.replace(reason).is_some() {
                    return Err(format!("choice {index} ended twice"));
                }
                self.drafts += drafts;
            }
            StreamEvent::Error(error) => self.error = Some(error),
        }
        Ok(())
    }
}
