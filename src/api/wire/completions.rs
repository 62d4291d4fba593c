//! `/v1/completions`: bodies and chunks, whose choices have one shape.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::envelope::{Head, prompt_logprobs};
use super::format::{Format, Frame};
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
    /// By choice: where the next token's text begins, in characters; `None` before the first chunk.
    offsets: Vec<Option<usize>>,
}

impl CompletionsFormat {
    pub fn new(head: Head) -> Self {
        Self {
            head,
            prompts: BTreeMap::new(),
            offsets: Vec::new(),
        }
    }

    /// The choice as it is sent. Its first part begins with the prompt when that is echoed.
    fn choice(&mut self, index: usize, delta: Delta, end: Option<&ChoiceEnd>) -> Value {
        if self.offsets.len() <= index {
            self.offsets.resize(index + 1, None);
        }
        let is_first = self.offsets[index].is_none();
        let offset = self.offsets[index].get_or_insert(0);
        let prompt = self.prompts.get(&(index / self.head.n.max(1)));
        let echoed = prompt.filter(|report| is_first && report.echo.is_some());
        let mut text = delta.text;
        if let Some(echo) = echoed.and_then(|report| report.echo.as_ref()) {
            text.insert_str(0, echo);
        }
        let logprobs = delta.logprobs.map_or(Value::Null, |tokens| {
            let echoed = echoed.and_then(|report| report.tokens.as_deref());
            let echoed = echoed.unwrap_or_default().iter();
            let echoed = echoed.map(|(token, logprob)| (token, logprob.as_ref()));
            let own = tokens.iter().map(|entry| (&entry.token, Some(entry)));
            logprobs(echoed.chain(own), offset)
        });
        json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.map(|end| end.reason.name()),
            "stop_reason": end.and_then(|end| end.stop.as_ref()).map(StopReason::json),
        })
    }

    fn body_choice(&mut self, index: usize, choice: WholeChoice) -> Value {
        let delta = Delta {
            text: choice.text,
            logprobs: choice.logprobs,
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

/// OpenAI's `logprobs` object; `offset` is where the first token's text begins, and then where the
/// next one's does.
fn logprobs<'a>(
    tokens: impl Iterator<Item = (&'a Token, Option<&'a TokenLogprob>)>,
    offset: &mut usize,
) -> Value {
    let (mut texts, mut values, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
    for (token, entry) in tokens {
        let text = token.text();
        offsets.push(*offset);
        *offset += text.chars().count();
        texts.push(text);
        values.push(entry.map(|entry| entry.logprob));
        top.push(entry.map(|entry| {
            let entries = entry.top.iter();
            let entries = entries.map(|(token, logprob)| (token.text(), (*logprob).into()));
            entries.collect::<Map<String, Value>>()
        }));
    }
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets})
}
