//! Answers that call code: where the policy ends a block of Python, the block runs, what it prints
//! goes into the answer, and another request goes on behind it. Whoever reads the events sees one
//! request, with insertions between its tokens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt};

use super::branch_constraint::BranchConstraint;
use super::confidence::{ConfidenceRule, Groups};
use super::context::now;
use super::step::{StepRule, StepWatcher};
use super::text_rules::{Standing, TextRules};
use crate::engine::{
    DraftCounts, Engine, EngineError, FinishReason, GenerateRequest, RequestStream, SamplingParams,
    StreamEvent, TokenId, TokenWatcher, Watch,
};
use crate::tool::{CodeCall, CodeTool, output_text};

/// How long a request waits before it tries again to enter a full queue.
const RETRY: Duration = Duration::from_millis(20);
/// Added to the number of a call in the key of what follows it: no expansion has such a number.
const CALL_KEY: u32 = 1 << 30;

/// Text that the policy did not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insertion {
    pub token_ids: Vec<TokenId>,
    pub text: String,
    pub call: Arc<CodeCall>,
}

/// What comes of a request whose answers may call code.
#[derive(Debug, Clone)]
pub enum CodeEvent {
    Engine(StreamEvent),
    /// Behind the tokens of continuation `index` so far.
    Inserted {
        index: usize,
        insertion: Insertion,
    },
}

/// A request whose answers may call code.
#[derive(Clone)]
pub struct Calling {
    pub engine: Engine,
    pub tool: Arc<CodeTool>,
    pub rules: TextRules,
    /// As it stands at an answer's beginning.
    pub constraint: Option<BranchConstraint>,
    /// Where the answers go on.
    pub prefix: Prefix,
    /// Where a step ends, and what that means.
    pub step: Option<(StepRule, Watch)>,
    /// Where answers end that the policy is not sure of.
    pub confidence: Option<ConfidenceRule>,
}

/// An answer so far.
#[derive(Debug, Clone, Default)]
pub struct Prefix {
    /// What the prompt ends with, as far as the answer goes on with it: a block may begin there.
    pub before: String,
    /// The policy's own tokens.
    pub own: Vec<TokenId>,
    /// What the policy wrote since the last call.
    pub text: String,
    pub calls: Vec<Arc<CodeCall>>,
}

impl Calling {
    fn watcher(&self) -> StepWatcher {
        let standing = Standing {
            num_own: self.prefix.own.len(),
            before: match self.prefix.calls.is_empty() {
                true => &self.prefix.before,
                false => "",
            },
            text: &self.prefix.text,
            may_call: self.prefix.calls.len() < self.tool.limits.max_calls,
        };
        let confidence = self.confidence.map(Groups::new);
        self.rules.watcher(standing, self.step.clone(), confidence)
    }

    /// The request with what it needs to stop where code runs.
    pub fn prepare(&self, request: GenerateRequest) -> GenerateRequest {
        GenerateRequest {
            watcher: Some(Box::new(self.watcher())),
            ..request
        }
    }

    /// The events of a request, which `stream` begins. Dropping them ends requests and programs.
    pub fn events(
        self,
        request: GenerateRequest,
        stream: RequestStream,
    ) -> BoxStream<'static, CodeEvent> {
        let choice = Choice {
            watcher: self.watcher(),
            calls: self.prefix.calls.clone(),
            token_ids: Vec::new(),
            own: Vec::new(),
            drafts: DraftCounts::default(),
        };
        let running = Running {
            choices: vec![choice; request.n],
            request: GenerateRequest {
                watcher: None,
                constraint: None,
                ..request
            },
            calling: self,
            streams: SelectAll::from_iter([stream.numbered(0)]),
            jobs: FuturesUnordered::new(),
            ready: VecDeque::new(),
        };
        let events = futures::stream::unfold(running, |mut running| async move {
            let event = running.next().await?;
            Some((event, running))
        });
        events.boxed()
    }
}

/// One answer.
#[derive(Clone)]
struct Choice {
    /// In the state of the engine's own.
    watcher: StepWatcher,
    /// Of the whole answer.
    calls: Vec<Arc<CodeCall>>,
    /// Behind the prefix.
    token_ids: Vec<TokenId>,
    /// Those that the policy wrote.
    own: Vec<TokenId>,
    drafts: DraftCounts,
}

/// What happens between the requests of an answer.
enum Done {
    /// `None` when the deadline came first.
    Called(Option<Arc<CodeCall>>),
    Submitted(Result<RequestStream, EngineError>),
}

struct Running {
    calling: Calling,
    /// The first one: those behind calls differ from it by what came before them.
    request: GenerateRequest,
    choices: Vec<Choice>,
    /// The first request's has number 0, that of a choice behind a call the next number.
    streams: SelectAll<BoxStream<'static, (usize, StreamEvent)>>,
    jobs: FuturesUnordered<BoxFuture<'static, (usize, Done)>>,
    ready: VecDeque<CodeEvent>,
}

impl Running {
    async fn next(&mut self) -> Option<CodeEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            tokio::select! {
                Some((number, event)) = self.streams.next(), if !self.streams.is_empty() => {
                    self.take(number, event);
                }
                Some((choice, done)) = self.jobs.next(), if !self.jobs.is_empty() => {
                    self.go_on(choice, done);
                }
                else => return None,
            }
        }
    }

    fn tell(&mut self, event: StreamEvent) {
        self.ready.push_back(CodeEvent::Engine(event));
    }

    fn finish(&mut self, index: usize, reason: FinishReason) {
        let drafts = self.choices[index].drafts;
        self.tell(StreamEvent::Finished {
            index,
            reason,
            drafts,
        });
    }

    /// Takes an event of the engine; what is told is as if there were one request.
    fn take(&mut self, number: usize, event: StreamEvent) {
        let place = |index: usize| number.checked_sub(1).unwrap_or(index);
        match event {
            StreamEvent::PromptDone { .. } if number > 0 => {}
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                hidden_state,
            } => {
                let index = place(index);
                let choice = &mut self.choices[index];
                choice.watcher.push(token_id, logprobs.as_ref());
                choice.token_ids.push(token_id);
                choice.own.push(token_id);
                self.tell(StreamEvent::Token {
                    index,
                    token_id,
                    logprobs,
                    hidden_state,
                });
            }
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                let index = place(index);
                let choice = &mut self.choices[index];
                choice.drafts += drafts;
                let is_full = choice.own.len() >= self.request.params.max_tokens;
                let code = choice.watcher.closed_block();
                match code.filter(|_| reason == FinishReason::Watcher) {
                    // Nothing could follow it.
                    Some(_) if is_full => self.finish(index, FinishReason::Length),
                    Some(code) => self.call(index, code),
                    None => self.finish(index, reason),
                }
            }
            event => self.tell(event),
        }
    }

    fn call(&self, index: usize, code: String) {
        let tool = Arc::clone(&self.calling.tool);
        let calls = self.choices[index].calls.clone();
        let deadline = self.request.deadline;
        let job = async move {
            let call = tool.call(&calls, code, deadline).await;
            (index, Done::Called(call))
        };
        self.jobs.push(job.boxed());
    }

    fn go_on(&mut self, index: usize, done: Done) {
        match done {
            Done::Called(None) => self.finish(index, FinishReason::Deadline),
            Done::Called(Some(call)) => self.insert(index, call),
            Done::Submitted(Ok(stream)) => self.streams.push(stream.numbered(index + 1)),
            Done::Submitted(Err(EngineError::Overloaded { .. })) if self.is_late() => {
                self.finish(index, FinishReason::Deadline);
            }
            Done::Submitted(Err(error)) => self.tell(StreamEvent::Error(error)),
        }
    }

    fn is_late(&self) -> bool {
        self.request.deadline.is_some_and(|latest| latest <= now())
    }

    /// Puts a program's output into an answer, and asks for what follows.
    fn insert(&mut self, index: usize, call: Arc<CodeCall>) {
        let choice = &mut self.choices[index];
        let text = output_text(&call, choice.watcher.is_at_line_start());
        let prompt = &self.request.prompt_token_ids;
        let context = self.calling.engine.config().max_model_len;
        // At least one token must fit behind it.
        let room = context.saturating_sub(prompt.len() + choice.token_ids.len() + 1);
        let tokenizer = &self.calling.rules.tokenizer;
        // What a program prints is text: it names no control tokens.
        let token_ids = tokenizer.encode_within(&text, false, false, room, &|| true);
        let Ok(token_ids) = token_ids else {
            return self.finish(index, FinishReason::Length);
        };
        choice.token_ids.extend(&token_ids);
        choice.calls.push(Arc::clone(&call));
        let insertion = Insertion {
            token_ids,
            text,
            call,
        };
        self.ready
            .push_back(CodeEvent::Inserted { index, insertion });
        // A step ends with the output of its code.
        if matches!(self.calling.step, Some((_, Watch::End))) {
            return self.finish(index, FinishReason::Watcher);
        }
        match self.next_request(index) {
            Ok(request) => {
                let (engine, deadline) = (self.calling.engine.clone(), self.request.deadline);
                let job = async move {
                    let stream = submit(&engine, request, deadline).await;
                    (index, Done::Submitted(stream))
                };
                self.jobs.push(job.boxed());
            }
            Err(error) => self.tell(StreamEvent::Error(error)),
        }
    }

    /// What goes on behind a choice's newest call.
    fn next_request(&mut self, index: usize) -> Result<GenerateRequest, EngineError> {
        let (choice, first) = (&mut self.choices[index], &self.request);
        let prefix = &self.calling.prefix;
        let own = [prefix.own.as_slice(), &choice.own].concat();
        let constraint = self.calling.constraint.as_ref();
        let constraint = constraint.map(|constraint| constraint.after(&own));
        let constraint = constraint.transpose();
        let constraint = constraint.map_err(|error| EngineError::Constraint(error.0))?;
        let standing = Standing {
            num_own: own.len(),
            before: "",
            text: "",
            may_call: choice.calls.len() < self.calling.tool.limits.max_calls,
        };
        // Steps are noted behind an output, too, and a group of tokens may reach across it.
        let (step, confidence) = (self.calling.step.clone(), choice.watcher.take_confidence());
        choice.watcher = self.calling.rules.watcher(standing, step, confidence);
        let key = CALL_KEY + choice.calls.len() as u32;
        Ok(GenerateRequest {
            prompt_token_ids: [first.prompt_token_ids.as_slice(), &choice.token_ids].concat(),
            params: SamplingParams {
                max_tokens: first.params.max_tokens - choice.own.len(),
                min_tokens: first.params.min_tokens.saturating_sub(choice.own.len()),
                prompt_logprobs: None,
                ..first.params.clone()
            },
            n: 1,
            branch_path: [first.branch_path.as_slice(), &[index as u32, key]].concat(),
            watcher: Some(Box::new(choice.watcher.clone())),
            constraint,
            ..first.clone()
        })
    }
}

/// Enters the queue, however long that takes.
async fn submit(
    engine: &Engine,
    request: GenerateRequest,
    deadline: Option<std::time::Instant>,
) -> Result<RequestStream, EngineError> {
    loop {
        match engine.submit(request.clone()) {
            Err(EngineError::Overloaded { .. }) if deadline.is_none_or(|it| it > now()) => {
                tokio::time::sleep(RETRY).await;
            }
            result => return result,
        }
    }
}
