//! `ponder doctor`: what Ponder finds on this machine, what it means, and what to do about it.

mod interpreter;
mod machine;
mod network;
mod places;
mod report;

use anyhow::ensure;
use clap::Args;

use network::Sources;
use report::{Level, count};

use crate::cli::traces::args::StoreArgs;
use crate::model::catalogue::home;

#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Address that a server would listen on
    #[arg(long, env = "PONDER_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port that a server would listen on
    #[arg(long, env = "PONDER_PORT", default_value_t = 8000)]
    pub port: u16,
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Fails where a finding is a fault: a warning is no reason not to start.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let sources = Sources::ask()?;
    let can_fetch = sources.are_reachable();
    let findings = [
        machine::processor(),
        machine::memory(),
        machine::open_files(),
        machine::gpu(),
        places::disk(&home()),
        places::models(can_fetch),
        sources.hub,
        sources.registry,
        interpreter::sandbox(),
        places::traces(&args.store),
        places::port(&args.host, args.port),
    ];
    report::print(&findings, args.json)?;
    let num_faults = count(&findings, Level::Fault);
    ensure!(
        num_faults == 0,
        "found {num_faults} of the kind that keeps a server from its work"
    );
    Ok(())
}
