//! `ponder bench value-head`: how a head of `ponder train value-head` chooses.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::cli::engine_args::EngineArgs;
use crate::cli::setup;
use crate::cli::train::{choices_json, examples, print_choices};
use crate::reward::ValueHead;
use crate::trace::Target;
use crate::train::evaluate;

#[derive(Debug, Clone, Args)]
pub struct BenchValueHeadArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// NDJSON files of trees whose answers have an outcome
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pub value_head: PathBuf,
    /// Of the interval's resampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Chooses among the answers of traces by a head that is already there.
pub(in crate::cli) fn run(args: &BenchValueHeadArgs) -> anyhow::Result<()> {
    let served = setup::start(&args.engine)?;
    let hidden_size = served.engine.model_info().hidden_size;
    let head = ValueHead::load(&args.value_head, hidden_size)
        .with_context(|| format!("--value-head {}", args.value_head.display()))?;
    let examples = examples(&args.traces, &served, Target::RestMcts)?;
    let (auc, choices) = evaluate(&examples, &head, args.seed);
    if args.json {
        let mut result = choices_json(&choices);
        result["auc"] = auc.into();
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!("AUC            {auc:.3}");
        print_choices(&choices);
    }
    Ok(())
}
