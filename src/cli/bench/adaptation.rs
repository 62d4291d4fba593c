//! `ponder bench adaptation`: whether adapting to a context helps to predict what follows it, and
//! what that costs.
//!
//! A text is cut into windows. For each, the model reads the context, adapts to it in each of
//! several ways ("arms"), and predicts the continuation under what was found. Differences are
//! paired by window.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::default_adaptation;
use crate::cli::engine_args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::{
    AdaptationConfig, Backend, GenerateRequest, SamplingParams, Speculative, Steering, StreamEvent,
};
use crate::model::adapt::KvPolicy;

/// Two-sided 95 % of a normal distribution.
const Z95: f64 = 1.959_964;

#[derive(Debug, Clone, Args)]
pub struct BenchAdaptationArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Text to predict
    #[arg(long)]
    pub file: PathBuf,
    /// Tokens to adapt to
    #[arg(long, default_value_t = 256)]
    pub context: usize,
    /// Tokens to predict after them
    #[arg(long, default_value_t = 128)]
    pub continuation: usize,
    /// Windows of the text, spread evenly
    #[arg(long, default_value_t = 40)]
    pub windows: usize,
    /// JSON list of {"name", "adaptation", "control"}: what a request's `adaptation` may say, and whether what is found is
    /// shuffled within each layer before it is used
    #[arg(long, value_name = "FILE")]
    pub arms: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArmSpec {
    name: String,
    adaptation: Value,
    #[serde(default)]
    control: bool,
}

struct Arm {
    name: String,
    config: Arc<AdaptationConfig>,
    is_control: bool,
    /// By window: the continuation's mean loss, the context's before and after, and seconds.
    losses: Vec<f64>,
    own: Vec<[f64; 2]>,
    seconds: Vec<f64>,
}

pub(in crate::cli) fn run(args: &BenchAdaptationArgs) -> anyhow::Result<()> {
    let length = args.context + args.continuation;
    ensure!(args.context > 32 && args.continuation > 0 && args.windows > 1);
    let mut engine_args = args.engine.clone();
    engine_args.max_model_len = Some(length + 1);
    engine_args.speculative.speculative = Speculative::Off;
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("--file {}", args.file.display()))?;
    let served = setup::start(&engine_args)?;
    let token_ids = served.tokenizer.encode(&text, false, false)?;
    let all: Vec<&[u32]> = token_ids.chunks_exact(length).collect();
    ensure!(
        all.len() >= args.windows,
        "the text has {} windows of {length} tokens; --windows asks for {}",
        all.len(),
        args.windows
    );
    let windows = (0..args.windows).map(|index| all[index * all.len() / args.windows]);
    let specs = match &args.arms {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?).context("--arms")?,
        None => default_arms(served.engine.model_info().num_experts.is_some()),
    };
    let mut arms = Vec::new();
    for ArmSpec {
        name,
        adaptation,
        control,
    } in specs
    {
        let config = default_adaptation(Some(&adaptation.to_string()), None, &served)
            .map_err(|error| anyhow::anyhow!("arm {name}: {}", error.message))?
            .with_context(|| format!("arm {name} adapts nothing"))?;
        arms.push(Arm {
            name,
            config,
            is_control: control,
            losses: Vec::new(),
            own: Vec::new(),
            seconds: Vec::new(),
        });
    }
    let counter = Counter::new("windows", args.windows as u64);
    let (mut plain, mut prefill) = (Vec::new(), Vec::new());
    for (index, window) in windows.enumerate() {
        let engine = served.engine.as_ref();
        let context = &window[..args.context];
        prefill.push(prefill_seconds(engine, context, index as u64)?);
        plain.push(continuation_loss(engine, window, args.context, None)?);
        for arm in &mut arms {
            arm.run(engine, window, args.context)?;
        }
        counter.advance();
    }
    drop(counter);
    report(args, &plain, mean(&prefill), &arms)
}

/// SLOT, the router's last layer, and the paper's adaptation: its cheaper gradient and itself.
fn default_arms(has_experts: bool) -> Vec<ArmSpec> {
    let arm = |name: &str, adaptation: Value, control| ArmSpec {
        name: name.to_owned(),
        adaptation,
        control,
    };
    let mut arms = vec![arm("slot", json!({"method": "slot"}), false)];
    if has_experts {
        let last = json!({"method": "router"});
        let truncated = json!({"method": "router", "gradient": "truncated", "layers": {}});
        let paper = json!({"method": "router", "layers": {}});
        arms.extend([
            arm("router, last layer", last, false),
            arm("router, truncated gradient", truncated, false),
            arm("router, the paper's", paper.clone(), false),
            arm("the same, shuffled", paper, true),
        ]);
    }
    arms
}

impl Arm {
    fn run(&mut self, engine: &dyn Backend, window: &[u32], context: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        let request = GenerateRequest {
            adaptation: Some(Arc::clone(&self.config)),
            ..GenerateRequest::new(window[..context].to_vec(), greedy(None))
        };
        let mut stream = engine.submit(request)?;
        let mut found = None;
        while let Some(event) = stream.blocking_recv() {
            match event {
                StreamEvent::Adapted {
                    report, steering, ..
                } => {
                    found = Some((report, steering));
                    break;
                }
                StreamEvent::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        self.seconds.push(started.elapsed().as_secs_f64());
        drop(stream);
        let (report, steering) = found.context("the engine did not adapt")?;
        let steering = match self.is_control {
            true => Arc::new(shuffled(&steering)),
            false => steering,
        };
        let first = report.losses.first().copied().unwrap_or(f32::NAN);
        let best = report.losses.iter().copied().fold(first, f32::min);
        self.own.push([f64::from(first), f64::from(best)]);
        // What an adapted sequence's cache holds: stale keys and values but those of the token it goes on from.
        let steering_from = match self.config.kv {
            KvPolicy::Refresh => 0,
            KvPolicy::Stale => context - 1,
        };
        let loss = continuation_loss(engine, window, context, Some((steering, steering_from)))?;
        self.losses.push(loss);
        Ok(())
    }
}

/// Every vector in another order: as long, but of nothing.
fn shuffled(steering: &Steering) -> Steering {
    let mut steering = steering.clone();
    let router = steering.router.iter_mut().flatten();
    for vector in router.chain(&mut steering.hidden) {
        let half = vector.len() / 2;
        vector.rotate_left(half);
    }
    steering
}

fn greedy(prompt_logprobs: Option<usize>) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        max_tokens: 1,
        prompt_logprobs,
        ..SamplingParams::default()
    }
}

/// How long the engine takes to read a context that it has not seen.
fn prefill_seconds(engine: &dyn Backend, context: &[u32], salt: u64) -> anyhow::Result<f64> {
    let started = Instant::now();
    let request = GenerateRequest {
        cache_salt: salt + 1,
        ..GenerateRequest::new(context.to_vec(), greedy(None))
    };
    let mut stream = engine.submit(request)?;
    let mut elapsed = Duration::ZERO;
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { .. } => elapsed = started.elapsed(),
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(elapsed.as_secs_f64())
}

/// Mean cross-entropy of a window's tokens from `context` on.
fn continuation_loss(
    engine: &dyn Backend,
    window: &[u32],
    context: usize,
    steering: Option<(Arc<Steering>, usize)>,
) -> anyhow::Result<f64> {
    let (steering, steering_from) = steering.unzip();
    let request = GenerateRequest {
        steering,
        steering_from: steering_from.unwrap_or(0),
        ..GenerateRequest::new(window.to_vec(), greedy(Some(0)))
    };
    let mut stream = engine.submit(request)?;
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::PromptDone {
                prompt_logprobs: Some(logprobs),
                ..
            } => {
                let own = logprobs[context..].iter().flatten();
                let losses: Vec<f64> = own.map(|token| -f64::from(token.logprob)).collect();
                return Ok(mean(&losses));
            }
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    bail!("the engine ended without an answer")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn report(
    args: &BenchAdaptationArgs,
    plain: &[f64],
    prefill: f64,
    arms: &[Arm],
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for arm in arms {
        let differences: Vec<f64> = arm.losses.iter().zip(plain).map(|(a, b)| a - b).collect();
        let difference = mean(&differences);
        let squares = differences.iter().map(|d| (d - difference).powi(2));
        let count = differences.len() as f64;
        let half = Z95 * (squares.sum::<f64>() / (count - 1.0) / count).sqrt();
        let better = differences.iter().filter(|d| **d < 0.0).count();
        let own = |index: usize| mean(&arm.own.iter().map(|own| own[index]).collect::<Vec<_>>());
        rows.push(json!({
            "arm": arm.name,
            "config": *arm.config,
            "control": arm.is_control,
            "perplexity": mean(&arm.losses).exp(),
            "difference": difference,
            "interval": [difference - half, difference + half],
            "better_windows": better,
            "context_loss": [own(0), own(1)],
            "seconds": mean(&arm.seconds),
            "prefills": mean(&arm.seconds) / prefill,
        }));
    }
    let perplexity = mean(plain).exp();
    if args.json {
        let result = json!({
            "model": args.engine.model, "context": args.context,
            "continuation": args.continuation, "windows": plain.len(),
            "perplexity": perplexity, "prefill_seconds": prefill, "arms": rows,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{}: {} windows of {} + {} tokens, perplexity of the continuation {perplexity:.3}, prefill {:.0} ms",
        args.engine.model,
        plain.len(),
        args.context,
        args.continuation,
        prefill * 1e3
    );
    println!(
        "{:32} {:>10} {:>26} {:>8} {:>9}",
        "arm", "perplexity", "difference, nats (95 %)", "better", "prefills"
    );
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        let bound = |index: usize| row["interval"][index].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:32} {:>10.3} {:>+9.4} ({:+.4} … {:+.4}) {:>4}/{:<3} {:>9.1}",
            row["arm"].as_str().unwrap_or_default(),
            number("perplexity"),
            number("difference"),
            bound(0),
            bound(1),
            row["better_windows"],
            plain.len(),
            number("prefills"),
        );
    }
    Ok(())
}
