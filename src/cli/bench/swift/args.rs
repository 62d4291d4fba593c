//! Flags of `ponder bench swift`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::engine_args::EngineArgs;

#[derive(Debug, Clone, Args)]
pub struct BenchSwiftArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON lines of {"task", "messages"}; benches/speculative/prompts.py makes some
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Texts that are generated: half of them to choose by, half to measure on
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=64))]
    pub texts: u64,
    /// Sets that random and Bayesian search try
    #[arg(long, default_value_t = 60)]
    pub candidates: usize,
    /// Every how many of them Bayesian search proposes one (SWIFT: 25)
    #[arg(long, default_value_t = 5)]
    pub bayes_interval: usize,
    /// Shares of the sub-layers to leave out
    #[arg(long, value_delimiter = ',', default_values_t = [0.05, 0.1, 0.2, 0.3, 0.45])]
    pub ratios: Vec<f64>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the set that promises most as JSON, for `ponder serve --skip-set`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}
