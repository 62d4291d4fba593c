//! What runs a step. The engine plans on the host; an executor owns the model, its KV cache and the
//! sampling.
//!
//! An executor takes what a step needs by value and gives tokens back: no logits cross to the host
//! but those that somebody reads. [`Executor::launch`] does not wait for a device, so that the
//! engine handles what has arrived while the step runs. Masks come with [`Executor::finish`]: they
//! are computed while the forward pass runs.

mod batch;
mod cuda;
mod draw;
mod model;
mod step;

pub use cuda::CudaExecutor;
pub use model::ModelExecutor;
pub use step::{
    Alternatives, PoolSpec, Pooled, SampleSpec, Sampled, ScoreSpec, StepInput, StepOutput,
    StepSequence,
};

use std::sync::Arc;

use super::request::TokenMask;
use crate::model::{Adaptable, AdapterStore, ExpertLoad, ForwardError, LocalCache, ModelInfo};

/// A step that was launched.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Why a step failed. The step's requests end with it; a broken executor is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("step {0} was not launched or is finished already")]
    UnknownTicket(u64),
    #[error("the executor lacks {0}")]
    Lacks(&'static str),
}

impl ExecutorError {
    /// Whether no later step can succeed.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Forward(ForwardError::DeviceLost(_)))
    }
}

/// Runs steps in the order in which they are launched.
///
/// A row's result depends on its own sequence alone: never on the other rows, on how a prompt was cut into chunks, or on the number of
/// threads. An executor that cannot promise it must not be given to an engine that declares batch invariance.
pub trait Executor: Send {
    fn info(&self) -> &ModelInfo;

    /// Allocates `num_blocks` blocks of `block_size` tokens and room for steps of `max_num_rows` rows. Called once, first.
    fn allocate(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ExecutorError>;

    /// Bytes of buffers for steps of that many rows, where they come out of the memory that the KV cache has too.
    fn step_bytes(&self, _max_num_rows: usize) -> usize {
        0
    }

    /// Begins a step: copies blocks, writes K and V of all rows, computes the logits that are read. On a CPU it computes at once.
    fn launch(&mut self, step: StepInput) -> Result<Ticket, ExecutorError>;

    /// Waits for a step and samples from it, each row under the mask that its [`SampleSpec`] names.
    fn finish(&mut self, ticket: Ticket, masks: &[TokenMask]) -> Result<StepOutput, ExecutorError>;

    /// How many tokens each expert has had, of a mixture-of-experts model.
    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        None
    }

    /// Whether steps may leave sub-layers out ([`StepInput::skip`]).
    fn skips_sub_layers(&mut self) -> bool {
        false
    }

    /// The layers with a sliding window, where they can have a pool of blocks of their own. Once
    /// they do, each step has its local tables, slots and copies.
    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        None
    }

    /// Adapters, where the executor takes any.
    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        None
    }

    /// Adaptation at test time, where the executor has it.
    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        None
    }
}
