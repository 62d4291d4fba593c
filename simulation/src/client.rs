//! A client of the engine: it asks, reads, hangs up, forks, and knows what it should have got.

use ponder::engine::{EngineError, FinishReason, RequestStream, SamplingParams};

use crate::answer::{Answer, Choice};
use crate::plan::Plan;
use crate::setup::Setup;

/// Choice `index` of another client's request, continued from wherever it was.
#[derive(Debug)]
pub struct Fork {
    pub parent: usize,
    pub index: usize,
    pub params: SamplingParams,
}

pub struct Client {
    /// What it asked; of a fork it is known once its parent's tokens are.
    pub plan: Option<Plan>,
    pub fork: Option<Fork>,
    pub stream: Option<RequestStream>,
    pub answer: Answer,
    /// Its adapter was given up while it was on its way.
    pub may_lack_adapter: bool,
}

impl Client {
    pub fn new(plan: Plan, stream: RequestStream) -> Self {
        Self {
            answer: Answer::new(plan.request.n),
            plan: Some(plan),
            fork: None,
            stream: Some(stream),
            may_lack_adapter: false,
        }
    }

    pub fn forked(fork: Fork, stream: RequestStream, n: usize) -> Self {
        Self {
            plan: None,
            fork: Some(fork),
            stream: Some(stream),
            answer: Answer::new(n),
            may_lack_adapter: false,
        }
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// An event that may not come.
    pub fn read(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while let Ok(event) = stream.try_recv() {
            self.answer.take(event)?;
        }
        Ok(())
    }

    /// Whether nothing more is to come.
    pub fn is_over(&self) -> bool {
        self.stream.is_none() || self.answer.is_over()
    }

    /// Compares what came with what a request of this plan gets alone.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, setup: &Setup) -> Result<(), String> {
        match &self.answer.error {
            None => {}
            Some(EngineError::UnknownAdapter) if self.may_lack_adapter => return Ok(()),
            Some(EngineError::UnknownRequest(_)) if self.fork.is_some() => return Ok(()),
            // It must fail alone, too.
            Some(EngineError::Constraint(_)) => {}
            Some(error) => return Err(format!("failed: {error}")),
        }
        let is_read_to_the_end = self.stream.is_some();
        if is_read_to_the_end && !self.answer.is_over() {
            return Err("never ended".to_owned());
        }
        let Some(plan) = &self.plan else {
            // A fork that was left before its first event.
            return Ok(());
        };
        let alone = plan.alone(setup)?;
        if self.answer.num_adaptations != alone.num_adaptations {
            // Where the cache is full a phase of adaptation is left out.
            return Ok(());
        }
        let does_fail = alone.error.is_some();
        if self.answer.error != alone.error && !(does_fail && self.may_miss_its_end()) {
            return Err(format!("{:?}, alone {:?}", self.answer.error, alone.error));
        }
        for (index, (choice, expected)) in
            self.answer.choices.iter().zip(&alone.choices).enumerate()
        {
            let mut expected = expected.clone();
            if does_fail {
                // How far the other choices are when one fails is a matter of steps.
                let num_tokens = expected.tokens.len().min(choice.tokens.len());
                expected.tokens.truncate(num_tokens);
                if choice.tokens.len() > num_tokens {
                    continue;
                }
            }
            compare(choice, &expected)
                .map_err(|difference| format!("choice {index}: {difference}"))?;
        }
        if self.answer.prompt_logprobs.is_some()
            && self.answer.prompt_logprobs != alone.prompt_logprobs
        {
            return Err("other logprobs of the prompt".to_owned());
        }
        let num_pooled = self.answer.pooled.len();
        let is_same = alone.pooled.get(..num_pooled) == Some(&self.answer.pooled[..]);
        let is_whole = num_pooled == alone.pooled.len() || !is_read_to_the_end;
        match is_same && (is_whole || self.is_cut()) {
            true => Ok(()),
            false => Err("other logits read".to_owned()),
        }
    }

    /// Whether it was left, or cut from outside.
    fn may_miss_its_end(&self) -> bool {
        self.stream.is_none() || self.is_cut()
    }

    fn is_cut(&self) -> bool {
        self.answer
            .choices
            .iter()
            .any(|choice| is_cut(choice.reason))
    }
}

/// Ends that come from outside the text.
fn is_cut(reason: Option<FinishReason>) -> bool {
    matches!(
        reason,
        None | Some(FinishReason::Abort | FinishReason::Deadline | FinishReason::Budget)
    )
}

fn compare(choice: &Choice, alone: &Choice) -> Result<(), String> {
    let num_tokens = choice.tokens.len();
    let (ids, expected) = (choice.token_ids(), alone.token_ids());
    if expected.get(..num_tokens) != Some(&ids[..]) {
        return Err(format!("{ids:?} is not what it gets alone: {expected:?}"));
    }
    for (at, (seen, alone)) in choice.tokens.iter().zip(&alone.tokens).enumerate() {
        // A state is reported of the last token, wherever that is.
        if seen.logprobs != alone.logprobs {
            return Err(format!("other logprobs at {at}"));
        }
        if let (Some(seen), Some(alone)) = (&seen.hidden_state, &alone.hidden_state)
            && seen != alone
        {
            return Err(format!("another hidden state at {at}"));
        }
    }
    if is_cut(choice.reason) || choice.reason == alone.reason {
        return Ok(());
    }
    Err(format!(
        "ended with {:?}, alone with {:?}",
        choice.reason, alone.reason
    ))
}
