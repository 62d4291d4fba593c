//! An answer that is sent as a whole: its events, put together.

use super::event::{
    AnswerEvent, ChoiceEnd, Delta, PromptReport, Summary, TokenLogprob, ToolCallDelta,
    ToolCallHead, ToolOutput,
};

/// All of an answer.
#[derive(Debug, Default)]
pub(in crate::api) struct Whole {
    pub prompts: Vec<PromptReport>,
    pub choices: Vec<WholeChoice>,
    pub summary: Summary,
}

/// All of a choice.
#[derive(Debug, Default)]
pub(in crate::api) struct WholeChoice {
    pub reasoning: String,
    pub text: String,
    pub tool_calls: Vec<ToolCall>,
    pub tool_outputs: Vec<ToolOutput>,
    pub logprobs: Option<Vec<TokenLogprob>>,
    pub token_ids: Vec<u32>,
    pub end: Option<ChoiceEnd>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct ToolCall {
    pub head: ToolCallHead,
    /// JSON text.
    pub arguments: String,
}

impl Whole {
    pub fn take(&mut self, event: AnswerEvent) {
        match event {
            AnswerEvent::Prompt(report) => self.prompts.push(report),
            AnswerEvent::Delta { choice, delta } => self.add(choice, delta),
            AnswerEvent::End { choice, last, end } => {
                self.add(choice, last);
                self.choices[choice].end = Some(end);
            }
            // Progress is for those who watch.
            AnswerEvent::Search(_) => {}
            AnswerEvent::Done(summary) => self.summary = *summary,
        }
    }

    fn add(&mut self, choice: usize, delta: Delta) {
        if self.choices.len() <= choice {
            self.choices.resize_with(choice + 1, WholeChoice::default);
        }
        let whole = &mut self.choices[choice];
        whole.reasoning.push_str(&delta.reasoning);
        whole.text.push_str(&delta.text);
        whole.tool_outputs.extend(delta.tool_outputs);
        whole.token_ids.extend(delta.token_ids);
        for ToolCallDelta {
            index,
            head,
            arguments,
        } in delta.tool_calls
        {
            if let Some(head) = head {
                let arguments = String::new();
                whole.tool_calls.push(ToolCall { head, arguments });
            }
            if let Some(call) = whole.tool_calls.get_mut(index) {
                call.arguments.push_str(&arguments);
            }
        }
        if let Some(logprobs) = delta.logprobs {
            whole.logprobs.get_or_insert_default().extend(logprobs);
        }
    }

    /// What is known of a prompt.
    pub fn prompt(&self, prompt: usize) -> Option<&PromptReport> {
        self.prompts.iter().find(|report| report.prompt == prompt)
    }
}
