//! What arrives while a step runs: an executor that lets clients act between a step's launch and
//! its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ponder::engine::executor::{StepInput, StepOutput, Ticket};
use ponder::engine::{
    Backend, EngineError, EngineHandle, Executor, ExecutorError, ForkParams, GenerateRequest,
    RequestId, RequestStream, TokenMask,
};
use ponder::model::{Adaptable, AdapterStore, LocalCache, ModelInfo};

/// What a client does.
#[derive(Debug)]
pub enum Call {
    Submit(Box<GenerateRequest>),
    Fork {
        source: RequestId,
        index: usize,
        fork: ForkParams,
    },
    Abort(RequestId),
    AbortChoice(RequestId, usize),
}

impl Call {
    /// `None` where nothing is answered.
    pub fn make(self, handle: &EngineHandle) -> Option<Result<RequestStream, EngineError>> {
        match self {
            Self::Submit(request) => Some(handle.submit(*request)),
            Self::Fork {
                source,
                index,
                fork,
            } => Some(handle.fork(source, index, fork)),
            Self::Abort(id) => {
                handle.abort(id);
                None
            }
            Self::AbortChoice(id, index) => {
                handle.abort_choice(id, index);
                None
            }
        }
    }
}

/// Calls that wait for the next step, and what was answered to those that were made, by the caller's number.
#[derive(Default)]
struct Desk {
    handle: Option<EngineHandle>,
    calls: Vec<(usize, Call)>,
    answers: Vec<(usize, Result<RequestStream, EngineError>)>,
}

#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<Desk>>);

impl Arrivals {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self, handle: EngineHandle) {
        self.desk().handle = Some(handle);
    }

    /// Makes a call once the next step is launched.
    pub fn during_next_step(&self, number: usize, call: Call) {
        self.desk().calls.push((number, call));
    }

    /// Makes the calls that no step came for, and tells what all were answered.
    pub fn settle(&self) -> Vec<(usize, Result<RequestStream, EngineError>)> {
        self.make();
        std::mem::take(&mut self.desk().answers)
    }

    fn make(&self) {
        let mut desk = self.desk();
        let Some(handle) = desk.handle.clone() else {
            return;
        };
        for (number, call) in std::mem::take(&mut desk.calls) {
            let answer = call.make(&handle);
            desk.answers.extend(answer.map(|answer| (number, answer)));
        }
    }
}

/// Makes the calls that have waited as soon as a step is launched.
pub struct Interrupted {
    pub inner: Box<dyn Executor>,
    pub arrivals: Arrivals,
}

impl Executor for Interrupted {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn allocate(&mut self, blocks: usize, size: usize, rows: usize) -> Result<(), ExecutorError> {
        self.inner.allocate(blocks, size, rows)
    }

    fn launch(&mut self, step: StepInput) -> Result<Ticket, ExecutorError> {
        // Copies and measurements are steps too, which nothing is taken in.
        let is_step = step
            .samples
            .iter()
            .any(|spec| spec.num_alternatives.is_none());
        let ticket = self.inner.launch(step)?;
        if is_step {
            self.arrivals.make();
        }
        Ok(ticket)
    }

    fn finish(&mut self, ticket: Ticket, masks: &[TokenMask]) -> Result<StepOutput, ExecutorError> {
        self.inner.finish(ticket, masks)
    }

    fn skips_sub_layers(&mut self) -> bool {
        self.inner.skips_sub_layers()
    }

    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        self.inner.local_cache()
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        self.inner.adapters()
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        self.inner.adaptation()
    }
}
