//! Flags. Each is also a `PONDER_*` variable and a key of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, value_parser};
use clap_complete::Shell;

use super::bench::BenchCommand;
use super::chat::ChatArgs;
use super::connection_args::ConnectionArgs;
use super::doctor::DoctorArgs;
use super::encoder_args::EncoderArgs;
use super::engine_args::EngineArgs;
use super::prm::PrmArgs;
use super::traces::args::{TraceArgs, TracesCommand};
use super::train::TrainCommand;
use super::value_adapters::ValueAdapterArgs;
use super::values::{MAX_MILLISECONDS, MAX_SECONDS, parse_bytes, parse_module};
use super::work_args::WorkArgs;
use crate::api::config as limits;
use crate::model::catalogue::DEFAULT_MODEL;

/// Serve a language model over the OpenAI API from a paged engine.
#[derive(Debug, Parser)]
#[command(name = "ponder", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// TOML file whose keys are names of flags; a flag wins over the environment, the environment
    /// over the file
    #[arg(long, global = true, env = "PONDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ponder serve                                  pull and serve the default model on 127.0.0.1:8000
  ponder serve smollm2-135m --port 8080         a smaller model of the catalogue
  ponder serve ./model.gguf --api-key SECRET    a file of your own
  ponder chat \"What is a monad?\"                one answer in the terminal
  ponder doctor                                 what works on this machine, and what to do
  ponder bench engine qwen2.5-coder-0.5b        prefill and decode speed";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Fetch a model into the cache; verify a cached model, and fetch it again if it is damaged
    Pull {
        /// Catalogue name or hf:ORG/REPO/FILE
        #[arg(default_value = DEFAULT_MODEL)]
        model: String,
    },
    /// List the models of the catalogue, and which of them are cached
    Models {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        /// Read every cached model and compare its checksum with the catalogue's
        #[arg(long)]
        verify: bool,
    },
    /// Chat with a server, or with a model in this process
    Chat(ChatArgs),
    /// Train a value head or a calibration from traces
    Train {
        #[command(subcommand)]
        command: TrainCommand,
    },
    /// List, show, export and import traces of searches and answers
    Traces {
        #[command(subcommand)]
        command: TracesCommand,
    },
    /// Measure speed and quality
    Bench {
        #[command(subcommand)]
        command: Box<BenchCommand>,
    },
    /// Say what Ponder finds on this machine, and what to do where something is missing
    Doctor(DoctorArgs),
    /// Print the completions of a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands
    Man {
        /// Folder for the pages, such as ~/.local/share/man/man1
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Address to listen on
    #[arg(
        long,
        env = "PONDER_HOST",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: String,
    /// Port to listen on; 0 picks a free port
    #[arg(
        long,
        env = "PONDER_PORT",
        default_value_t = 8000,
        help_heading = "Server"
    )]
    pub port: u16,
    /// Key that clients must send (for several keys, repeat the flag or separate by commas)
    #[arg(
        long,
        env = "PONDER_API_KEY",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub api_key: Vec<String>,
    /// Name that requests may use for the model (repeat, or separate by commas) [default: the
    /// model's own]
    #[arg(
        long,
        env = "PONDER_SERVED_MODEL_NAME",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub served_model_name: Vec<String>,
    /// Largest request body in bytes, such as 16M
    #[arg(long, env = "PONDER_MAX_BODY_BYTES", value_parser = parse_bytes, help_heading = "Server")]
    pub max_body_bytes: Option<usize>,
    /// Longest time for a request, in seconds
    #[arg(long, env = "PONDER_REQUEST_TIMEOUT", default_value_t = limits::DEFAULT_REQUEST_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(..=MAX_SECONDS), help_heading = "Server")]
    pub request_timeout: u64,
    /// Seconds that running requests have to finish after SIGTERM
    #[arg(long, env = "PONDER_SHUTDOWN_TIMEOUT", default_value_t = limits::DEFAULT_SHUTDOWN_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(..=MAX_SECONDS), help_heading = "Server")]
    pub shutdown_timeout: u64,
    /// Origin that browsers may send requests from; * allows all (repeat, or separate by commas)
    #[arg(
        long,
        env = "PONDER_CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub cors_allow_origin: Vec<String>,
    /// Treat control tokens such as <|im_start|> in messages as plain text
    #[arg(long, env = "PONDER_ESCAPE_SPECIAL_TOKENS", help_heading = "Server")]
    pub escape_special_tokens: bool,
    /// Serve no page for browsers at /
    #[arg(long, env = "PONDER_NO_UI", help_heading = "Server")]
    pub no_ui: bool,
    /// Serve /metrics to clients without a key
    #[arg(long, env = "PONDER_METRICS_WITHOUT_AUTH", help_heading = "Server")]
    pub metrics_without_auth: bool,
    /// Value head from `ponder train value-head`, the default reward of searches
    #[arg(
        long,
        env = "PONDER_VALUE_HEAD",
        value_name = "FILE",
        help_heading = "Search"
    )]
    pub value_head: Option<PathBuf>,
    /// Calibration from `ponder train calibration`, which tells the strategy auto how likely
    /// answers are right
    #[arg(
        long,
        env = "PONDER_CALIBRATION",
        value_name = "FILE",
        help_heading = "Search"
    )]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub value_adapters: ValueAdapterArgs,
    #[command(flatten)]
    pub prm: PrmArgs,
    /// Adapt the model to each request's own context first: slot, router, or JSON
    /// (docs/adaptation.md)
    #[arg(
        long,
        env = "PONDER_ADAPTATION",
        value_name = "slot|router|JSON",
        help_heading = "Adaptation"
    )]
    pub adaptation: Option<String>,
    /// Adapt the routers of a mixture of experts, with the default settings or those of a JSON
    /// object
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
    #[command(flatten)]
    pub connections: ConnectionArgs,
    #[command(flatten)]
    pub encoders: EncoderArgs,
    /// Let requests load LoRA adapters from folders inside --lora-root (/v1/load_lora_adapter)
    #[arg(long, env = "PONDER_ENABLE_LORA", help_heading = "Adapters")]
    pub enable_lora: bool,
    /// Folder that requests may load adapters from (repeat, or separate by commas)
    #[arg(
        long,
        env = "PONDER_LORA_ROOT",
        value_name = "DIR",
        value_delimiter = ',',
        help_heading = "Adapters"
    )]
    pub lora_root: Vec<PathBuf>,
    /// Largest size of one key's adapters together, such as 512M [default: 1G]
    #[arg(long, env = "PONDER_MAX_LORA_BYTES", value_parser = parse_bytes, help_heading = "Adapters")]
    pub max_lora_bytes: Option<usize>,
    /// LoRA adapter to load at the start, served as the model NAME
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
    #[command(flatten)]
    pub work: WorkArgs,
    /// Address of the server that scores answers for the reward `http`
    #[arg(
        long,
        env = "PONDER_REWARD_URL",
        value_name = "URL",
        help_heading = "Search"
    )]
    pub reward_url: Option<String>,
    /// Longest time for one call of the reward server, in milliseconds
    #[arg(
        long,
        env = "PONDER_REWARD_TIMEOUT_MS",
        default_value_t = 10_000,
        value_parser = value_parser!(u64).range(..=MAX_MILLISECONDS),
        help_heading = "Search"
    )]
    pub reward_timeout_ms: u64,
    /// Run Python in a sandbox, for requests with tests or with the tool code_interpreter
    #[arg(long, env = "PONDER_ALLOW_CODE_EXECUTION", help_heading = "Search")]
    pub allow_code_execution: bool,
    /// What to log: error, warn, info, debug, or a tracing filter
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_that_no_clock_can_tell_are_refused() {
        let huge = u64::MAX.to_string();
        for line in [
            "serve --request-timeout",
            "serve --shutdown-timeout",
            "serve --reward-timeout-ms",
            "serve --header-timeout",
            "serve --write-timeout",
            "serve --trace-max-days",
            "bench serve --duration",
        ] {
            let words = || ["ponder"].into_iter().chain(line.split(' '));
            let parsed = Cli::try_parse_from(words().chain([huge.as_str()]));
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains("is not in "), "{error}");
            assert!(Cli::try_parse_from(words().chain(["36500"])).is_ok());
        }
    }
}
