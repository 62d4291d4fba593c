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
    /// Measure the engine in this process: prefill and decode, without HTTP
    Engine(BenchEngineArgs),
    /// Measure prefill and decode behind long contexts, which are not computed
    Context(BenchContextArgs),
    /// Measure how well a model predicts a text file, as llama-perplexity does
    Perplexity(BenchPerplexityArgs),
    /// Measure whether adapting to a context helps to predict what follows, and what that costs
    Adaptation(BenchAdaptationArgs),
    /// Measure how often a value head chooses a right answer, beside likelihood and chance
    ValueHead(BenchValueHeadArgs),
    /// Measure searches on a running server: right answers per second and per token
    Search(BenchSearchArgs),
    /// Choose the sub-layers that SWIFT's drafts leave out, and measure the gain
    Swift(BenchSwiftArgs),
    /// Measure decoding with and without drafts, and check that answers are the same
    Speculative(BenchSpeculativeArgs),
    /// Measure the trace store: writes, streams to one reader, size
    Traces(BenchTracesArgs),
    /// Measure any OpenAI server: time to the first token, time between tokens, throughput
    Serve(BenchServeArgs),
    /// Run mixed traffic for hours on a server that is killed and restarted; check that nothing is
    /// lost, leaked or stuck
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
