//! What OpenAI's chat and completions have in common: the object around choices, the usage, the end
//! of a stream.

use serde_json::{Value, json};

use super::format::Frame;
use crate::api::answer::event::{PromptReport, Summary, Token, TokenLogprob, ToolOutput, Usage};
use crate::search::SearchEvent;

/// What an answer carries beside its events.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Head {
    pub id: String,
    /// The model's name in the answer.
    pub model: String,
    /// Unix seconds.
    pub created: u64,
    /// Choices of each prompt.
    pub n: usize,
    /// Chunks have a `usage`, null in all but the last.
    pub include_usage: bool,
    /// A stream ends with a chunk about its trace. Only who asked for a trace gets one: some
    /// clients stumble over a chunk without choices.
    pub tells_trace: bool,
    /// The body shows the prompt's log-probabilities.
    pub shows_prompt_logprobs: bool,
    /// The request offered `functions`, which OpenAI had before `tools`: a call is a
    /// `function_call`.
    pub is_legacy: bool,
    /// Texts have the special tokens.
    pub shows_special: bool,
    /// Log-probabilities name tokens by their ids (vLLM's `return_tokens_as_token_ids`).
    pub names_tokens_by_id: bool,
    /// Answers tell the ids of their tokens and of the prompt's (vLLM's `return_token_ids`).
    pub tells_token_ids: bool,
}

impl Head {
    /// A token's name among log-probabilities.
    pub fn token_name(&self, token: &Token) -> String {
        match self.names_tokens_by_id {
            true => format!("token_id:{}", token.id),
            false => token.text(),
        }
    }

    /// The object around choices.
    pub fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("ponder-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// A chunk of a stream with one choice.
    pub fn chunk(&self, object: &str, choice: Value) -> Frame {
        Frame::of(&self.chunk_json(object, choice))
    }

    /// The same, to which something is added.
    pub fn chunk_json(&self, object: &str, choice: Value) -> Value {
        let mut chunk = self.envelope(object, vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// A chunk about a search's progress.
    pub fn progress(&self, object: &str, progress: &SearchEvent) -> Frame {
        let mut chunk = self.envelope(object, Vec::new());
        chunk["search_event"] = json!(progress);
        Frame::of(&chunk)
    }

    /// The end of a stream: what is known of the answer, then OpenAI's mark.
    pub fn last_frames(&self, object: &str, summary: &Summary) -> Vec<Frame> {
        let done = Frame {
            name: None,
            data: "[DONE]".to_owned(),
        };
        let tells = summary.search.is_some() || (self.tells_trace && summary.traces.is_some());
        if !tells && !self.include_usage {
            return vec![done];
        }
        let mut chunk = self.envelope(object, Vec::new());
        if let Some(search) = &summary.search {
            chunk["search"] = search.clone();
        }
        tell_traces(&mut chunk, summary);
        if let Some(adaptation) = &summary.adaptation {
            chunk["adaptation"] = adaptation.clone();
        }
        if self.include_usage {
            chunk["usage"] = usage(&summary.usage);
        }
        vec![Frame::of(&chunk), done]
    }

    /// Adds what is known once all choices have ended to a body.
    pub fn conclude(&self, body: &mut Value, summary: &Summary) {
        body["usage"] = usage(&summary.usage);
        if let Some(search) = &summary.search {
            body["search"] = search.clone();
        }
        if let Some(adaptation) = &summary.adaptation {
            body["adaptation"] = adaptation.clone();
        }
        tell_traces(body, summary);
    }
}

fn tell_traces(body: &mut Value, summary: &Summary) {
    match summary.traces.as_deref() {
        None => {}
        Some([id]) => body["trace_id"] = json!(id),
        Some(ids) => body["trace_ids"] = json!(ids),
    }
}

/// OpenAI's `usage`.
fn usage(usage: &Usage) -> Value {
    let drafts = usage.drafts;
    let mut json = json!({
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.num_reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": drafts.num_accepted_tokens,
            "rejected_prediction_tokens":
                drafts.num_draft_tokens.saturating_sub(drafts.num_accepted_tokens),
        },
    });
    if let Some(count) = usage.num_tool_output_tokens {
        json["completion_tokens_details"]["tool_output_tokens"] = count.into();
    }
    json
}

/// Adds to a choice, or a chunk of one, what of its text programs have printed.
pub(super) fn tell_tool_outputs(choice: &mut Value, outputs: &[ToolOutput]) {
    if !outputs.is_empty() {
        let outputs = outputs.iter().map(ToolOutput::json);
        choice["ponder_tool_outputs"] = outputs.collect();
    }
}

/// vLLM's `prompt_logprobs`: a map from token id to logprob and text for each prompt token. Null
/// when there are none.
pub(super) fn prompt_logprobs(report: Option<&PromptReport>) -> Value {
    let Some(tokens) = report.and_then(|report| report.tokens.as_ref()) else {
        return Value::Null;
    };
    let of = |entry: &TokenLogprob| {
        let own = (&entry.token, entry.logprob);
        let top = entry.top.iter().map(|(token, logprob)| (token, *logprob));
        let entry = |(token, logprob): (&Token, f32)| {
            (
                token.id.to_string(),
                json!({"logprob": logprob, "decoded_token": token.text()}),
            )
        };
        Value::Object(top.chain([own]).map(entry).collect())
    };
    let tokens = tokens.iter();
    tokens
        .map(|(_, logprob)| logprob.as_ref().map_or(Value::Null, of))
        .collect()
}
