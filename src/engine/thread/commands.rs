//! What handles ask of the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, mpsc};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::{EngineCore, OpenRequest};
use crate::engine::adaptation::{Adaptation, fingerprint};
use crate::engine::adapters::salted;
use crate::engine::admission::Share;
use crate::engine::handle::ForkParams;
use crate::engine::request::{EngineError, FinishReason, GenerateRequest, RequestId, StreamEvent};
use crate::engine::sequence::Sequence;
use crate::engine::speculative::{Draft, DraftCounts, Drafter, Speculative};
use crate::model::{AdapterId, LoraAdapter};

pub(in crate::engine) struct Submission {
    pub id: RequestId,
    pub sender: UnboundedSender<StreamEvent>,
    pub request: GenerateRequest,
    /// What its tenant holds with it.
    pub share: Share,
}

pub(in crate::engine) enum Command {
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
        adapter: LoraAdapter,
        loaded: LoadedAdapter,
        done: oneshot::Sender<Result<LoadedAdapter, EngineError>>,
    },
    UnloadAdapter(AdapterId),
    Shutdown,
}

/// An adapter on its way to whoever asked for it. Nobody knows its id until it is taken: dropped on the way, wherever that is, it is
/// unloaded.
pub(in crate::engine) struct LoadedAdapter {
    id: AdapterId,
    commands: Option<mpsc::Sender<Command>>,
}

impl LoadedAdapter {
    pub fn new(id: AdapterId, commands: mpsc::Sender<Command>) -> Self {
        Self {
            id,
            commands: Some(commands),
        }
    }

    /// The adapter is the caller's now.
    pub fn take(mut self) -> AdapterId {
        self.commands = None;
        self.id
    }
}

impl Drop for LoadedAdapter {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            let _ = commands.send(Command::UnloadAdapter(self.id));
        }
    }
}

impl EngineCore {
    /// Waits until there is something to do. False ends the thread.
    pub(super) fn wait_for_work(&mut self) -> bool {
        while self.scheduler.is_idle() && self.deferred.is_none() {
            if self.is_draining {
                return false;
            }
            self.publish();
            match self.recv() {
                Some(command) => self.handle(command),
                None => return false,
            }
        }
        true
    }

    /// The next command; `None` when none can come, or the engine is broken. Until it comes, the
    /// costs of steps are measured, one after the other, so that the start does not wait for
    /// them, and the first request that drafts only for those that are left.
    fn recv(&mut self) -> Option<Command> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            let measured = catch_unwind(AssertUnwindSafe(|| self.measure_while_idle()));
            match measured {
                Ok(true) => {}
                Ok(false) => return self.commands.recv().ok(),
                Err(_) => {
                    self.break_down();
                    return None;
                }
            }
        }
    }

    /// Measures a step. False when all are measured, when nobody drafts unasked, and before the
    /// engine has run a step for somebody.
    fn measure_while_idle(&mut self) -> bool {
        self.scheduler.stats.num_steps > 0
            && self.speculator.drafts_by_default()
            && (self.speculator).measure_one(&mut self.runner, self.draft_runner.as_mut())
    }

    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.deferred
            .take()
            .or_else(|| self.commands.try_recv().ok())
    }

    /// Handles what arrives while a step runs, up to what must wait for the step's end.
    pub(super) fn take_arrivals(&mut self) {
        while self.deferred.is_none() {
            match self.commands.try_recv() {
                Ok(command @ (Command::LoadAdapter { .. } | Command::UnloadAdapter(_))) => {
                    self.deferred = Some(command);
                }
                Ok(command) => self.handle(command),
                Err(_) => return,
            }
        }
    }

    pub(super) fn handle(&mut self, command: Command) {
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
            Command::LoadAdapter {
                adapter,
                loaded,
                done,
            } => {
                let result = self.runner.load_adapter(loaded.id, &adapter);
                if result.is_ok() {
                    self.adapters.add(loaded.id);
                }
                let result = result.map_err(|error| EngineError::Model(error.to_string()));
                // Where nobody waits any more, the adapter comes back and is dropped.
                let _ = done.send(result.map(|()| loaded));
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
            share,
        } = submission;
        if let Some(adapter) = request.adapter
            && !self.adapters.takes_requests(adapter)
        {
            self.num_counted += request.n as isize;
            drop(share);
            let _ = sender.send(StreamEvent::Error(EngineError::UnknownAdapter));
            return;
        }
        self.open(id, sender, request.n, Some(share));
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
        let seq = self.scheduler.sequences.new_id();
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
            ..Sequence::new(seq, id, request)
        });
    }

    /// Unloads the adapters that were given up, once nothing uses them.
    pub(super) fn drop_adapters(&mut self) {
        if !self.adapters.has_leaving() {
            return;
        }
        let sequences = &self.scheduler.sequences;
        let is_used = |id| sequences.iter().any(|s| s.adapter == Some(id));
        for id in self.adapters.take_unused(is_used) {
            self.runner.unload_adapter(id);
        }
    }

    fn open(
        &mut self,
        id: RequestId,
        sender: UnboundedSender<StreamEvent>,
        n: usize,
        share: Option<Share>,
    ) {
        self.num_counted += n as isize;
        let request = OpenRequest {
            sender,
            num_unfinished: n,
            is_prompt_done: false,
            share,
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
        let sequences = &mut self.scheduler.sequences;
        let Some(parent) = sequences.find_running(source, index).cloned() else {
            self.num_counted += fork.n as isize;
            let _ = sender.send(StreamEvent::Error(EngineError::UnknownRequest(source.0)));
            return;
        };
        self.open(id, sender, fork.n, None);
        let params = Arc::new(fork.params);
        for branch in 0..fork.n {
            let mut child = parent.clone();
            child.id = self.scheduler.sequences.new_id();
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
            child.draft.clear();
            child.draft.counts = DraftCounts::default();
            // A draft model may have followed the step that runs, whose tokens are not the child's.
            let draft = &mut child.draft;
            draft.num_computed_tokens = draft.num_computed_tokens.min(child.num_computed_tokens);
            match child.is_adapting() {
                // Its parent's blocks change until the phase is over.
                true => self.scheduler.add(child.without_kv()),
                false => self.scheduler.add_fork(child),
            }
        }
    }

    /// Refuses what is still in the channel once the thread ends.
    pub(super) fn close(mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.publish();
        while let Some(command) = self.next_command() {
            let sender = match command {
                Command::Submit(submission) => submission.sender,
                Command::Fork { sender, .. } => sender,
                _ => continue,
            };
            let _ = sender.send(StreamEvent::Error(EngineError::ShuttingDown));
        }
        self.shared.is_finished.store(true, Ordering::Release);
    }
}
