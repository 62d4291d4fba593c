//! The loop. One thread owns the executor; a step is plan → schedule → draft → launch → finish →
//! commit.

mod adapt;
mod commands;
mod commit;
mod end;
mod speculate;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use tokio::sync::mpsc::UnboundedSender;

use super::adapters::AdapterTable;
use super::admission::Share;
use super::batch::ScheduledBatch;
use super::clock::Clock;
use super::executor::{Executor, ExecutorError};
use super::handle::Shared;
use super::request::{EngineConfig, EngineError, RequestId, StreamEvent};
use super::runner::Runner;
use super::scheduler::{Scheduler, Violation};
use super::speculative::Speculator;
pub(super) use commands::{Command, LoadedAdapter, Submission};

/// Steps in a row that may run nothing though sequences are there: after a preemption one does, a second one never should.
const MOST_EMPTY_STEPS: u32 = 2;

/// A request's stream and how many of its choices are still running.
struct OpenRequest {
    sender: UnboundedSender<StreamEvent>,
    num_unfinished: usize,
    is_prompt_done: bool,
    /// What its tenant holds as long as it runs or waits. It does not end with the stream: whoever
    /// waits for room to submit more, as a search does, reads no stream meanwhile.
    share: Option<Share>,
}

/// All that the engine's thread owns. It has no thread of its own: [`Self::run`] is one's body, a simulation calls [`Self::turn`].
pub(super) struct EngineCore {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// Arrived while a step ran, and must wait for its end.
    deferred: Option<Command>,
    scheduler: Scheduler,
    runner: Runner,
    /// A small model that drafts. Its KV lies in blocks of the same numbers.
    draft_runner: Option<Runner>,
    batch: ScheduledBatch,
    speculator: Speculator,
    requests: HashMap<RequestId, OpenRequest>,
    adapters: AdapterTable,
    clock: Clock,
    is_draining: bool,
    num_empty_steps: u32,
    last_violation: Option<Violation>,
    /// This thread's share of `Shared::num_waiting`; the rest is still in the channel.
    num_counted: isize,
}

impl EngineCore {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        draft_executor: Option<Box<dyn Executor>>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        clock: Clock,
    ) -> Self {
        let speculative = shared.config.speculative.clone();
        let speculator = Speculator::new(speculative, draft_executor.is_some());
        // A draft model keeps all its layers in one pool.
        let draft_config = EngineConfig {
            local: None,
            ..shared.config.clone()
        };
        let mut scheduler = Scheduler::new(shared.config.clone());
        scheduler.runs_whole_prompts = draft_executor.is_some();
        Self {
            scheduler,
            batch: ScheduledBatch::default(),
            runner: Runner::new(executor, &shared.config),
            draft_runner: draft_executor.map(|executor| Runner::new(executor, &draft_config)),
            speculator,
            requests: HashMap::new(),
            adapters: AdapterTable::default(),
            clock,
            is_draining: false,
            num_empty_steps: 0,
            last_violation: None,
            num_counted: 0,
            deferred: None,
            shared,
            commands,
        }
    }

    /// Serves until the handles are gone or one says to shut down.
    pub(super) fn run(mut self) {
        while self.wait_for_work() {
            if !self.turn() {
                break;
            }
        }
        self.close();
    }

    /// What has arrived, then one step. False once the engine is broken.
    pub(super) fn turn(&mut self) -> bool {
        while let Some(command) = self.next_command() {
            self.handle(command);
        }
        self.end_requests();
        self.drop_adapters();
        let step = catch_unwind(AssertUnwindSafe(|| self.step()));
        match &step {
            Ok(true) => {}
            Ok(false) => self.shared.is_healthy.store(false, Ordering::Release),
            Err(_) => self.break_down(),
        }
        self.publish();
        step.unwrap_or(false)
    }

    /// The model's state is unknown after a panic: fails everything, and the engine stops.
    fn break_down(&mut self) {
        self.fail_all("the model panicked; the engine has stopped");
        self.shared.is_healthy.store(false, Ordering::Release);
    }

    /// One step of the engine. False when no later one can succeed.
    fn step(&mut self) -> bool {
        self.adapt();
        let (sequences, draft_runner) = (&self.scheduler.sequences, self.draft_runner.as_mut());
        self.speculator
            .prepare(&mut self.runner, draft_runner, sequences);
        let sequences = &mut self.scheduler.sequences;
        self.speculator.plan(sequences, &self.shared.config);
        self.scheduler.schedule(&mut self.batch);
        if let Err(error) = self.begin_due_phases() {
            self.fail_all(&error.to_string());
            return !error.is_fatal();
        }
        if self.batch.rows.is_empty() {
            self.note_empty_step();
            return true;
        }
        if let Err(error) = self.draft().and_then(|()| self.run_batch()) {
            self.fail_all(&error.to_string());
            return !error.is_fatal();
        }
        self.num_empty_steps = 0;
        self.scheduler.stats.num_steps += 1;
        self.scheduler.stats.drafts = self.speculator.counts;
        self.end_finished();
        self.audit();
        true
    }

    /// Launches the batch, handles what arrives while it runs, and takes what came of it.
    fn run_batch(&mut self) -> Result<(), ExecutorError> {
        let only_decodes = self.only_decodes();
        let started = self.clock.now();
        let sequences = &mut self.scheduler.sequences;
        self.runner.plan(&self.batch, sequences);
        let launched = self.runner.launch();
        // Whatever arrives finds sequences with their constraints.
        self.runner.gather_masks(sequences);
        let ticket = launched?;
        if let Some(runner) = &mut self.draft_runner {
            Speculator::follow_prompts(runner, sequences, &self.batch)?;
        }
        self.take_arrivals();
        let output = self.runner.finish(ticket)?;
        self.commit(output);
        if only_decodes {
            let elapsed = self.clock.now().saturating_duration_since(started);
            self.learn(elapsed)?;
        }
        Ok(())
    }

    fn only_decodes(&self) -> bool {
        let sequences = &self.scheduler.sequences;
        let mut rows = self.batch.rows.iter();
        rows.all(|rows| sequences[rows.seq].is_decoding())
    }

    /// After a step that ran nothing. Where nothing can ever run, whoever is first in line ends with an error: spinning would serve
    /// nobody any more.
    fn note_empty_step(&mut self) {
        let sequences = &self.scheduler.sequences;
        let is_adapting = sequences.running().any(|s| s.is_adapting());
        if self.scheduler.is_idle() || is_adapting {
            self.num_empty_steps = 0;
            return;
        }
        self.num_empty_steps += 1;
        if self.num_empty_steps < MOST_EMPTY_STEPS {
            return;
        }
        self.num_empty_steps = 0;
        let stuck = sequences.running().next().or(sequences.waiting().next());
        if let Some(request) = stuck.map(|sequence| sequence.request) {
            let violation = Violation {
                invariant: "something runs as long as something waits",
                detail: self.scheduler.describe(),
            };
            self.break_request(request, &violation);
        }
    }

    /// The rules that cost little, after each step.
    fn audit(&mut self) {
        if let Some((seq, violation)) = self.scheduler.audit_rows(&self.batch.rows) {
            let request = self.scheduler.sequences[seq].request;
            self.break_request(request, &violation);
        }
        if let Err(violation) = self.scheduler.audit() {
            self.count_violation(&violation);
            self.fail_all(&violation.to_string());
        }
    }

    fn count_violation(&mut self, violation: &Violation) {
        tracing::error!("{violation}; this is a bug");
        self.scheduler.stats.num_invariant_violations += 1;
        self.last_violation = Some(violation.clone());
    }

    /// Ends a request that breaks a rule.
    fn break_request(&mut self, request: RequestId, violation: &Violation) {
        self.count_violation(violation);
        self.fail(request, EngineError::Invariant(violation.to_string()));
        self.end_finished();
    }

    /// Every rule, at any cost.
    pub(super) fn check(&self) -> Result<(), Violation> {
        self.scheduler.check_invariants()?;
        self.last_violation.clone().map_or(Ok(()), Err)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    pub(super) fn describe(&self) -> String {
        self.scheduler.describe()
    }

    /// What is left once all has ended.
    pub(super) fn leftovers(&self) -> Option<String> {
        let open = self.requests.len();
        let blocks = &self.scheduler.blocks;
        let used = blocks.num_used() + blocks.num_used_locally();
        let adapters = self.adapters.num_known();
        let is_clean = self.is_idle() && open + used + adapters == 0 && self.num_counted == 0;
        (!is_clean).then(|| {
            format!(
                "{open} requests open, {used} blocks used, {adapters} adapters known, {} counted as                  waiting; {}",
                self.num_counted,
                self.describe()
            )
        })
    }

    fn publish(&mut self) {
        if self.num_empty_steps == 0 {
            self.shared.progress.note();
        }
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
