//! Flags of `ponder bench search`.

use std::path::PathBuf;

use clap::Args;

use super::arms::GREEDY;

#[derive(Debug, Clone, Args)]
pub struct BenchSearchArgs {
    /// JSON lines: {"messages", "grade"} and perhaps {"reward"}; a grade and a reward are rewards as in the API
    #[arg(long, value_name = "FILE")]
    pub problems: PathBuf,
    /// What to compare: greedy, a strategy, or a search object as JSON
    #[arg(
        long,
        value_name = "SEARCH",
        num_args = 1..,
        default_values = [GREEDY, "best_of_n", "mcts", "vm_mcts"]
    )]
    pub search: Vec<String>,
    /// Tokens of each search, in multiples of the greedy answer's to the same problem [default: no limit]
    #[arg(long, value_name = "FACTOR")]
    pub budget: Option<f64>,
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Name of the model [default: the server's first]
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Only the first problems
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Problems asked at the same time
    #[arg(long, default_value_t = 1)]
    pub concurrency: usize,
    #[arg(long, default_value_t = 768)]
    pub max_tokens: usize,
    /// Temperature of searches; greedy answers have 0
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}
