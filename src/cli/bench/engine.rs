//! `ponder bench engine`: prefill and decode without HTTP, as llama-bench and llama-batched-bench
//! measure them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;

use super::constrained::{Comparison, Constrained};
use super::engine_report::{BaseRates, Measured, Profile, Report};
use super::statistics::sorted;
use crate::cli::engine_args::EngineArgs;
use crate::cli::setup;
use crate::engine::{
    AdapterId, Backend, GenerateRequest, SamplingParams, Speculative, StreamEvent,
};
use crate::model::{LoraAdapter, OperatorTimes, RandomModel};

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
    /// Tokens that each sequence generates
    #[arg(long, default_value_t = 48)]
    pub output_len: usize,
    /// Numbers of sequences to decode at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,32")]
    pub batch: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// Measure a model of random weights instead of MODEL, such as 8b:bf16 (0.5b, 1.5b, 8b; bf16,
    /// q8_0, q4_k_m)
    #[arg(long, value_name = "SHAPE:TYPE")]
    pub random: Option<RandomModel>,
    /// Use this adapter (a folder in PEFT's format), and compare with the model alone
    #[arg(long, value_name = "FOLDER")]
    pub lora: Option<PathBuf>,
    /// Also decode under a JSON schema, and compare
    #[arg(long, conflicts_with = "random")]
    pub constrained: bool,
    /// Time each operator, and show how a step's time divides
    #[arg(long)]
    pub profile: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub(in crate::cli) fn run(args: &BenchEngineArgs) -> anyhow::Result<()> {
    let mut engine_args = args.engine.clone();
    // Every prompt differs, and a cached one would measure nothing.
    engine_args.no_enable_prefix_caching = true;
    // No request here drafts. What drafts cost would be measured between the repeats.
    engine_args.speculative.speculative = Speculative::Off;
    let started = Instant::now();
    let times = args.profile.then(|| Arc::new(OperatorTimes::default()));
    let (engine, config, name, tokenizer) = match &args.random {
        Some(model) => {
            let engine = setup::start_random(&engine_args, model)?;
            let name = format!("random {model:?}");
            (engine, Some(model.config()?), name, None)
        }
        None => {
            let served = setup::start_with(&engine_args, times.clone())?;
            let name = args.engine.model.clone();
            let tokenizer = Some(served.tokenizer);
            (served.engine, served.model_config, name, tokenizer)
        }
    };
    let load_seconds = started.elapsed().as_secs_f64();
    let vocab_size = engine.model_info().vocab_size;
    let tokenizer = tokenizer.filter(|_| args.constrained);
    let grammar = tokenizer.map(|tokenizer| Constrained::new(&tokenizer, vocab_size));
    let grammar = grammar.transpose()?;
    let adapter = match &args.lora {
        Some(folder) => {
            let config = config.as_ref().context("--lora needs --backend native")?;
            let read = LoraAdapter::read(folder, config);
            let adapter = read.with_context(|| format!("--lora {}", folder.display()))?;
            let loading = engine.load_adapter(adapter);
            Some(tokio::runtime::Runtime::new()?.block_on(loading)?)
        }
        None => None,
    };
    let bench = Bench {
        engine: engine.as_ref(),
        adapter,
        times: times.as_deref(),
    };
    let mut results = Vec::new();
    if args.prefill > 0 {
        results.push(bench.prefill(args)?);
    }
    for batch in &args.batch {
        results.push(bench.decode(args, *batch)?);
    }
    let mut compared = Vec::new();
    if let Some(grammar) = &grammar {
        for batch in &args.batch {
            compared.push((*batch, bench.compare(args, *batch, grammar)?));
        }
    }
    let report = Report {
        name,
        threads: args.engine.num_threads(),
        device: format!("{:?}", args.engine.device.device).to_lowercase(),
        load_seconds,
        results,
        grammar,
        compared,
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report.to_json())?),
        false => report.print(),
    }
    Ok(())
}

struct Bench<'a> {
    engine: &'a dyn Backend,
    adapter: Option<AdapterId>,
    times: Option<&'a OperatorTimes>,
}

impl Bench<'_> {
    fn prefill(&self, args: &BenchEngineArgs) -> anyhow::Result<Measured> {
        self.measure(args, true, args.prefill, |repeat, adapter| {
            if let Some(times) = self.times {
                times.take();
            }
            let started = Instant::now();
            let times = self.step_times(1, (args.prefill, 1), repeat, (adapter, None))?;
            Ok((args.prefill, (times.first_token - started).as_secs_f64()))
        })
    }

    fn decode(&self, args: &BenchEngineArgs, batch: usize) -> anyhow::Result<Measured> {
        self.measure(args, false, batch, |repeat, adapter| {
            let lengths = (args.prompt_len, args.output_len);
            let times = self.step_times(batch, lengths, repeat, (adapter, None))?;
            Ok((times.num_decoded, times.decode_seconds()))
        })
    }

    /// Repeats `work`, which says how many tokens took how many seconds; with an adapter in turns
    /// without it.
    fn measure(
        &self,
        args: &BenchEngineArgs,
        is_prefill: bool,
        size: usize,
        work: impl Fn(usize, Option<AdapterId>) -> anyhow::Result<(usize, f64)>,
    ) -> anyhow::Result<Measured> {
        let (mut rates, mut base_rates, mut profile) = (Vec::new(), Vec::new(), None);
        for repeat in 0..args.repeats.max(1) {
            let mut arms = vec![self.adapter];
            if self.adapter.is_some() {
                arms.push(None);
                // Whoever is second finds a warmer machine.
                arms.rotate_left(repeat % 2);
            }
            for adapter in arms {
                let (num_tokens, seconds) = work(repeat, adapter)?;
                let rate = num_tokens as f64 / seconds;
                if adapter == self.adapter {
                    rates.push(rate);
                    profile = self.times.map(|times| Profile::new(times.take(), seconds));
                } else {
                    base_rates.push(rate);
                }
            }
        }
        Ok(Measured {
            is_prefill,
            size,
            base: BaseRates::new(&rates, base_rates),
            rates: sorted(rates),
            profile,
        })
    }

    /// Decodes with a grammar and without, in turns.
    fn compare(
        &self,
        args: &BenchEngineArgs,
        batch: usize,
        grammar: &Constrained,
    ) -> anyhow::Result<Comparison> {
        let mut comparison = Comparison::default();
        for repeat in 0..args.repeats.max(1) {
            let Comparison { plain, constrained } = &mut comparison;
            let mut arms = [(plain, None), (constrained, Some(grammar))];
            // Whoever is second finds a warmer machine.
            arms.rotate_left(repeat % 2);
            for (arm, grammar) in arms {
                let lengths = (args.prompt_len, args.output_len);
                let started = Instant::now();
                let with = (self.adapter, grammar);
                let times = self.step_times(batch, lengths, repeat, with)?;
                arm.rates
                    .push(times.num_decoded as f64 / times.decode_seconds());
                arm.first_token_ms
                    .push((times.first_token - started).as_secs_f64() * 1e3);
            }
        }
        Ok(comparison)
    }

    /// Runs `batch` sequences and stamps their tokens. Operator times start over when every sequence
    /// has its first token.
    fn step_times(
        &self,
        batch: usize,
        (prompt_len, output_len): (usize, usize),
        repeat: usize,
        (adapter, grammar): (Option<AdapterId>, Option<&Constrained>),
    ) -> anyhow::Result<Times> {
        // Readers only wait; they stamp tokens as they arrive.
        let (sender, receiver) = std::sync::mpsc::channel();
        for sequence in 0..batch {
            let request = GenerateRequest {
                adapter,
                constraint: grammar.map(|grammar| grammar.constraint.fork()),
                ..request(self.engine, sequence, prompt_len, output_len, repeat)
            };
            let mut stream = self.engine.submit(request)?;
            let sender = sender.clone();
            std::thread::spawn(move || {
                while let Some(event) = stream.blocking_recv() {
                    let is_error = matches!(event, StreamEvent::Error(_));
                    let is_token = matches!(event, StreamEvent::Token { .. });
                    let stamp = (sequence, is_error, Instant::now());
                    if (is_token || is_error) && sender.send(stamp).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut tokens = Vec::new();
        let mut firsts = vec![None; batch];
        let mut num_started = 0;
        for (sequence, is_error, at) in receiver {
            if is_error {
                bail!("the engine failed");
            }
            if firsts[sequence].is_none() {
                firsts[sequence] = Some(at);
                num_started += 1;
                if let (true, true, Some(times)) =
                    (num_started == batch, output_len > 1, self.times)
                {
                    times.take();
                }
            }
            tokens.push(at);
        }
        let firsts: Vec<Instant> = firsts.into_iter().flatten().collect();
        let (Some(first_token), Some(all_started)) = (firsts.iter().min(), firsts.iter().max())
        else {
            bail!("nothing was generated");
        };
        Ok(Times {
            first_token: *first_token,
            all_started: *all_started,
            last_token: tokens.iter().max().copied().unwrap_or(*all_started),
            num_decoded: tokens.iter().filter(|at| **at > *all_started).count(),
        })
    }
}

struct Times {
    first_token: Instant,
    /// When every sequence had its first token: prefill is over.
    all_started: Instant,
    last_token: Instant,
    /// Tokens generated after `all_started`.
    num_decoded: usize,
}

impl Times {
    fn decode_seconds(&self) -> f64 {
        let decoding = self.last_token - self.all_started;
        decoding.as_secs_f64().max(1e-9)
    }
}

/// A prompt that no other sequence or repeat has.
fn request(
    engine: &dyn Backend,
    sequence: usize,
    prompt_len: usize,
    output_len: usize,
    repeat: usize,
) -> GenerateRequest {
    let vocab_size = engine.model_info().vocab_size;
    let token = |i: usize| ((i * 7919 + sequence * 104_729 + repeat * 31) % vocab_size) as u32;
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: output_len,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    GenerateRequest {
        // Made-up prompts repeat themselves; what decoding costs is measured here.
        speculative: Some(Speculative::Off),
        ..GenerateRequest::new((0..prompt_len).map(token).collect(), params)
    }
}
