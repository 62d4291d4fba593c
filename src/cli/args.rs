//! Flags. Each is also a `PONDER_*` variable and a key of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::backend::BackendArgs;
use super::bench::adaptation::BenchAdaptationArgs;
use super::bench::search::BenchSearchArgs;
use super::bench::speculative::BenchSpeculativeArgs;
use super::bench::swift::BenchSwiftArgs;
use super::bench::traces::BenchTracesArgs;
use super::prm::PrmArgs;
use super::traces::args::{TraceArgs, TracesCommand};
use crate::api::config as limits;
use crate::engine::config as sizes;
use crate::engine::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, Speculative, SpeculativeConfig,
};
use crate::model::SkipSet;
use crate::model::catalogue::DEFAULT_MODEL;

/// Serve a language model over the OpenAI API from a paged engine.
#[derive(Debug, Parser)]
#[command(name = "ponder", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// TOML file whose keys are flag names (flag > environment > file)
    #[arg(long, global = true, env = "PONDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ponder serve                                  pull and serve the small default model on 127.0.0.1:8000
  ponder serve qwen2.5-coder-0.5b --port 8080   another model of the catalogue
  ponder serve ./model.gguf --api-key SECRET    a file of your own
  ponder chat \"What is a monad?\"                one answer in the terminal
  ponder bench engine qwen2.5-coder-0.5b        prefill and decode speed";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Fetch a model into the cache and check it
    Pull {
        /// Catalogue name or hf:ORG/REPO/FILE
        #[arg(default_value = DEFAULT_MODEL)]
        model: String,
    },
    /// List the catalogue and what is cached
    Models {
        #[arg(long)]
        json: bool,
    },
    /// Talk to a server, or to a model in this process
    Chat(ChatArgs),
    /// Train from searched trees
    Train {
        #[command(subcommand)]
        command: TrainCommand,
    },
    /// Read what the server has kept of searches and answers
    Traces {
        #[command(subcommand)]
        command: TracesCommand,
    },
    /// Measure speed
    Bench {
        #[command(subcommand)]
        command: BenchCommand,
    },
}

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// A head that values answers by the model's own hidden states, for serve --value-head
    ValueHead(TrainValueHeadArgs),
}

#[derive(Debug, Clone, Args)]
pub struct TrainValueHeadArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// NDJSON files of trees whose answers have an outcome
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What the value of a step means
    #[arg(long, value_enum, default_value_t = TargetArg::RestMcts)]
    pub target: TargetArg,
    /// Units between the state and the value, of each member
    #[arg(long, default_value_t = 16)]
    pub width: usize,
    /// Heads that are trained and averaged
    #[arg(long, default_value_t = 8)]
    pub members: usize,
    /// Do not read the answer's likelihood (a head for --prm cannot)
    #[arg(long)]
    pub no_likelihood: bool,
    /// Weight of telling right from wrong answers of one prompt, beside the squared error
    #[arg(long, default_value_t = 1.0)]
    pub pairwise: f64,
    /// Also train this many heads, each without a share of the prompts, and measure them on what they have not seen
    #[arg(long, value_name = "FOLDS", value_parser = clap::value_parser!(u64).range(2..=20))]
    pub cross_validate: Option<u64>,
    /// Epochs at most; it stops when the held-out loss no longer falls
    #[arg(long, default_value_t = 60)]
    pub epochs: usize,
    /// Share of the prompts that is only measured on
    #[arg(long, default_value_t = 0.2)]
    pub held_out: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print the measurements as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetArg {
    /// Distance to a right answer (ReST-MCTS*)
    RestMcts,
    /// Mean outcome of the answers below (VM-MCTS)
    Mean,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The engine in this process: prefill and decode, no HTTP
    Engine(BenchEngineArgs),
    /// How well a model predicts a text file, as llama-perplexity measures it
    Perplexity(BenchPerplexityArgs),
    /// Whether adapting to a context helps to predict what follows it, and what it costs
    Adaptation(BenchAdaptationArgs),
    /// How often a value head chooses a right answer, beside likelihood and chance
    ValueHead(BenchValueHeadArgs),
    /// Searches on a running server: right answers per second and per token
    Search(BenchSearchArgs),
    /// What a draft by the model itself may leave out, and what it would gain
    Swift(BenchSwiftArgs),
    /// Decoding with and without drafts: the same answers, sooner
    Speculative(BenchSpeculativeArgs),
    /// The trace store: writes, streams to one reader, size
    Traces(BenchTracesArgs),
    /// Any OpenAI server: TTFT, inter-token latency, throughput
    Serve(BenchServeArgs),
}

/// What every command that loads a model takes.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Catalogue name, .gguf file, safetensors folder or hf:ORG/REPO/FILE
    #[arg(default_value = DEFAULT_MODEL, env = "PONDER_MODEL")]
    pub model: String,
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Threads of the engine [default: all cores]
    #[arg(long, env = "PONDER_THREADS", help_heading = "Engine")]
    pub threads: Option<usize>,
    /// Longest prompt plus answer [default: the model's, at most 8192]
    #[arg(long, env = "PONDER_MAX_MODEL_LEN", help_heading = "Engine")]
    pub max_model_len: Option<usize>,
    /// Sequences in one step
    #[arg(long, env = "PONDER_MAX_NUM_SEQS", default_value_t = sizes::DEFAULT_MAX_NUM_SEQS, help_heading = "Engine")]
    pub max_num_seqs: usize,
    /// Rows (tokens) in one step
    #[arg(long, env = "PONDER_MAX_NUM_BATCHED_TOKENS", default_value_t = sizes::DEFAULT_MAX_NUM_BATCHED_TOKENS, help_heading = "Engine")]
    pub max_num_batched_tokens: usize,
    /// Tokens per KV block (a multiple of 16)
    #[arg(long, env = "PONDER_BLOCK_SIZE", default_value_t = sizes::DEFAULT_BLOCK_SIZE, help_heading = "Engine")]
    pub block_size: usize,
    /// Memory of the KV cache, as 512M or 4G [default: a quarter of what is free]
    #[arg(long, env = "PONDER_KV_CACHE_MEMORY", value_parser = parse_bytes, help_heading = "Engine")]
    pub kv_cache_memory: Option<usize>,
    /// Compute every prompt anew
    #[arg(long, env = "PONDER_NO_ENABLE_PREFIX_CACHING", help_heading = "Engine")]
    pub no_enable_prefix_caching: bool,
    /// Run each prompt in one step
    #[arg(
        long,
        env = "PONDER_NO_ENABLE_CHUNKED_PREFILL",
        help_heading = "Engine"
    )]
    pub no_enable_chunked_prefill: bool,
    /// Sequences that may wait before requests get 429
    #[arg(long, env = "PONDER_MAX_NUM_QUEUED_SEQS", default_value_t = sizes::DEFAULT_MAX_NUM_WAITING_SEQS, help_heading = "Engine")]
    pub max_num_queued_seqs: usize,
    /// Jinja file to use instead of the model's chat template
    #[arg(
        long,
        env = "PONDER_CHAT_TEMPLATE",
        value_name = "FILE",
        help_heading = "Engine"
    )]
    pub chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub speculative: SpeculativeArgs,
}

#[derive(Debug, Clone, Args)]
pub struct SpeculativeArgs {
    /// Who drafts tokens that a step then verifies together; answers stay the same, token by token
    #[arg(long, env = "PONDER_SPECULATIVE", value_parser = parse_speculative, default_value = "auto", hide_possible_values = true, value_name = "off|prompt-lookup|swift|draft-model|auto", help_heading = "Speculation")]
    pub speculative: Speculative,
    /// Tokens that a step verifies of one sequence, at most
    #[arg(long, env = "PONDER_NUM_SPECULATIVE_TOKENS", default_value_t = DEFAULT_NUM_SPECULATIVE_TOKENS, help_heading = "Speculation")]
    pub num_speculative_tokens: usize,
    /// Tokens that must be found again before what followed them is drafted
    #[arg(long, env = "PONDER_PROMPT_LOOKUP_MIN", default_value_t = DEFAULT_PROMPT_LOOKUP_MIN, help_heading = "Speculation")]
    pub prompt_lookup_min: usize,
    /// Small model with the same tokenizer that drafts
    #[arg(
        long,
        env = "PONDER_DRAFT_MODEL",
        value_name = "MODEL",
        help_heading = "Speculation"
    )]
    pub draft_model: Option<String>,
    /// Sub-layers that a SWIFT draft leaves out, from `ponder bench swift --out` [default: MODEL.skip.json beside the model]
    #[arg(
        long,
        env = "PONDER_SKIP_SET",
        value_name = "FILE",
        help_heading = "Speculation"
    )]
    pub skip_set: Option<PathBuf>,
    /// Draft whenever there is something to draft, whatever it costs
    #[arg(
        long,
        env = "PONDER_SPECULATIVE_IGNORE_COST",
        help_heading = "Speculation"
    )]
    pub speculative_ignore_cost: bool,
}

impl SpeculativeArgs {
    pub fn config(&self, skip_set: Option<SkipSet>) -> SpeculativeConfig {
        SpeculativeConfig {
            default: self.speculative,
            num_speculative_tokens: self.num_speculative_tokens,
            prompt_lookup_min: self.prompt_lookup_min,
            skip_set,
            ignores_costs: self.speculative_ignore_cost,
        }
    }
}

pub fn parse_speculative(text: &str) -> Result<Speculative, String> {
    let names = Speculative::ALL.map(Speculative::name).join(", ");
    Speculative::from_name(text).ok_or_else(|| format!("choose one of {names}"))
}

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[arg(
        long,
        env = "PONDER_HOST",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: String,
    /// 0 picks a free port
    #[arg(
        long,
        env = "PONDER_PORT",
        default_value_t = 8000,
        help_heading = "Server"
    )]
    pub port: u16,
    /// Keys that clients must send (several: repeat, or separate by commas)
    #[arg(
        long,
        env = "PONDER_API_KEY",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub api_key: Vec<String>,
    /// Names that requests may use [default: the model's]
    #[arg(
        long,
        env = "PONDER_SERVED_MODEL_NAME",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub served_model_name: Vec<String>,
    /// Longest request body, as 16M
    #[arg(long, env = "PONDER_MAX_BODY_BYTES", value_parser = parse_bytes, help_heading = "Server")]
    pub max_body_bytes: Option<usize>,
    /// Seconds that a request may take at most
    #[arg(long, env = "PONDER_REQUEST_TIMEOUT", default_value_t = limits::DEFAULT_REQUEST_TIMEOUT.as_secs(), help_heading = "Server")]
    pub request_timeout: u64,
    /// Seconds that running requests may take after SIGTERM
    #[arg(long, env = "PONDER_SHUTDOWN_TIMEOUT", default_value_t = limits::DEFAULT_SHUTDOWN_TIMEOUT.as_secs(), help_heading = "Server")]
    pub shutdown_timeout: u64,
    /// Origins that browsers may call from (* for all)
    #[arg(
        long,
        env = "PONDER_CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub cors_allow_origin: Vec<String>,
    /// Serve /metrics without a key
    #[arg(long, env = "PONDER_METRICS_WITHOUT_AUTH", help_heading = "Server")]
    pub metrics_without_auth: bool,
    /// Head of `ponder train value-head`: the default reward of searches
    #[arg(
        long,
        env = "PONDER_VALUE_HEAD",
        value_name = "FILE",
        help_heading = "Search"
    )]
    pub value_head: Option<PathBuf>,
    #[command(flatten)]
    pub prm: PrmArgs,
    /// Adapt each request to its own context first: slot, router, or JSON (docs/adaptation.md)
    #[arg(
        long,
        env = "PONDER_ADAPTATION",
        value_name = "slot|router|JSON",
        help_heading = "Adaptation"
    )]
    pub adaptation: Option<String>,
    /// The same for the routers of a mixture-of-experts model: alone, or with JSON
    #[arg(
        long,
        env = "PONDER_ROUTER_ADAPTATION",
        value_name = "JSON",
        num_args = 0..=1,
        default_missing_value = "true",
        conflicts_with = "adaptation",
        help_heading = "Adaptation"
    )]
    pub router_adaptation: Option<String>,
    /// Let requests load adapters from folders on this machine (/v1/load_lora_adapter)
    #[arg(long, env = "PONDER_ENABLE_LORA", help_heading = "Adapters")]
    pub enable_lora: bool,
    /// Adapters to load at start, as NAME=FOLDER
    #[arg(
        long,
        env = "PONDER_LORA_MODULES",
        value_name = "NAME=FOLDER",
        value_parser = parse_module,
        value_delimiter = ',',
        num_args = 1..,
        help_heading = "Adapters"
    )]
    pub lora_modules: Vec<(String, PathBuf)>,
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Server that scores answers for the reward `http`
    #[arg(
        long,
        env = "PONDER_REWARD_URL",
        value_name = "URL",
        help_heading = "Search"
    )]
    pub reward_url: Option<String>,
    /// Milliseconds that one call of the reward server may take
    #[arg(
        long,
        env = "PONDER_REWARD_TIMEOUT_MS",
        default_value_t = 10_000,
        help_heading = "Search"
    )]
    pub reward_timeout_ms: u64,
    /// Let requests run Python tests on the model's code, in a sandbox
    #[arg(long, env = "PONDER_ALLOW_CODE_EXECUTION", help_heading = "Search")]
    pub allow_code_execution: bool,
    /// error, warn, info, debug or a tracing filter
    #[arg(
        long,
        env = "PONDER_LOG_LEVEL",
        default_value = "warn",
        help_heading = "Server"
    )]
    pub log_level: String,
}

impl ServeArgs {
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout)
    }

    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout)
    }
}

#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// One message; without it an interactive chat starts
    pub message: Option<String>,
    /// A running server, as http://127.0.0.1:8000 [default: load a model in this process]
    #[arg(long, env = "PONDER_URL")]
    pub url: Option<String>,
    /// Model of the in-process server, or the name to ask the server for
    #[arg(long, short, env = "PONDER_MODEL")]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// System message
    #[arg(long, short)]
    pub system: Option<String>,
    // The help names all strategies.
    #[arg(long, value_name = "STRATEGY", help = super::chat_search::help())]
    pub search: Option<String>,
    /// Draw the searched tree after the answer
    #[arg(long, requires = "search")]
    pub show_tree: bool,
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    #[arg(long, default_value_t = 1024)]
    pub max_tokens: usize,
}

#[derive(Debug, Clone, Args)]
pub struct BenchEngineArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Tokens of the prefill measurement
    #[arg(long, default_value_t = 512)]
    pub prefill: usize,
    /// Prompt length of the decode measurements
    #[arg(long, default_value_t = 128)]
    pub prompt_len: usize,
    /// Tokens generated by each sequence
    #[arg(long, default_value_t = 48)]
    pub output_len: usize,
    /// Sequences decoded at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,32")]
    pub batch: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// Decode with this adapter (a folder in PEFT's format)
    #[arg(long, value_name = "FOLDER")]
    pub lora: Option<PathBuf>,
    /// Time each operator, and show how a step's time divides
    #[arg(long)]
    pub profile: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

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

#[derive(Debug, Clone, Args)]
pub struct BenchPerplexityArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The text (UTF-8)
    #[arg(long, short)]
    pub file: PathBuf,
    /// Tokens of a chunk; the second half of each is scored
    #[arg(long, default_value_t = 512)]
    pub context: usize,
    /// Print JSON instead of a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct BenchServeArgs {
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Name of the model [default: the server's first]
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Clients at once
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    #[arg(long, default_value_t = 64)]
    pub num_prompts: usize,
    /// Stop sending after this many seconds, whatever --num-prompts says
    #[arg(long)]
    pub duration: Option<u64>,
    /// Words of a prompt
    #[arg(long, default_value_t = 128)]
    pub prompt_len: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 64)]
    pub output_len: usize,
    /// Share of clients that hang up in the middle of their answer
    #[arg(long, default_value_t = 0.0)]
    pub abort_fraction: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `NAME=FOLDER`
fn parse_module(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(folder)))
        }
        _ => Err(format!("{text:?} is not NAME=FOLDER")),
    }
}

/// `512M`, `4G`, `1000000`
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        other => return Err(format!("unknown unit {other:?}; use K, M or G")),
    };
    let value: f64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size"))?;
    let bytes = value * (1_u64 << unit) as f64;
    if !(1.0..1e15).contains(&bytes) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("77"), Ok(77));
        for bad in ["", "M", "5X", "-1", "1e30"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
