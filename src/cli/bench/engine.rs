//! `ponder bench engine`: prefill and decode without HTTP, as llama-bench and llama-batched-bench
//! measure them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{percentile, sorted};
use crate::cli::args::BenchEngineArgs;
use crate::cli::setup;
use crate::engine::{
    AdapterId, Backend, GenerateRequest, SamplingParams, Speculative, StreamEvent,
};
use crate::model::{LoraAdapter, Operator, OperatorTimes};

pub(in crate::cli) fn run(args: &BenchEngineArgs) -> anyhow::Result<()> {
    let mut engine_args = args.engine.clone();
    // Every prompt differs, and a cached one would measure nothing.
    engine_args.no_enable_prefix_caching = true;
    let started = Instant::now();
    let times = args.profile.then(|| Arc::new(OperatorTimes::default()));
    let served = setup::start_with(&engine_args, times.clone())?;
    let load_seconds = started.elapsed().as_secs_f64();
    let adapter = match &args.lora {
        Some(folder) => {
            let config = served.model_config.as_ref();
            let config = config.context("--lora needs --backend native")?;
            let read = LoraAdapter::read(folder, config);
            let adapter = read.with_context(|| format!("--lora {}", folder.display()))?;
            let loading = served.engine.load_adapter(adapter);
            Some(tokio::runtime::Runtime::new()?.block_on(loading)?)
        }
        None => None,
    };
    let bench = Bench {
        engine: served.engine.as_ref(),
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
    if args.json {
        let of = |is_prefill: bool| {
            let wanted = results
                .iter()
                .filter(|result| result.is_prefill == is_prefill);
            wanted.map(Measured::to_json).collect::<Vec<_>>()
        };
        let result = json!({
            "model": args.engine.model,
            "threads": setup::num_threads(&args.engine),
            "isa": ponder_kernels::isa(),
            "load_seconds": load_seconds,
            "prefill": of(true).into_iter().next(),
            "decode": of(false),
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{}: {} threads ({}), loaded in {load_seconds:.1} s, tok/s median (min)",
        args.engine.model,
        setup::num_threads(&args.engine),
        ponder_kernels::isa()
    );
    for result in &results {
        result.print();
    }
    Ok(())
}

/// The rates of one kind of work.
struct Measured {
    is_prefill: bool,
    /// Tokens of the prompt, or sequences decoded together.
    size: usize,
    /// Tokens a second, ascending.
    rates: Vec<f64>,
    profile: Option<Profile>,
}

impl Measured {
    fn to_json(&self) -> Value {
        let key = if self.is_prefill { "tokens" } else { "batch" };
        let mut value = json!({
            key: self.size, "median": percentile(&self.rates, 0.5), "min": self.rates[0],
        });
        if let Some(profile) = &self.profile {
            value["profile"] = profile.to_json();
        }
        value
    }

    fn print(&self) {
        let (median, min) = (percentile(&self.rates, 0.5), self.rates[0]);
        if self.is_prefill {
            println!("prefill {:>4}   {median:>8.1} ({min:.1})", self.size);
        } else {
            println!("decode x{:<4}  {median:>8.1} ({min:.1})", self.size);
        }
        if let Some(profile) = &self.profile {
            profile.print();
        }
    }
}

/// How the time of the last repeat divides.
struct Profile {
    /// Milliseconds a step, by operator and outside the model.
    parts: Vec<(&'static str, f64)>,
    step_ms: f64,
}

impl Profile {
    fn new((nanoseconds, steps): ([u64; Operator::ALL.len()], u64), seconds: f64) -> Self {
        let a_step = |milliseconds: f64| milliseconds / steps.max(1) as f64;
        let step_ms = a_step(seconds * 1e3);
        let mut parts: Vec<_> = Operator::ALL
            .iter()
            .zip(nanoseconds)
            .map(|(operator, ns)| (operator.name(), a_step(ns as f64 / 1e6)))
            .collect();
        let inside: f64 = parts.iter().map(|(_, ms)| ms).sum();
        parts.push(("outside the model", (step_ms - inside).max(0.0)));
        Self { parts, step_ms }
    }

    fn to_json(&self) -> Value {
        let parts = self
            .parts
            .iter()
            .map(|(name, ms)| ((*name).to_owned(), json!(ms)));
        json!({"step_ms": self.step_ms, "operators_ms": Value::Object(parts.collect())})
    }

    fn print(&self) {
        for (name, ms) in &self.parts {
            let share = 100.0 * ms / self.step_ms;
            println!("    {name:<18} {ms:>9.3} ms {share:>5.1} %");
        }
        println!("    {:<18} {:>9.3} ms", "step", self.step_ms);
    }
}

struct Bench<'a> {
    engine: &'a dyn Backend,
    adapter: Option<AdapterId>,
    times: Option<&'a OperatorTimes>,
}

impl Bench<'_> {
    fn prefill(&self, args: &BenchEngineArgs) -> anyhow::Result<Measured> {
        let (mut rates, mut profile) = (Vec::new(), None);
        for repeat in 0..args.repeats.max(1) {
            if let Some(times) = self.times {
                times.take();
            }
            let started = Instant::now();
            let first = self.step_times(1, args.prefill, 1, repeat)?;
            let seconds = (first.first_token - started).as_secs_f64();
            rates.push(args.prefill as f64 / seconds);
            profile = self.times.map(|times| Profile::new(times.take(), seconds));
        }
        Ok(Measured {
            is_prefill: true,
            size: args.prefill,
            rates: sorted(rates),
            profile,
        })
    }

    fn decode(&self, args: &BenchEngineArgs, batch: usize) -> anyhow::Result<Measured> {
        let (mut rates, mut profile) = (Vec::new(), None);
        for repeat in 0..args.repeats.max(1) {
            let times = self.step_times(batch, args.prompt_len, args.output_len, repeat)?;
            let seconds = (times.last_token - times.all_started).as_secs_f64();
            rates.push(times.num_decoded as f64 / seconds.max(1e-9));
            profile = self.times.map(|times| Profile::new(times.take(), seconds));
        }
        Ok(Measured {
            is_prefill: false,
            size: batch,
            rates: sorted(rates),
            profile,
        })
    }

    /// Runs `batch` sequences and stamps their tokens. Operator times start over when every sequence
    /// has its first token.
    fn step_times(
        &self,
        batch: usize,
        prompt_len: usize,
        output_len: usize,
        repeat: usize,
    ) -> anyhow::Result<Times> {
        // Readers only wait; they stamp tokens as they arrive.
        let (sender, receiver) = std::sync::mpsc::channel();
        for sequence in 0..batch {
            let request = GenerateRequest {
                adapter: self.adapter,
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
