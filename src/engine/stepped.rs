//! An engine without a thread, whose steps and clock are moved by hand: for the simulation.

use std::time::Duration;

use super::clock::Clock;
use super::executor::Executor;
use super::handle::EngineHandle;
use super::request::{EngineConfig, EngineError};
use super::thread::EngineCore;

/// See the module's documentation.
pub struct SteppedEngine {
    handle: EngineHandle,
    core: EngineCore,
    clock: Clock,
}

impl SteppedEngine {
    pub fn new(
        executor: Box<dyn Executor>,
        draft_executor: Option<Box<dyn Executor>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let clock = Clock::manual();
        let (handle, core) = EngineHandle::build(executor, draft_executor, config, clock.clone())?;
        Ok(Self {
            handle,
            core,
            clock,
        })
    }

    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Takes what has arrived, runs one step that takes `elapsed`, and checks every invariant.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn turn(&mut self, elapsed: Duration) -> Result<(), String> {
        self.clock.advance(elapsed);
        if !self.core.turn() {
            return Err("the step panicked".to_owned());
        }
        self.core.check().map_err(|broken| broken.to_string())
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    /// What is left though nothing should be: open requests, used blocks, loaded adapters.
    pub fn leftovers(&self) -> Option<String> {
        self.core.leftovers()
    }

    /// What runs and waits.
    pub fn describe(&self) -> String {
        self.core.describe()
    }
}
