//! Flags of the trace store, for the server and for `ponder traces`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, value_parser};

use crate::cli::values::{MAX_DAYS, parse_bytes};
use crate::model::catalogue::home;
use crate::trace::{
    DEFAULT_MAX_AGE, DEFAULT_MAX_BYTES, ExportOptions, Filter, Format, Level, StoreOptions,
    TraceStore,
};

const STORE_FILE: &str = "traces.db";
const DAY: u64 = 24 * 3600;

/// Where traces lie.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// SQLite file that keeps the traces [default: traces.db beside the models' cache]
    #[arg(
        long,
        env = "PONDER_TRACE_DB",
        value_name = "FILE",
        help_heading = "Traces"
    )]
    pub trace_db: Option<PathBuf>,
}

impl StoreArgs {
    pub fn path(&self) -> PathBuf {
        self.trace_db
            .clone()
            .unwrap_or_else(|| home().join(STORE_FILE))
    }

    /// Opens a store that is there, to read it.
    pub fn open(&self) -> anyhow::Result<TraceStore> {
        Ok(TraceStore::open_to_read(&self.path())?)
    }
}

/// What the server keeps.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Keep no traces
    #[arg(
        long,
        env = "PONDER_NO_TRACES",
        conflicts_with = "trace_db",
        help_heading = "Traces"
    )]
    pub no_traces: bool,
    /// Keep plain answers too, not only searches
    #[arg(long, env = "PONDER_TRACE_ALL", help_heading = "Traces")]
    pub trace_all: bool,
    /// Key that reads and grades the traces of all keys, and does nothing else (repeat, or separate
    /// by commas)
    #[arg(
        long,
        env = "PONDER_TRACE_API_KEY",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Traces"
    )]
    pub trace_api_key: Vec<String>,
    /// Keep the shapes and values of trees, but no texts and no token ids
    #[arg(long, env = "PONDER_REDACT_TRACES", help_heading = "Traces")]
    pub redact_traces: bool,
    /// Age in days after which traces are deleted
    #[arg(long, env = "PONDER_TRACE_MAX_DAYS", default_value_t = DEFAULT_MAX_AGE.as_secs() / DAY, value_parser = value_parser!(u64).range(..=MAX_DAYS), help_heading = "Traces")]
    pub trace_max_days: u64,
    /// Compressed size beyond which the oldest traces are deleted, such as 4G [default: 4G]
    #[arg(long, env = "PONDER_TRACE_MAX_BYTES", value_parser = parse_bytes, help_heading = "Traces")]
    pub trace_max_bytes: Option<usize>,
}

impl TraceArgs {
    pub fn options(&self) -> StoreOptions {
        StoreOptions {
            max_age: Duration::from_secs(self.trace_max_days * DAY),
            max_bytes: self
                .trace_max_bytes
                .map_or(DEFAULT_MAX_BYTES, |bytes| bytes as u64),
            redact: self.redact_traces,
            ..StoreOptions::default()
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum TracesCommand {
    /// List traces, the newest first
    List {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        filter: FilterArgs,
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Draw one trace's tree
    Show {
        id: String,
        #[command(flatten)]
        store: StoreArgs,
        /// Print the record as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print how many traces the store holds, their size, and how many have an outcome
    Stats {
        #[command(flatten)]
        store: StoreArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add traces from a file, as written by export --format tree
    Import {
        /// JSON lines
        file: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
        /// Tag to add to every trace (repeat for several)
        #[arg(long)]
        tag: Vec<String>,
    },
    /// Write traces as training data
    Export(ExportArgs),
}

#[derive(Debug, Clone, Args)]
pub struct FilterArgs {
    /// Model that the requests named
    #[arg(long, help_heading = "Which traces")]
    pub model: Option<String>,
    /// Strategy of the search
    #[arg(long, help_heading = "Which traces")]
    pub strategy: Option<String>,
    /// Tag that traces must have (repeat for several)
    #[arg(long, help_heading = "Which traces")]
    pub tag: Vec<String>,
    /// Least value of the chosen answer
    #[arg(long, help_heading = "Which traces")]
    pub min_value: Option<f64>,
    /// Least outcome of the chosen answer
    #[arg(long, help_heading = "Which traces")]
    pub min_outcome: Option<f64>,
    /// Only traces with (true) or without (false) an outcome
    #[arg(long, help_heading = "Which traces")]
    pub has_outcome: Option<bool>,
    /// Earliest time of creation, in Unix seconds
    #[arg(long, help_heading = "Which traces")]
    pub created_from: Option<u64>,
    /// Created before this time, in Unix seconds
    #[arg(long, help_heading = "Which traces")]
    pub created_before: Option<u64>,
}

impl FilterArgs {
    pub fn filter(&self) -> Filter {
        Filter {
            owner: None,
            model: self.model.clone(),
            strategy: self.strategy.clone(),
            tags: self.tag.clone(),
            min_value: self.min_value,
            min_outcome: self.min_outcome,
            has_outcome: self.has_outcome,
            created_from: self.created_from,
            created_before: self.created_before,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// tree, sft, step_values, preferences, linearised or groups
    #[arg(long, value_parser = str::parse::<Format>)]
    pub format: Format,
    /// File to write, .jsonl, or .parquet in a build with the feature parquet; - writes JSON lines
    /// to the terminal
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Least gap between the two answers of a pair
    #[arg(long, default_value_t = ExportOptions::default().min_margin)]
    pub min_margin: f64,
    /// Most rows of one prompt
    #[arg(long)]
    pub max_per_prompt: Option<usize>,
    /// Also write rows whose content was written before
    #[arg(long)]
    pub no_deduplicate: bool,
    /// Pairs of whole answers or of sibling steps
    #[arg(long, value_enum, default_value_t = LevelArg::Answer)]
    pub level: LevelArg,
    /// Most detours of a linearised walk
    #[arg(long, default_value_t = ExportOptions::default().max_wrong_branches)]
    pub max_wrong_branches: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LevelArg {
    Answer,
    Step,
}

impl ExportArgs {
    pub fn options(&self) -> ExportOptions {
        ExportOptions {
            min_margin: self.min_margin,
            max_per_prompt: self.max_per_prompt,
            deduplicate: !self.no_deduplicate,
            level: match self.level {
                LevelArg::Answer => Level::Answer,
                LevelArg::Step => Level::Step,
            },
            max_wrong_branches: self.max_wrong_branches,
        }
    }
}
