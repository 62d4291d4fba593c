//! The loop. One thread owns the model and the KV cache; a step is plan → schedule → draft → run → sample → commit.

mod adapt;
mod speculate;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::adaptation::{Adaptation, fingerprint};
use super::adapters::{AdapterTable, salted};
use super::batch::{ScheduledBatch, ScheduledRows};
use super::handle::{ForkParams, Shared};
use super::logprobs::token_logprobs;
use super::request::{EngineError, FinishReason, GenerateRequest, RequestId, StreamEvent};
use super::runner::{LogitsOf, Runner};
use super::sampler::Sampler;
use super::scheduler::Scheduler;
use super::sequence::{Appended, Sequence};
use super::speculative::{Draft, DraftCounts, Drafter, Speculative, Speculator};
use crate::model::{AdapterId, CausalLm, LoraAdapter};
use speculate::running_rows;

pub(super) struct Submission {
    pub id: RequestId,
    pub sender: UnboundedSender<StreamEvent>,
    pub request: GenerateRequest,
}

pub(super) enum Command {
    Submit(Box<Submission>),
    Fork {
        id: RequestId,
        sender: UnboundedSender<StreamEvent>,
        source: RequestId,
        index: usize,
        fork: ForkParams,
    },
    Abort(RequestId),
    AbortChoice(RequestId, usize),
    AbortAll,
    LoadAdapter {
        id: AdapterId,
        adapter: LoraAdapter,
        done: oneshot::Sender<Result<(), EngineError>>,
    },
    UnloadAdapter(AdapterId),
    Shutdown,
}

/// A request's stream and how many of its choices are still running.
struct OpenRequest {
    sender: UnboundedSender<StreamEvent>,
    num_unfinished: usize,
    is_prompt_done: bool,
}

pub(super) struct EngineThread {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    scheduler: Scheduler,
    runner: Runner,
    /// A small model that drafts. Its KV lies in blocks of the same numbers.
    draft_runner: Option<Runner>,
    batch: ScheduledBatch,
    sampler: Sampler,
    speculator: Speculator,
    requests: HashMap<RequestId, OpenRequest>,
    adapters: AdapterTable,
    is_draining: bool,
    /// This thread's share of `Shared::num_waiting`; the rest is still in the channel.
    num_counted: isize,
}

impl EngineThread {
    pub(super) fn new(
        model: Box<dyn CausalLm>,
        draft_model: Option<Box<dyn CausalLm>>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let speculative = shared.config.speculative.clone();
        let speculator = Speculator::new(speculative, draft_model.is_some());
        Self {
            scheduler: Scheduler::new(shared.config.clone()),
            batch: ScheduledBatch::default(),
            runner: Runner::new(model, &shared.config),
            draft_runner: draft_model.map(|model| Runner::new(model, &shared.config)),
            sampler: Sampler::default(),
            speculator,
            requests: HashMap::new(),
            adapters: AdapterTable::default(),
            is_draining: false,
            num_counted: 0,
            shared,
            commands,
        }
    }

    pub(super) fn run(mut self) {
        while self.take_commands() {
            self.end_requests();
            self.drop_adapters();
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            if step.is_err() {
                // The model's state is unknown after a panic: fail everything and stop.
                self.shared.is_healthy.store(false, Ordering::Release);
                self.fail_all("the model panicked; the engine has stopped");
                break;
            }
            self.publish();
        }
        self.shared.is_closed.store(true, Ordering::Release);
        self.publish();
        while let Ok(command) = self.commands.try_recv() {
            let sender = match command {
                Command::Submit(submission) => submission.sender,
                Command::Fork { sender, .. } => sender,
                _ => continue,
            };
            let _ = sender.send(StreamEvent::Error(EngineError::ShuttingDown));
        }
        self.shared.is_finished.store(true, Ordering::Release);
    }

    /// One step of the engine.
    fn step(&mut self) {
        self.adapt();
        let draft_runner = self.draft_runner.as_mut();
        let sequences = self.scheduler.sequences();
        self.speculator
            .prepare(&mut self.runner, draft_runner, sequences);
        let running = &mut self.scheduler.running;
        self.speculator.plan(running, &self.shared.config);
        self.scheduler.schedule(&mut self.batch);
        if self.batch.rows.is_empty() {
            return;
        }
        let running = &self.scheduler.running;
        let is_decoding = |rows: &ScheduledRows| running[rows.running_index].is_decoding();
        let only_decodes = self.batch.rows.iter().all(is_decoding);
        if let Err(error) = self.draft() {
            return self.fail_all(&error.to_string());
        }
        let started = Instant::now();
        if let Err(error) = self.run_batch() {
            return self.fail_all(&error.to_string());
        }
        for index in 0..self.batch.rows.len() {
            let rows = self.batch.rows[index];
            let (num_rows, num_drafted) = running_rows(&self.scheduler, rows);
            self.scheduler
                .commit_rows(ScheduledRows { num_rows, ..rows });
            let logits = self.runner.logits_of(index);
            self.commit(rows.running_index, num_drafted, &logits);
        }
        if only_decodes && let Err(error) = self.learn(started.elapsed()) {
            return self.fail_all(&error.to_string());
        }
        self.scheduler.stats.num_steps += 1;
        self.scheduler.stats.drafts = self.speculator.counts;
        self.end_finished();
    }

    /// Handles what has arrived; waits when there is nothing to do. False ends the thread.
    fn take_commands(&mut self) -> bool {
        loop {
            let command = if self.scheduler.is_idle() {
                if self.is_draining {
                    return false;
                }
                self.publish();
                match self.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(_) => return true,
                }
            };
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Fork {
                id,
                sender,
                source,
                index,
                fork,
            } => self.fork(id, sender, source, index, fork),
            Command::Abort(id) => self.finish_where(FinishReason::Abort, |s| s.request == id),
            Command::AbortChoice(id, index) => {
                self.finish_where(FinishReason::Abort, |s| s.request == id && s.index == index)
            }
            Command::AbortAll => self.finish_where(FinishReason::Abort, |_| true),
            Command::LoadAdapter { id, adapter, done } => {
                let loaded = self.runner.load_adapter(id, &adapter);
                let loaded = loaded.map_err(|error| EngineError::Model(error.to_string()));
                if loaded.is_ok() {
                    self.adapters.add(id);
                }
                let _ = done.send(loaded);
            }
            Command::UnloadAdapter(id) => {
                self.adapters.remove(id);
                self.drop_adapters();
            }
            Command::Shutdown => self.is_draining = true,
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission {
            id,
            sender,
            mut request,
        } = submission;
        if let Some(adapter) = request.adapter
            && !self.adapters.takes_requests(adapter)
        {
            self.num_counted += request.n as isize;
            let _ = sender.send(StreamEvent::Error(EngineError::UnknownAdapter));
            return;
        }
        self.open(id, sender, request.n);
        let adaptation = request.adaptation.take().map(Adaptation::new);
        let default = self.shared.config.speculative.default;
        let mut speculative = request.speculative.unwrap_or(default);
        if adaptation.as_ref().is_some_and(Adaptation::is_repeated) {
            // Phases begin at exact numbers of tokens; an accepted draft could pass one by.
            speculative = Speculative::Off;
        }
        let is_followed = self.draft_runner.is_some()
            && request.pooling.is_none()
            && speculative.allows(Drafter::DraftModel);
        self.scheduler.stats.prompt_tokens += request.prompt_token_ids.len() as u64;
        self.scheduler.add(Sequence {
            cache_salt: salted(
                request.cache_salt,
                request.adapter,
                fingerprint(request.steering.as_deref()),
                is_followed,
            ),
            adaptation,
            num_pending_forks: request.n - 1,
            draft: Draft::new(speculative, std::mem::take(&mut request.prediction)),
            ..Sequence::new(id, request)
        });
    }

    /// Unloads the adapters that were given up, once nothing uses them.
    fn drop_adapters(&mut self) {
        if !self.adapters.has_leaving() {
            return;
        }
        let scheduler = &self.scheduler;
        let is_used = |id| scheduler.sequences().any(|s| s.adapter == Some(id));
        for id in self.adapters.take_unused(is_used) {
            self.runner.unload_adapter(id);
        }
    }

    fn open(&mut self, id: RequestId, sender: UnboundedSender<StreamEvent>, n: usize) {
        self.num_counted += n as isize;
        let request = OpenRequest {
            sender,
            num_unfinished: n,
            is_prompt_done: false,
        };
        self.requests.insert(id, request);
    }

    fn fork(
        &mut self,
        id: RequestId,
        sender: UnboundedSender<StreamEvent>,
        source: RequestId,
        index: usize,
        fork: ForkParams,
    ) {
        let Some(parent) = self.scheduler.find_running(source, index).cloned() else {
            self.num_counted += fork.n as isize;
            let _ = sender.send(StreamEvent::Error(EngineError::UnknownRequest(source.0)));
            return;
        };
        self.open(id, sender, fork.n);
        let params = Arc::new(fork.params);
        for branch in 0..fork.n {
            let mut child = parent.clone();
            child.request = id;
            child.index = branch;
            child.params = Arc::clone(&params);
            child.branch_path.push(branch as u32);
            child.num_prompt_tokens = child.token_ids.len();
            child.num_pending_forks = 0;
            child.prompt_logprobs.clear();
            child.num_cached_tokens = Some(child.num_computed_tokens);
            child.deadline = fork.deadline;
            child.watcher = None;
            child.budget = None;
            child.draft.counts = DraftCounts::default();
            match child.is_adapting() {
                // Its parent's blocks change until the phase is over.
                true => self.scheduler.add(child.without_kv()),
                false => self.scheduler.add_fork(child),
            }
        }
    }

    /// Takes the logits of one sequence's rows, the last `num_drafted` of which are of its draft: prompt logprobs, siblings,
    /// the next tokens.
    fn commit(&mut self, index: usize, num_drafted: usize, logits: &LogitsOf) {
        if self.scheduler.running[index].wants_prompt_logprobs() {
            self.take_prompt_logprobs(index, logits);
        }
        if self.scheduler.running[index].pooling.is_some() {
            return self.take_pooled(index, logits.first);
        }
        let sequence = &self.scheduler.running[index];
        if sequence.num_uncomputed_tokens() > 0 || logits.positions.is_empty() {
            return;
        }
        let row = logits.first + logits.positions.len() - 1 - num_drafted;
        if self.begins_phase(index) {
            return;
        }
        self.announce_prompt(index);
        let num_forks = std::mem::take(&mut self.scheduler.running[index].num_pending_forks);
        for branch in 1..=num_forks {
            let sibling = self.scheduler.running[index].sibling(branch);
            self.scheduler.add_fork(sibling);
            let sibling_index = self.scheduler.running.len() - 1;
            self.append_token(sibling_index, row);
        }
        self.verify(index, num_drafted, row);
    }

    /// Positions `p` of the step predict prompt token `p + 1`.
    fn take_prompt_logprobs(&mut self, index: usize, logits: &LogitsOf) {
        let sequence = &mut self.scheduler.running[index];
        let num_top = sequence.params.prompt_logprobs.unwrap_or(0);
        if sequence.prompt_logprobs.is_empty() {
            sequence.prompt_logprobs.push(None);
        }
        for (offset, position) in logits.positions.clone().enumerate() {
            if position + 1 < sequence.num_prompt_tokens
                && position + 1 == sequence.prompt_logprobs.len()
            {
                let token_id = sequence.token_ids[position + 1];
                let row = self.runner.logits(logits.first + offset);
                let logprobs = token_logprobs(row, token_id, num_top);
                sequence.prompt_logprobs.push(logprobs);
            }
        }
    }

    /// Reports the positions of a pooling request that this step computed; their rows begin at `row`.
    fn take_pooled(&mut self, index: usize, row: usize) {
        let sequence = &mut self.scheduler.running[index];
        let (Some(pooling), Some(request)) =
            (&sequence.pooling, self.requests.get(&sequence.request))
        else {
            return;
        };
        let pending = sequence.pending_positions().iter();
        let computed = pending.take_while(|position| **position < sequence.num_computed_tokens);
        let mut num_reported = 0;
        for (row, position) in (row..).zip(computed) {
            let logits = self.runner.logits(row);
            let hidden_state = pooling.hidden_state.then(|| self.runner.hidden_state(row));
            let _ = request.sender.send(StreamEvent::Pooled {
                position: *position,
                logits: pooling
                    .token_ids
                    .iter()
                    .map(|id| logits[*id as usize])
                    .collect(),
                hidden_state: hidden_state.flatten(),
            });
            num_reported += 1;
        }
        sequence.num_pooled += num_reported;
        if sequence.pending_positions().is_empty() {
            sequence.ended = Some(FinishReason::Pooled);
        }
    }

    /// Sends `PromptDone` once a request, before its first token.
    fn announce_prompt(&mut self, index: usize) {
        let sequence = &mut self.scheduler.running[index];
        let Some(request) = self.requests.get_mut(&sequence.request) else {
            return;
        };
        if request.is_prompt_done {
            return;
        }
        request.is_prompt_done = true;
        let wants_logprobs = sequence.params.prompt_logprobs.is_some();
        let _ = request.sender.send(StreamEvent::PromptDone {
            num_prompt_tokens: sequence.num_prompt_tokens,
            num_cached_tokens: sequence.num_cached_tokens.unwrap_or(0),
            prompt_logprobs: wants_logprobs.then(|| sequence.prompt_logprobs.clone()),
        });
    }

    /// Samples from logits row `row` and appends the token; false when there is none.
    fn append_token(&mut self, index: usize, row: usize) -> bool {
        let logits = self.runner.logits(row);
        let sequence = &mut self.scheduler.running[index];
        let Some(request) = self.requests.get(&sequence.request) else {
            return false;
        };
        let max_model_len = self.shared.config.max_model_len;
        let appended = sequence.append(&mut self.sampler, logits, max_model_len);
        let (token_id, logprobs, is_tapped) = match appended {
            Appended::Token {
                token_id,
                logprobs,
                is_tapped,
            } => (token_id, logprobs, is_tapped),
            Appended::OutOfBudget => return false,
            Appended::NotFinite => {
                let error = EngineError::not_finite();
                let _ = request.sender.send(StreamEvent::Error(error));
                // A closed request's sequences are removed at the end of the step.
                self.requests.remove(&sequence.request);
                return false;
            }
        };
        let hidden_state = is_tapped.then(|| self.runner.hidden_state(row)).flatten();
        self.scheduler.stats.generation_tokens += 1;
        let _ = request.sender.send(StreamEvent::Token {
            index: sequence.index,
            token_id,
            logprobs,
            hidden_state,
        });
        true
    }

    /// Removes the sequences that ended with their newest token.
    fn end_finished(&mut self) {
        let max_model_len = self.shared.config.max_model_len;
        let requests = &self.requests;
        let ended = self.scheduler.remove(|sequence| {
            !requests.contains_key(&sequence.request)
                || sequence.finish_reason(max_model_len).is_some()
        });
        for sequence in ended {
            if let Some(reason) = sequence.finish_reason(max_model_len) {
                self.finish(&sequence, reason);
            }
        }
    }

    /// Drops requests whose client went away or whose deadline passed.
    fn end_requests(&mut self) {
        if self
            .requests
            .values()
            .any(|request| request.sender.is_closed())
        {
            let requests = &self.requests;
            let removed = self.scheduler.remove(|sequence| {
                requests
                    .get(&sequence.request)
                    .is_none_or(|request| request.sender.is_closed())
            });
            for sequence in removed {
                self.requests.remove(&sequence.request);
            }
            self.requests
                .retain(|_, request| !request.sender.is_closed());
        }
        let now = Instant::now();
        let is_late =
            |sequence: &Sequence| sequence.deadline.is_some_and(|deadline| deadline <= now);
        if self.scheduler.sequences().any(is_late) {
            self.finish_where(FinishReason::Deadline, is_late);
        }
    }

    fn finish_where(&mut self, reason: FinishReason, is_done: impl Fn(&Sequence) -> bool) {
        for sequence in self.scheduler.remove(is_done) {
            self.finish(&sequence, reason);
            // Siblings that were never forked end with their leader.
            for index in 1..=sequence.num_pending_forks {
                let mut sibling = sequence.clone();
                sibling.index = index;
                self.finish(&sibling, reason);
            }
        }
    }

    fn finish(&mut self, sequence: &Sequence, reason: FinishReason) {
        let Some(request) = self.requests.get_mut(&sequence.request) else {
            return;
        };
        let _ = request.sender.send(StreamEvent::Finished {
            index: sequence.index,
            reason,
            drafts: sequence.draft.counts,
        });
        request.num_unfinished -= 1;
        if request.num_unfinished == 0 {
            self.requests.remove(&sequence.request);
        }
    }

    fn fail_all(&mut self, message: &str) {
        self.scheduler.remove(|_| true);
        for (_, request) in self.requests.drain() {
            let error = EngineError::Model(message.to_owned());
            let _ = request.sender.send(StreamEvent::Error(error));
        }
    }

    fn publish(&mut self) {
        let stats = self.scheduler.snapshot();
        // The gauges first: whoever sees nothing waiting must see what runs instead.
        self.shared.stats.store(&stats);
        // Two's complement makes a negative difference a subtraction.
        let difference = stats.num_requests_waiting as isize - self.num_counted;
        self.num_counted += difference;
        self.shared
            .num_waiting
            .fetch_add(difference as usize, Ordering::AcqRel);
    }
}
