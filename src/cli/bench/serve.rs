//! `ponder bench serve`: load on any OpenAI server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, value_parser};
use futures::StreamExt;
use serde_json::{Value, json};

use super::statistics::{percentile, sorted};
use crate::cli::chat::first_model;
use crate::cli::values::MAX_SECONDS;
use crate::model::testing::uniform;

const WORDS: [&str; 16] = [
    "river", "stone", "light", "seven", "copper", "quiet", "engine", "garden", "north", "paper",
    "signal", "window", "market", "bridge", "silver", "winter",
];

#[derive(Debug, Clone, Args)]
pub struct BenchServeArgs {
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Name of the model [default: the server's first]
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Number of clients at the same time
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    #[arg(long, default_value_t = 64)]
    pub num_prompts: usize,
    /// Stop sending after this many seconds, whatever --num-prompts says
    #[arg(long, value_parser = value_parser!(u64).range(..=MAX_SECONDS))]
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

/// What one client saw.
#[derive(Debug, Default)]
struct Outcome {
    ttft: Option<f64>,
    gaps: Vec<f64>,
    total: f64,
    num_tokens: usize,
    error: Option<String>,
    was_aborted: bool,
}

pub(in crate::cli) fn run(args: &BenchServeArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(args))
}

async fn measure(args: &BenchServeArgs) -> anyhow::Result<()> {
    let url = args
        .url
        .trim_end_matches('/')
        .trim_end_matches("/v1")
        .to_owned();
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&url, args.api_key.as_deref()).await?,
    };
    let client = reqwest::Client::new();
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let deadline = args
        .duration
        .map(|seconds| started + Duration::from_secs(seconds));
    let workers: Vec<_> = (0..args.concurrency.max(1))
        .map(|_| {
            let (args, client, next) = (args.clone(), client.clone(), Arc::clone(&next));
            let (url, model) = (url.clone(), model.clone());
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = match deadline {
                        Some(deadline) => Instant::now() >= deadline,
                        None => index >= args.num_prompts,
                    };
                    if is_over {
                        return outcomes;
                    }
                    outcomes.push(one_request(&client, &url, &model, &args, index).await);
                }
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for worker in workers {
        outcomes.extend(worker.await?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let blocks = kv_cache_usage(&client, &url, args.api_key.as_deref()).await;
    report(args, &model, &outcomes, seconds, blocks)
}

fn prompt(args: &BenchServeArgs, index: usize) -> String {
    let mut state = args.seed ^ (index as u64).wrapping_mul(0x9E37_79B9);
    let words = (0..args.prompt_len).map(|_| {
        let at = ((uniform(&mut state) + 1.0) * 8.0) as usize;
        WORDS[at.min(WORDS.len() - 1)]
    });
    words.collect::<Vec<_>>().join(" ")
}

async fn one_request(
    client: &reqwest::Client,
    url: &str,
    model: &str,
    args: &BenchServeArgs,
    index: usize,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut state = args.seed ^ index as u64;
    let draws = (uniform(&mut state).abs(), uniform(&mut state).abs());
    let aborts_after = (f64::from(draws.0) < args.abort_fraction)
        .then_some((f64::from(draws.1) * args.output_len as f64) as usize);
    let started = Instant::now();
    if let Err(error) =
        read_stream(client, url, model, args, index, aborts_after, &mut outcome).await
    {
        outcome.error = Some(format!("{error:#}"));
    }
    outcome.total = started.elapsed().as_secs_f64();
    outcome
}

async fn read_stream(
    client: &reqwest::Client,
    url: &str,
    model: &str,
    args: &BenchServeArgs,
    index: usize,
    aborts_after: Option<usize>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut request = client.post(format!("{url}/v1/completions")).json(&json!({
        "model": model,
        "prompt": prompt(args, index),
        "max_tokens": args.output_len,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
    }));
    if let Some(key) = &args.api_key {
        request = request.bearer_auth(key);
    }
    let mut last = Instant::now();
    let response = request.send().await?;
    let status = response.status();
    if !status.is_success() {
        anyhow::bail!("{status}: {}", response.text().await.unwrap_or_default());
    }
    let mut bytes = response.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(chunk) = bytes.next().await {
        buffer.extend_from_slice(&chunk?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else {
                continue;
            };
            let Ok(event) = serde_json::from_slice::<Value>(data) else {
                continue;
            };
            if let Some(message) = event["error"]["message"].as_str() {
                anyhow::bail!("{message}");
            }
            let has_text = event["choices"][0]["text"]
                .as_str()
                .is_some_and(|text| !text.is_empty());
            if !has_text {
                continue;
            }
            let gap = last.elapsed().as_secs_f64();
            last = Instant::now();
            match outcome.ttft {
                None => outcome.ttft = Some(gap),
                Some(_) => outcome.gaps.push(gap),
            }
            outcome.num_tokens += 1;
            if aborts_after.is_some_and(|limit| outcome.num_tokens > limit) {
                outcome.was_aborted = true;
                return Ok(());
            }
        }
    }
    outcome.ttft.context("the answer was empty").map(|_| ())
}

/// The server's own word on its KV cache once idle; absent for servers without the metric.
async fn kv_cache_usage(client: &reqwest::Client, url: &str, key: Option<&str>) -> Option<f64> {
    let mut usage = None;
    for _ in 0..40 {
        let mut request = client.get(format!("{url}/metrics"));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let text = request.send().await.ok()?.text().await.ok()?;
        let line = text
            .lines()
            .find(|line| line.starts_with("vllm:kv_cache_usage_perc"))?;
        usage = line.rsplit(' ').next()?.parse().ok();
        if usage == Some(0.0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    usage
}

fn report(
    args: &BenchServeArgs,
    model: &str,
    outcomes: &[Outcome],
    seconds: f64,
    usage: Option<f64>,
) -> anyhow::Result<()> {
    let count = |is: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
    let num_errors = count(&|outcome| outcome.error.is_some());
    let num_aborted = count(&|outcome| outcome.was_aborted);
    let num_tokens: usize = outcomes.iter().map(|outcome| outcome.num_tokens).sum();
    let tokens_per_second = num_tokens as f64 / seconds;
    let requests_per_second = outcomes.len() as f64 / seconds;
    let rows = latencies(outcomes);
    if args.json {
        let mut result = json!({
            "model": model, "concurrency": args.concurrency, "requests": outcomes.len(),
            "errors": num_errors, "aborted": num_aborted, "seconds": seconds,
            "output_tokens_per_second": tokens_per_second,
            "requests_per_second": requests_per_second,
            "kv_cache_usage_after": usage,
        });
        for row in &rows {
            result[row.name] = json!({
                "mean": row.mean, "p50": row.at(0.5), "p90": row.at(0.9), "p99": row.at(0.99),
            });
        }
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{model}: {} requests, {} at once, {num_aborted} hung up, {num_errors} errors, {seconds:.1} s",
        outcomes.len(),
        args.concurrency
    );
    println!("output {tokens_per_second:.1} tok/s, {requests_per_second:.2} requests/s");
    println!(
        "{:<8} {:>9} {:>9} {:>9} {:>9}",
        "", "mean", "p50", "p90", "p99"
    );
    for row in &rows {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| row.at(share));
        let (name, mean) = (row.name, row.mean);
        println!("{name:<8} {mean:>9.1} {p50:>9.1} {p90:>9.1} {p99:>9.1}");
    }
    if let Some(usage) = usage {
        println!("KV cache in use afterwards: {:.1} %", usage * 100.0);
    }
    if let Some(error) = outcomes.iter().find_map(|outcome| outcome.error.as_ref()) {
        println!("first error: {error}");
    }
    Ok(())
}

/// Times of one kind, in milliseconds.
struct Latency {
    name: &'static str,
    mean: f64,
    sorted: Vec<f64>,
}

impl Latency {
    fn new(name: &'static str, seconds: impl Iterator<Item = f64>) -> Self {
        let sorted = sorted(seconds.map(|seconds| seconds * 1e3).collect());
        Self {
            name,
            mean: sorted.iter().sum::<f64>() / sorted.len().max(1) as f64,
            sorted,
        }
    }

    /// The time below which `share` of them lie.
    fn at(&self, share: f64) -> f64 {
        percentile(&self.sorted, share)
    }
}

/// Of the answers that came whole.
fn latencies(outcomes: &[Outcome]) -> [Latency; 4] {
    let whole = || {
        let is_whole = |outcome: &&Outcome| outcome.error.is_none() && !outcome.was_aborted;
        outcomes.iter().filter(is_whole)
    };
    let tpot = whole().filter(|o| o.num_tokens > 1);
    let tpot = tpot.map(|o| (o.total - o.ttft.unwrap_or(0.0)) / (o.num_tokens - 1) as f64);
    [
        Latency::new("ttft_ms", whole().filter_map(|o| o.ttft)),
        Latency::new("tpot_ms", tpot),
        Latency::new("itl_ms", whole().flat_map(|o| o.gaps.iter().copied())),
        Latency::new("e2e_ms", whole().map(|o| o.total)),
    ]
}
