//! What a sandboxed process cannot do. Three layers, each of which outlives `execve`: resource
//! limits and dropped capabilities, Landlock (which files can be read or executed), seccomp (which
//! system calls there are).

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::apply_filter;

use super::Protections;
use super::filters::{
    computation_calls, interpreter_calls, missing_calls, refused_flags, target_arch,
};

const MAX_OPEN_FILES: u64 = 64;
const STACK_BYTES: u64 = 8 << 20;
/// The newest Landlock that this was tested with; an older kernel enforces what it knows.
const LANDLOCK_ABI: ABI = ABI::V6;

/// The limits of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub cpu_seconds: u64,
    pub memory_bytes: u64,
    /// Of all kinds, the first one included.
    pub max_threads: u32,
    /// Files and folders that can be read where there is Landlock; what does not exist is skipped.
    pub readable: Vec<PathBuf>,
    /// Files that can be executed where there is Landlock.
    pub executable: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PolicyError {
    #[error("resource limits: {0}")]
    Limits(io::Error),
    #[error("privileges: {0}")]
    Privileges(io::Error),
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

impl From<seccompiler::BackendError> for PolicyError {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Seccomp(error.into())
    }
}

/// What this kernel can enforce; what else holds a trial shows ([`super::Sandbox::protections`]).
pub fn protections() -> Protections {
    let landlock = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create);
    let has_filters = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    Protections {
        seccomp: has_filters && target_arch().is_ok(),
        landlock: landlock.is_ok(),
        ..Protections::default()
    }
}

impl Policy {
    /// All that the interpreter opens.
    pub fn files(&self) -> Vec<&Path> {
        let all = self.readable.iter().chain(&self.executable);
        all.map(PathBuf::as_path).collect()
    }

    /// Limits the calling thread for good to computing on streams that are open. Needs no rights to
    /// files: without the calls that open them there are none.
    pub fn enforce_computation(&self) -> Result<(), PolicyError> {
        set_no_new_privs(true).map_err(|error| PolicyError::Privileges(error.into()))?;
        self.limit_resources().map_err(PolicyError::Limits)?;
        drop_capabilities()?;
        for filter in [missing_calls()?, computation_calls(self.max_threads)?] {
            apply_filter(&filter)?;
        }
        Ok(())
    }

    /// Limits the calling thread for good, and with it the program that it becomes.
    pub fn enforce(&self) -> Result<(), PolicyError> {
        set_no_new_privs(true).map_err(|error| PolicyError::Privileges(error.into()))?;
        self.limit_resources().map_err(PolicyError::Limits)?;
        // Counts the threads of a user: exact where no other process has it.
        let threads = u64::from(self.max_threads);
        lower(Resource::Nproc, threads, threads).map_err(PolicyError::Limits)?;
        self.limit_files()?;
        drop_capabilities()?;
        // The last filter forbids `seccomp` itself.
        let allowed = interpreter_calls(self.max_threads)?;
        for filter in [missing_calls()?, refused_flags()?, allowed] {
            apply_filter(&filter)?;
        }
        Ok(())
    }

    fn limit_resources(&self) -> io::Result<()> {
        // One second between SIGXCPU, which can be handled, and SIGKILL, which cannot.
        lower(Resource::Cpu, self.cpu_seconds, self.cpu_seconds + 1)?;
        lower(Resource::As, self.memory_bytes, self.memory_bytes)?;
        lower(Resource::Stack, STACK_BYTES, STACK_BYTES)?;
        lower(Resource::Nofile, MAX_OPEN_FILES, MAX_OPEN_FILES)?;
        // Not 0, which still starts the helper of systems that pipe their core files to one; 1 does
        // not.
        lower(Resource::Core, 1, 1)?;
        for resource in [
            Resource::Fsize,
            Resource::Memlock,
            Resource::Msgqueue,
            Resource::Nice,
            Resource::Rtprio,
        ] {
            lower(resource, 0, 0)?;
        }
        Ok(())
    }

    /// Takes away every right to files but reading and executing what is listed. Does nothing
    /// without Landlock.
    fn limit_files(&self) -> Result<(), RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute = AccessFs::ReadFile | AccessFs::Execute;
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .add_rules(path_beneath_rules(&self.readable, read))?
            .add_rules(path_beneath_rules(&self.executable, execute))?
            .restrict_self()?;
        Ok(())
    }
}

/// Sets limits, never above those inherited.
fn lower(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let hard = getrlimit(resource)
        .maximum
        .map_or(hard, |now| now.min(hard));
    let new = Rlimit {
        current: Some(soft.min(hard)),
        maximum: Some(hard),
    };
    Ok(setrlimit(resource, new)?)
}

/// Root keeps its uid (the interpreter may lie in its home) and loses its power: without this it
/// could raise its limits again. With no_new_privs, `execve` does not give capabilities back.
fn drop_capabilities() -> Result<(), PolicyError> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| PolicyError::Privileges(error.into()))
}
