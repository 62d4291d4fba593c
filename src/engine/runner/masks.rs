//! The masks of a step, made while the model computes it.
//!
//! A sequence's constraint leaves the sequence with a [`MaskJob`] when the step is planned, and is
//! back once the step was launched ([`Masks::gather`]): before anything else looks at the sequence.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::engine::constrained::Constrained;
use crate::engine::executor::{SampleSpec, Sampled};
use crate::engine::request::{ConstraintError, SamplingParams, TokenId, TokenMask};
use crate::engine::sequence::{SeqId, Sequence};
use crate::engine::sequences::Sequences;
use crate::engine::speculative::Leaf;

/// Threads that make masks, at most. They run beside the threads of a model on the same cores.
const MOST_WORKERS: usize = 4;

/// All masks of one sequence in one step.
struct MaskJob {
    seq: SeqId,
    /// The first of the step's masks that is this job's.
    first: usize,
    constraint: Constrained,
    drafted: Vec<TokenId>,
    /// The draft's leaves: how many draft tokens come before each, and the leaf.
    leaves: Vec<(usize, TokenId)>,
    params: Arc<SamplingParams>,
    /// Tokens of the answer so far.
    num_output_tokens: usize,
    /// One of the next token, one after each draft token, one after each leaf.
    masks: Vec<TokenMask>,
    failures: Vec<(usize, ConstraintError)>,
}

impl MaskJob {
    fn run(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.make_all())).is_err() {
            let error = ConstraintError("its masks could not be made".to_owned());
            self.failures.push((0, error));
        }
    }

    fn make_all(&mut self) {
        let mut num_accepted = 0;
        let mut is_made = vec![false; self.masks.len()];
        for depth in 0..=self.drafted.len() {
            is_made[depth] = true;
            if !self.make(depth, depth) {
                break;
            }
            for index in 0..self.leaves.len() {
                let (leaf_depth, token_id) = self.leaves[index];
                if leaf_depth == depth && self.constraint.accept(token_id) {
                    let at = self.drafted.len() + 1 + index;
                    is_made[at] = true;
                    self.make(at, depth + 1);
                    self.constraint.rollback(1);
                }
            }
            match self.drafted.get(depth) {
                Some(token_id) if self.constraint.accept(*token_id) => num_accepted += 1,
                _ => break,
            }
        }
        self.constraint.rollback(num_accepted);
        // Rows behind a token that the constraint refuses never count: the row before them cannot
        // draw that token.
        let rest = self.masks.iter_mut().zip(is_made);
        rest.filter(|(_, is_made)| !is_made)
            .for_each(|(mask, _)| mask.allow_all());
    }

    /// Makes the mask of a row that follows `num_drafted` tokens of the draft.
    fn make(&mut self, at: usize, num_drafted: usize) -> bool {
        let mask = &mut self.masks[at];
        mask.clear();
        if let Err(error) = self.constraint.mask(mask) {
            mask.allow_all();
            self.failures.push((at, error));
            return false;
        }
        let params = &*self.params;
        let is_early = self.num_output_tokens + num_drafted < params.min_tokens;
        // Where only an end is left, the text is complete: the answer ends early.
        if is_early || params.ignore_eos {
            let stops = params.stop_token_ids.iter().filter(|_| is_early);
            mask.forbid_if_others(params.eos_token_ids.iter().chain(stops).copied());
        }
        true
    }
}

/// Jobs on their way between the engine's thread and the workers.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    has_work: Condvar,
    has_done: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<MaskJob>,
    done: Vec<MaskJob>,
    is_closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: MaskJob) {
        self.lock().waiting.push_back(job);
        self.has_work.notify_one();
    }

    /// A worker's life.
    fn work(&self) {
        let mut state = self.lock();
        while !state.is_closed {
            let Some(mut job) = state.waiting.pop_front() else {
                let waited = self.has_work.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            job.run();
            state = self.lock();
            state.done.push(job);
            self.has_done.notify_one();
        }
    }

    /// Waits for `count` jobs. The caller runs those that no worker has begun.
    fn take(&self, count: usize) -> Vec<MaskJob> {
        let mut taken = Vec::with_capacity(count);
        let mut state = self.lock();
        while taken.len() < count {
            taken.append(&mut state.done);
            if let Some(mut job) = state.waiting.pop_front() {
                drop(state);
                job.run();
                taken.push(job);
                state = self.lock();
            } else if taken.len() < count {
                let waited = self
                    .has_done
                    .wait_while(state, |state| state.done.is_empty());
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        taken
    }
}

/// The masks of the step that is planned, and who makes them.
pub(super) struct Masks {
    vocab_size: usize,
    queue: Arc<Queue>,
    has_workers: bool,
    num_queued: usize,
    /// Jobs that are done.
    done: Vec<MaskJob>,
    num_planned: usize,
    /// Once they are gathered.
    masks: Vec<TokenMask>,
    /// Masks that could not be made, and why.
    failures: Vec<(usize, ConstraintError)>,
    /// Memory of earlier steps.
    spare: Vec<TokenMask>,
}

impl Masks {
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            queue: Arc::default(),
            has_workers: false,
            num_queued: 0,
            done: Vec::new(),
            num_planned: 0,
            masks: Vec::new(),
            failures: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Forgets the step before. What was planned and never gathered is waited for.
    pub fn clear(&mut self) {
        let mut lost = self.queue.take(std::mem::take(&mut self.num_queued));
        lost.append(&mut self.done);
        for mut job in lost {
            self.spare.append(&mut job.masks);
        }
        self.spare.append(&mut self.masks);
        self.failures.clear();
        self.num_planned = 0;
    }

    /// Plans the masks of a sequence's next token, of the tokens after its `drafted` ones, and of
    /// those after `leaves`, in this order. Returns the first, or `None` without a constraint; the
    /// constraint is away until [`Self::gather`].
    pub fn plan(
        &mut self,
        sequence: &mut Sequence,
        drafted: &[TokenId],
        leaves: &[Leaf],
    ) -> Option<u32> {
        let mut constraint = sequence.constraint.take()?;
        let is_cheap = constraint.has_cheap_masks();
        let first = self.num_planned;
        let num_masks = 1 + drafted.len() + leaves.len();
        self.num_planned += num_masks;
        let spare = self.spare.len().saturating_sub(num_masks);
        let mut masks = self.spare.split_off(spare);
        masks.resize_with(num_masks, || TokenMask::none(self.vocab_size));
        let mut job = MaskJob {
            seq: sequence.id,
            first,
            constraint,
            drafted: drafted.to_vec(),
            leaves: leaves.iter().map(|l| (l.depth, l.token_id)).collect(),
            params: Arc::clone(&sequence.params),
            num_output_tokens: sequence.num_output_tokens(),
            masks,
            failures: Vec::new(),
        };
        if is_cheap {
            job.run();
            self.done.push(job);
        } else {
            self.start_workers();
            self.num_queued += 1;
            self.queue.push(job);
        }
        Some(first as u32)
    }

    /// Starts the threads once they are needed.
    fn start_workers(&mut self) {
        if std::mem::replace(&mut self.has_workers, true) {
            return;
        }
        let num_cores = thread::available_parallelism().map_or(1, usize::from);
        for index in 0..(num_cores / 2).min(MOST_WORKERS) {
            let queue = Arc::clone(&self.queue);
            let builder = thread::Builder::new().name(format!("masks-{index}"));
            // Without a thread the engine's makes the masks, once the step is launched.
            if let Err(error) = builder.spawn(move || queue.work()) {
                tracing::warn!("no thread for masks: {error}");
            }
        }
    }

    /// Waits for the masks that are planned, and gives sequences their constraints back.
    pub fn gather(&mut self, sequences: &mut Sequences) {
        let queued = self.queue.take(std::mem::take(&mut self.num_queued));
        self.done.extend(queued);
        // Threads finish in any order.
        self.done.sort_unstable_by_key(|job| job.first);
        for mut job in self.done.drain(..) {
            let failures = job.failures.into_iter();
            self.failures
                .extend(failures.map(|(at, error)| (job.first + at, error)));
            self.masks.append(&mut job.masks);
            if let Some(sequence) = sequences.get_mut(job.seq) {
                sequence.constraint = Some(job.constraint);
            }
        }
    }

    pub fn as_slice(&self) -> &[TokenMask] {
        &self.masks
    }

    /// Takes tokens back that were drawn under masks that could not be made.
    pub fn check(&self, specs: &[SampleSpec], samples: &mut [Sampled]) {
        if self.failures.is_empty() {
            return;
        }
        for (spec, sampled) in specs.iter().zip(samples) {
            let is_its = |(at, _): &&(usize, ConstraintError)| spec.mask == Some(*at as u32);
            if let Some((_, error)) = self.failures.iter().find(is_its)
                && *sampled != Sampled::Skipped
            {
                *sampled = Sampled::Unmasked(error.clone());
            }
        }
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.has_work.notify_all();
    }
}
