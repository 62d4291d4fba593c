//! Conversations: what they must look like, what they ask, and the prompt that they become.
//!
//! The one place where messages of OpenAI's shape become what a chat template reads: [`check`] says
//! what is wrong with them, [`normalize`] gives them the shape that the template knows.

mod check;
mod guard;
mod normalize;
#[cfg(test)]
mod tests;
mod tools;

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::text::TokenizerError;
use crate::work::Budget;

pub(in crate::api) use check::{check_messages, text_of};
use guard::Guard;
pub(in crate::api) use normalize::normalize;

/// What the last user message says.
pub(in crate::api) fn question(messages: &[Value]) -> String {
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] == "user");
    last.map_or_else(String::new, |message| text_of(&message["content"]))
}

/// What a prompt is made of. The messages passed [`check_messages`].
#[derive(Clone, Copy)]
pub(in crate::api) struct Conversation<'a> {
    pub messages: &'a [Value],
    /// Tools in OpenAI's shape. They reach the model whether or not its template knows tools:
    /// otherwise a system message of ours says how to call them, in Hermes' format.
    pub tools: Option<&'a [Value]>,
    pub add_generation_prompt: bool,
    /// More variables for the template.
    pub variables: &'a Map<String, Value>,
    /// Whether control tokens in the texts are text ([`crate::api::ServerConfig`]).
    pub escapes: bool,
}

impl<'a> Conversation<'a> {
    /// Messages before an answer, and nothing else.
    pub fn of(messages: &'a [Value], variables: &'a Map<String, Value>) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: true,
            variables,
            escapes: false,
        }
    }
}

/// The prompt of a conversation.
pub(in crate::api) struct Prompt {
    pub text: String,
    /// The text with marks in the control tokens that are text only.
    guarded: Option<(Guard, String)>,
}

impl Prompt {
    /// Ends the prompt at the last place of `mark`, and leaves the other ones out; `None` where
    /// there is none.
    pub fn cut(mut self, mark: &str) -> Option<Self> {
        let guarded = self.guarded.as_mut().map(|(_, text)| text);
        for text in [&mut self.text].into_iter().chain(guarded) {
            let end = text.rfind(mark)?;
            text.truncate(end);
            *text = text.replace(mark, "");
        }
        Some(self)
    }

    /// Token ids, of which there must be no more than `max_tokens`. The template writes the model's
    /// own BOS where it belongs.
    pub fn encode_within(
        &self,
        served: &Served,
        max_tokens: usize,
        budget: &Budget,
    ) -> Result<Vec<u32>, TokenizerError> {
        let may_go_on = || budget.may_go_on();
        let tokenizer = &served.tokenizer;
        match &self.guarded {
            Some((guard, text)) => {
                tokenizer.encode_guarded(text, guard.marker(), max_tokens, &may_go_on)
            }
            None => tokenizer.encode_within(&self.text, false, true, max_tokens, &may_go_on),
        }
    }

    /// Token ids, no more than the context holds.
    pub fn encode(&self, served: &Served, budget: &Budget) -> Result<Vec<u32>, ApiError> {
        let max_tokens = served.engine.config().max_model_len;
        Ok(self.encode_within(served, max_tokens, budget)?)
    }
}

/// The prompt of a conversation.
pub(in crate::api) fn render(
    served: &Served,
    conversation: &Conversation<'_>,
) -> Result<Prompt, ApiError> {
    let Some(template) = &served.chat_template else {
        let message = "this model has no chat template: use /v1/completions, or start the server \
            with --chat-template";
        return Err(ApiError::invalid("messages", message));
    };
    let mut messages = conversation.messages.to_vec();
    let mut tools = conversation.tools.map(<[Value]>::to_vec);
    let mut variables = conversation.variables.clone();
    normalize(&mut messages, template)?;
    if let Some(offered) = tools.take_if(|_| !template.knows().tools) {
        tools::offer(&mut messages, &offered);
    }
    normalize::place_systems(&mut messages, template.knows());
    let guard = match conversation.escapes {
        false => None,
        true => {
            let guard = Guard::new(&messages, tools.as_deref(), &variables)?;
            guard.apply(&served.tokenizer, &mut messages, &mut tools, &mut variables);
            Some(guard)
        }
    };
    let generation = conversation.add_generation_prompt;
    let text = template.render(&messages, tools.as_deref(), generation, &variables)?;
    Ok(match guard {
        None => Prompt {
            text,
            guarded: None,
        },
        Some(guard) => Prompt {
            text: text.replace(guard.marker(), ""),
            guarded: Some((guard, text)),
        },
    })
}

/// Token ids of a text that a client chose, of no more than the context holds. `add_special` and
/// `parse_special` are those of [`crate::text::Tokenizer::encode`].
pub(in crate::api) fn encode(
    served: &Served,
    text: &str,
    (add_special, parse_special): (bool, bool),
    budget: &Budget,
) -> Result<Vec<u32>, ApiError> {
    let max_tokens = served.engine.config().max_model_len;
    let may_go_on = || budget.may_go_on();
    let tokenizer = &served.tokenizer;
    Ok(tokenizer.encode_within(text, add_special, parse_special, max_tokens, &may_go_on)?)
}
