//! Systems without seccomp: every call says so.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{
    Block, BlockOutcome, ConfinedError, ConfinedInput, Limits, Protections, RunError, RunOutcome,
    TestReport,
};

#[derive(Debug, thiserror::Error)]
#[error("running programs needs Linux")]
pub struct ExecError;

pub fn exec_from_args(_args: impl IntoIterator<Item = OsString>) -> ExecError {
    ExecError
}

pub fn protections() -> Protections {
    Protections::default()
}

pub fn confine_from_args(
    _args: impl IntoIterator<Item = OsString>,
) -> Result<ConfinedInput, ExecError> {
    Err(ExecError)
}

/// Remembers that it was used.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

/// Cancels when it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it cancels at once"]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Cannot be made here.
#[derive(Debug, Clone)]
pub struct Confined(std::convert::Infallible);

impl Confined {
    pub fn new(_exe: PathBuf, _limits: Limits) -> Result<Self, ConfinedError> {
        Err(ConfinedError::Unsupported)
    }

    pub fn limits(&self) -> &Limits {
        match self.0 {}
    }

    pub fn run(
        &self,
        _command: &[&str],
        _input: &[u8],
        _wall: Duration,
        _cancel: &Cancel,
    ) -> Result<Vec<u8>, ConfinedError> {
        match self.0 {}
    }
}

/// Cannot be made here.
#[derive(Debug, Clone)]
pub struct Sandbox(std::convert::Infallible);

impl Sandbox {
    pub fn new(_exe: PathBuf, _python: Option<PathBuf>, _limits: Limits) -> Result<Self, RunError> {
        Err(RunError::Unsupported)
    }

    pub fn limits(&self) -> &Limits {
        match self.0 {}
    }

    pub fn protections(&self) -> Protections {
        match self.0 {}
    }

    #[doc(hidden)]
    pub fn separated_as(self, _name: &str) -> Option<Self> {
        match self.0 {}
    }

    pub fn run(&self, _program: &str) -> Result<RunOutcome, RunError> {
        match self.0 {}
    }

    pub fn run_block(&self, _block: &Block<'_>, _: &Cancel) -> Result<BlockOutcome, RunError> {
        match self.0 {}
    }

    pub fn run_tests(
        &self,
        _code: &str,
        _tests: &[String],
        _cancel: &Cancel,
    ) -> Result<TestReport, RunError> {
        match self.0 {}
    }
}
