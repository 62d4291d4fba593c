//! Paged attention, rotation and the KV cache.
//!
//! A step is planned on the host ([`AttentionPlan`]): which rows read which tokens together. The
//! plan and the step's other inputs go to the device in one copy ([`StepBuffers`]); every layer
//! then rotates ([`rotate_and_cache`]) and attends ([`attention`]) with launches that depend on
//! nothing but the step's [`StepKey`].
//!
//! A context is cut into splits of [`SPLIT_TOKENS`], whose states are merged in order by one
//! formula, wherever that happens: so a row has the same bits in a prefill chunk, alone, and beside
//! forks.

mod cache;
mod launch;
mod plan;
mod rope;
mod step;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use cache::{KvCache, KvShape};
pub use launch::attention;
pub use plan::{AttentionPlan, PlanShape, SPLIT_TOKENS};
pub use ponder_kernels::{AttentionParams, AttentionRows, RopeKind};
pub use rope::{RopeTable, Rotation, rotate_and_cache};
pub use step::{StepBuffers, StepInputs, StepKey, StepPart};
