//! Measurements that anyone can start.

mod adaptation;
mod constrained;
mod context;
mod engine;
mod engine_report;
mod kl_divergence;
mod lone_sequence;
mod perplexity;
mod search;
mod serve;
mod soak;
mod speculative;
mod statistics;
mod swift;
mod traces;
mod value_head;

use clap::Subcommand;

use adaptation::BenchAdaptationArgs;
use context::BenchContextArgs;
use engine::BenchEngineArgs;
use perplexity::BenchPerplexityArgs;
use search::BenchSearchArgs;
use serve::BenchServeArgs;
use soak::BenchSoakArgs;
use speculative::BenchSpeculativeArgs;
use swift::BenchSwiftArgs;
use traces::BenchTracesArgs;
use value_head::BenchValueHeadArgs;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The engine in this process: prefill and decode, no HTTP
    Engine(BenchEngineArgs),
    /// Prefill and decode behind contexts of any length, which are not computed
    Context(BenchContextArgs),
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
    /// Hours of everything on a server of its own, which is killed meanwhile: nothing lost, leaked or stuck
    Soak(BenchSoakArgs),
}

pub(super) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::run(args),
        BenchCommand::Context(args) => context::run(args),
        BenchCommand::Perplexity(args) => perplexity::run(args),
        BenchCommand::Adaptation(args) => adaptation::run(args),
        BenchCommand::ValueHead(args) => value_head::run(args),
        BenchCommand::Search(args) => search::run(args),
        BenchCommand::Swift(args) => swift::run(args),
        BenchCommand::Speculative(args) => speculative::run(args),
        BenchCommand::Traces(args) => traces::run(args),
        BenchCommand::Serve(args) => serve::run(args),
        BenchCommand::Soak(args) => soak::run(args),
    }
}
