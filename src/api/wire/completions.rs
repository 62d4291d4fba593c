//! `/v1/completions`: bodies and chunks, whose choices have one shape.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

use super::envelope::{Head, prompt_logprobs, tell_tool_outputs};
use super::format::{Format, Frame};
use super::offsets::Offsets;
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, PromptReport, StopReason, Token, TokenLogprob,
};
use crate::api::answer::whole::{Whole, WholeChoice};

pub(super) const ID_PREFIX: &str = "cmpl";
const OBJECT: &str = "text_completion";

/// One completion.
pub(super) struct CompletionsFormat {
    head: Head,
    /// By prompt.
    prompts: BTreeMap<usize, PromptReport>,
    /// By choice; `None` before the first chunk.
    offsets: Vec<Option<Offsets>>,
    /// By choice: what of its text has no tokens among the log-probabilities.
    skipped: Vec<Skipped>,
}

impl CompletionsFormat {
    pub fn new(head: Head) -> Self {
        Self {
            head,
            prompts: BTreeMap::new(),
            offsets: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// The choice as it is sent. Its first part begins with the prompt when that is echoed.
    fn choice(&mut self, index: usize, delta: Delta, end: Option<&ChoiceEnd>) -> Value {
        if self.offsets.len() <= index {
            self.offsets.resize_with(index + 1, || None);
            self.skipped.resize_with(index + 1, Skipped::default);
        }
        let is_first = self.offsets[index].is_none();
        let offsets = self.offsets[index].get_or_insert_default();
        let prompt = self.prompts.get(&(index / self.head.n.max(1)));
        let echoed = prompt.filter(|report| is_first && report.echo.is_some());
        let mut text = delta.text;
        if let Some(echo) = echoed.and_then(|report| report.echo.as_ref()) {
            text.insert_str(0, echo);
        }
        let skipped = &mut self.skipped[index];
        let parts = delta.tool_outputs.iter();
        let parts = parts.map(|it| (it.num_before, it.text.chars().count()));
        skipped.parts.extend(parts);
        let logprobs = delta.logprobs.map_or(Value::Null, |tokens| {
            let mut lists = Lists::new(&self.head, offsets);
            let echoed = echoed.and_then(|report| report.tokens.as_deref());
            for (token, logprob) in echoed.unwrap_or_default() {
                lists.push(token, logprob.as_ref());
            }
            if is_first {
                lists.offsets.end_of_prompt();
            }
            for entry in &tokens {
                lists.offsets.skip(skipped.before_next());
                lists.push(&entry.token, Some(entry));
            }
            lists.json()
        });
        let mut choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.map(|end| end.reason.name()),
            "stop_reason": end.and_then(|end| end.stop.as_ref()).map(StopReason::json),
        });
        if self.head.tells_token_ids {
            choice["token_ids"] = delta.token_ids.into();
            let own = prompt.filter(|_| is_first);
            choice["prompt_token_ids"] = own.and_then(|report| report.token_ids.clone()).into();
        }
        tell_tool_outputs(&mut choice, &delta.tool_outputs);
        choice
    }

    fn body_choice(&mut self, index: usize, choice: WholeChoice) -> Value {
        let delta = Delta {
            text: choice.text,
            logprobs: choice.logprobs,
            token_ids: choice.token_ids,
            tool_outputs: choice.tool_outputs,
            ..Delta::default()
        };
        let mut body = self.choice(index, delta, choice.end.as_ref());
        if let Some(value) = choice.end.and_then(|end| end.value) {
            body["value"] = value.into();
        }
        if self.head.shows_prompt_logprobs {
            let prompt = index / self.head.n.max(1);
            body["prompt_logprobs"] = prompt_logprobs(self.prompts.get(&prompt));
        }
        body
    }

    fn chunk(&mut self, index: usize, delta: Delta, end: Option<&ChoiceEnd>) -> Vec<Frame> {
        let choice = self.choice(index, delta, end);
        vec![self.head.chunk(OBJECT, choice)]
    }
}

/// What programs have printed into a choice: none of it has log-probabilities.
#[derive(Debug, Default)]
struct Skipped {
    /// Characters, each with the number of entries before them.
    parts: VecDeque<(usize, usize)>,
    /// Entries so far.
    num_entries: usize,
}

impl Skipped {
    /// Characters before the next entry that belong to none.
    fn before_next(&mut self) -> usize {
        let mut num_chars = 0;
        while let Some((_, chars)) = self.parts.front().filter(|it| it.0 <= self.num_entries) {
            num_chars += chars;
            self.parts.pop_front();
        }
        self.num_entries += 1;
        num_chars
    }
}

impl Format for CompletionsFormat {
    fn body(&mut self, whole: Whole) -> Value {
        for report in whole.prompts {
            self.prompts.insert(report.prompt, report);
        }
        let choices = whole.choices.into_iter().enumerate();
        let choices = choices
            .map(|(index, choice)| self.body_choice(index, choice))
            .collect();
        let mut body = self.head.envelope(OBJECT, choices);
        self.head.conclude(&mut body, &whole.summary);
        body
    }

    fn frames(&mut self, event: AnswerEvent) -> Vec<Frame> {
        match event {
            AnswerEvent::Prompt(report) => {
                self.prompts.insert(report.prompt, report);
                Vec::new()
            }
            AnswerEvent::Delta { choice, delta } => self.chunk(choice, delta, None),
            AnswerEvent::End { choice, last, end } => self.chunk(choice, last, Some(&end)),
            AnswerEvent::Search(progress) => vec![self.head.progress(OBJECT, &progress)],
            AnswerEvent::Done(summary) => self.head.last_frames(OBJECT, &summary),
        }
    }
}

/// OpenAI's `logprobs` object while it grows.
struct Lists<'a> {
    head: &'a Head,
    offsets: &'a mut Offsets,
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl<'a> Lists<'a> {
    fn new(head: &'a Head, offsets: &'a mut Offsets) -> Self {
        Self {
            head,
            offsets,
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            text_offset: Vec::new(),
        }
    }

    /// Adds the next token of the text.
    fn push(&mut self, token: &Token, logprob: Option<&TokenLogprob>) {
        let is_hidden = token.is_special && !self.head.shows_special;
        let bytes = if is_hidden {
            &[]
        } else {
            token.bytes.as_slice()
        };
        self.text_offset.push(self.offsets.push(bytes));
        self.tokens.push(self.head.token_name(token));
        self.token_logprobs.push(logprob.map(|entry| entry.logprob));
        let top = |entry: &TokenLogprob| {
            let entries = entry.top.iter();
            let name = |token: &Token| self.head.token_name(token);
            let entries = entries.map(|(token, logprob)| (name(token), (*logprob).into()));
            entries.collect()
        };
        self.top_logprobs.push(logprob.map(top));
    }

    fn json(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs, "text_offset": self.text_offset})
    }
}
