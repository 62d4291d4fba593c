//! `/v1/chat/completions`: bodies and chunks.

use serde_json::{Map, Value, json};

use super::envelope::{Head, prompt_logprobs, tell_tool_outputs};
use super::format::{Format, Frame};
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, Token, TokenLogprob, ToolCallDelta, ToolOutput,
};
use crate::api::answer::whole::{ToolCall, Whole, WholeChoice};

pub(super) const ID_PREFIX: &str = "chatcmpl";
const BODY: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";

/// One chat answer.
pub(super) struct ChatFormat {
    head: Head,
    /// Choices whose role was sent.
    started: Vec<bool>,
    /// The prompt's tokens, which the first chunk of each choice tells.
    prompt_token_ids: Option<Vec<u32>>,
}

/// What a chunk tells of the tokens since the one before.
#[derive(Debug, Default)]
struct Tokens {
    logprobs: Value,
    token_ids: Option<Vec<u32>>,
    /// What of the text the model did not write.
    tool_outputs: Vec<ToolOutput>,
}

impl ChatFormat {
    pub fn new(head: Head) -> Self {
        Self {
            head,
            started: Vec::new(),
            prompt_token_ids: None,
        }
    }

    fn chunk(&self, index: usize, delta: Value, tokens: Tokens, reason: Option<&str>) -> Frame {
        let mut choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": tokens.logprobs,
            "finish_reason": reason,
        });
        if let Some(token_ids) = tokens.token_ids {
            choice["token_ids"] = token_ids.into();
        }
        tell_tool_outputs(&mut choice, &tokens.tool_outputs);
        self.head.chunk(CHUNK, choice)
    }

    /// The first chunk of a choice.
    fn role(&self, index: usize) -> Frame {
        let choice = json!({
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": null,
            "finish_reason": null,
        });
        let mut chunk = self.head.chunk_json(CHUNK, choice);
        if let Some(token_ids) = &self.prompt_token_ids {
            chunk["prompt_token_ids"] = token_ids.as_slice().into();
        }
        Frame::of(&chunk)
    }

    /// The role comes alone before all else of a choice, the finish reason alone after it.
    fn chunks(&mut self, index: usize, delta: Delta, end: Option<&ChoiceEnd>) -> Vec<Frame> {
        if self.started.len() <= index {
            self.started.resize(index + 1, false);
        }
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.started[index], true) {
            frames.push(self.role(index));
        }
        let tells_token_ids = self.head.tells_token_ids && !delta.token_ids.is_empty();
        let has_tokens = delta.logprobs.is_some() || tells_token_ids;
        let mut tokens = Tokens {
            logprobs: logprobs(&self.head, delta.logprobs),
            token_ids: tells_token_ids.then_some(delta.token_ids),
            tool_outputs: delta.tool_outputs,
        };
        let mut parts = Vec::new();
        if !delta.reasoning.is_empty() {
            parts.push(thought(&delta.reasoning));
        }
        if !delta.text.is_empty() {
            parts.push(json!({"content": delta.text}));
        }
        for call in delta.tool_calls {
            parts.extend(call_parts(call, self.head.is_legacy));
        }
        if parts.is_empty() && has_tokens {
            parts.push(json!({}));
        }
        for part in parts {
            // Tokens come with the first part of what they say.
            let tokens = std::mem::take(&mut tokens);
            frames.push(self.chunk(index, part, tokens, None));
        }
        if let Some(end) = end {
            let reason = Some(reason(end, self.head.is_legacy));
            frames.push(self.chunk(index, json!({}), Tokens::default(), reason));
        }
        frames
    }
}

/// A thought, under the names that DeepSeek's and vLLM's clients read.
fn thought(text: &str) -> Value {
    json!({"reasoning_content": text, "reasoning": text})
}

/// A call begins with its name and no arguments.
fn call_parts(call: ToolCallDelta, is_legacy: bool) -> Vec<Value> {
    let ToolCallDelta {
        index,
        head,
        arguments,
    } = call;
    let mut parts = Vec::new();
    if let Some(head) = head {
        let function = json!({"name": head.name, "arguments": ""});
        parts.push(match is_legacy {
            true => json!({"function_call": function}),
            false => json!({"tool_calls": [{
                "index": index, "id": head.id, "type": "function", "function": function,
            }]}),
        });
    }
    if !arguments.is_empty() {
        let function = json!({"arguments": arguments});
        parts.push(match is_legacy {
            true => json!({"function_call": function}),
            false => json!({"tool_calls": [{"index": index, "function": function}]}),
        });
    }
    parts
}

fn reason(end: &ChoiceEnd, is_legacy: bool) -> &'static str {
    match end.reason {
        EndReason::ToolCalls if is_legacy => "function_call",
        reason => reason.name(),
    }
}

impl Format for ChatFormat {
    fn body(&mut self, whole: Whole) -> Value {
        let prompt_logprobs = prompt_logprobs(whole.prompt(0));
        let prompt = whole.prompt(0);
        let prompt_token_ids = prompt.and_then(|report| report.token_ids.clone());
        let choices = whole.choices.into_iter().enumerate();
        let choices = choices.map(|(index, choice)| body_choice(&self.head, index, choice));
        let mut body = self.head.envelope(BODY, choices.collect());
        if self.head.shows_prompt_logprobs {
            body["prompt_logprobs"] = prompt_logprobs;
        }
        if self.head.tells_token_ids {
            body["prompt_token_ids"] = prompt_token_ids.into();
        }
        self.head.conclude(&mut body, &whole.summary);
        body
    }

    fn frames(&mut self, event: AnswerEvent) -> Vec<Frame> {
        match event {
            // Streams have no place for log-probabilities of the prompt.
            AnswerEvent::Prompt(report) => {
                let token_ids = report.token_ids.filter(|_| self.head.tells_token_ids);
                self.prompt_token_ids = token_ids;
                Vec::new()
            }
            AnswerEvent::Delta { choice, delta } => self.chunks(choice, delta, None),
            AnswerEvent::End { choice, last, end } => self.chunks(choice, last, Some(&end)),
            AnswerEvent::Search(progress) => vec![self.head.progress(CHUNK, &progress)],
            AnswerEvent::Done(summary) => self.head.last_frames(CHUNK, &summary),
        }
    }
}

fn body_choice(head: &Head, index: usize, choice: WholeChoice) -> Value {
    let is_legacy = head.is_legacy;
    let end = choice.end.as_ref();
    let mut body = json!({
        "index": index,
        "message": message(choice.text, &choice.reasoning, choice.tool_calls, is_legacy),
        "logprobs": logprobs(head, choice.logprobs),
        "finish_reason": end.map(|end| reason(end, is_legacy)),
    });
    if let Some(value) = choice.end.and_then(|end| end.value) {
        body["value"] = value.into();
    }
    if head.tells_token_ids {
        body["token_ids"] = choice.token_ids.into();
    }
    tell_tool_outputs(&mut body, &choice.tool_outputs);
    body
}

/// A message without text is null where it calls.
fn message(text: String, reasoning: &str, calls: Vec<ToolCall>, is_legacy: bool) -> Value {
    let content = match text.is_empty() && !calls.is_empty() {
        true => Value::Null,
        false => text.into(),
    };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
        message["reasoning"] = reasoning.into();
    }
    let mut calls = calls.into_iter().peekable();
    if calls.peek().is_none() {
        return message;
    }
    let function = |call: &ToolCall| json!({"name": call.head.name, "arguments": call.arguments});
    if is_legacy {
        message["function_call"] = calls.next().as_ref().map(function).into();
        return message;
    }
    let calls = calls
        .map(|call| json!({"id": call.head.id, "type": "function", "function": function(&call)}));
    message["tool_calls"] = calls.collect();
    message
}

/// OpenAI's `logprobs` object.
fn logprobs(head: &Head, tokens: Option<Vec<TokenLogprob>>) -> Value {
    let Some(tokens) = tokens else {
        return Value::Null;
    };
    let content = tokens.iter().map(|entry| {
        let mut own = token_json(head, &entry.token, entry.logprob);
        let top = entry.top.iter();
        let top: Vec<Value> = top
            .map(|(token, logprob)| token_json(head, token, *logprob).into())
            .collect();
        own.insert("top_logprobs".to_owned(), top.into());
        Value::Object(own)
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn token_json(head: &Head, token: &Token, logprob: f32) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("token".to_owned(), head.token_name(token).into());
    entry.insert("logprob".to_owned(), logprob.into());
    entry.insert("bytes".to_owned(), token.bytes.as_slice().into());
    entry
}
