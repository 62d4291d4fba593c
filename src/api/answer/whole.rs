//! An answer that is sent as a whole: its events, put together.

use super::event::{AnswerEvent, ChoiceEnd, Delta, PromptReport, Summary, TokenLogprob};

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
    pub text: String,
    pub logprobs: Option<Vec<TokenLogprob>>,
    pub end: Option<ChoiceEnd>,
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
        whole.text.push_str(&delta.text);
        if let Some(logprobs) = delta.logprobs {
            whole.logprobs.get_or_insert_default().extend(logprobs);
        }
    }

    /// What is known of a prompt.
    pub fn prompt(&self, prompt: usize) -> Option<&PromptReport> {
        self.prompts.iter().find(|report| report.prompt == prompt)
    }
}
