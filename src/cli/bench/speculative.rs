//! `ponder bench speculative`: the same answers with and without drafts, and how fast they come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::statistics::{percentile, sorted};
use crate::api::Served;
use crate::cli::engine_args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::{
    DraftCounts, GenerateRequest, RequestStream, SamplingParams, Speculative, StreamEvent,
};

/// Tokens written before anything is timed.
const WARM_UP_TOKENS: usize = 8;

#[derive(Debug, Clone, Args)]
pub struct BenchSpeculativeArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON lines of {"task", "messages", "max_tokens", "prediction"?}; benches/speculative/prompts.py makes some
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// What is compared with `off`
    #[arg(long, value_delimiter = ',', value_parser = crate::cli::values::parse_speculative, default_values = ["prompt-lookup", "auto"])]
    pub modes: Vec<Speculative>,
    /// Number of requests that run together
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub batch: Vec<usize>,
    /// Start a task's next prompt as soon as one ends, as under load, instead of waiting for the
    /// batch's last
    #[arg(long)]
    pub refill: bool,
    /// Most prompts of each task
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    pub limit: usize,
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Send the prompts' predictions along
    #[arg(long)]
    pub predictions: bool,
    #[arg(long)]
    pub json: bool,
}

/// A line of the file.
#[derive(Debug, Deserialize)]
struct Row {
    task: String,
    messages: Vec<Value>,
    max_tokens: usize,
    #[serde(default)]
    prediction: String,
}

struct Prompt {
    token_ids: Vec<u32>,
    max_tokens: usize,
    prediction: Vec<u32>,
}

/// What a mode did on the prompts of a task.
#[derive(Debug, Clone, Default)]
struct Totals {
    num_tokens: usize,
    elapsed: Duration,
    drafts: DraftCounts,
    /// Seconds that `off` took over those of this mode, for each batch.
    ratios: Vec<f64>,
}

impl Totals {
    fn rate(&self) -> f64 {
        self.num_tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

type Results = BTreeMap<(String, usize), Vec<Totals>>;

pub(in crate::cli) fn run(args: &BenchSpeculativeArgs) -> anyhow::Result<()> {
    ensure!(!args.batch.contains(&0), "--batch must be at least 1");
    let served = setup::start(&args.engine)?;
    let tasks = read_prompts(&args.prompts, &served, args)?;
    let mut modes = vec![Speculative::Off];
    modes.extend(args.modes.iter().filter(|mode| **mode != Speculative::Off));
    // Prompts that are answered before the modes change.
    let round = |size: usize| if args.refill { usize::MAX } else { size };
    let total: usize = (tasks.values())
        .flat_map(|prompts| {
            let sizes = args.batch.iter();
            sizes.map(move |size| prompts.chunks(round(*size)).len())
        })
        .sum();
    warm_up(&served, args, &modes, &tasks)?;
    let bar = Counter::new("batches", total as u64);
    let mut results = Results::new();
    for (task, prompts) in &tasks {
        for size in &args.batch {
            let totals = vec![Totals::default(); modes.len()];
            let totals = results.entry((task.clone(), *size)).or_insert(totals);
            for (index, prompts) in prompts.chunks(round(*size)).enumerate() {
                compare(&served, args, &modes, (prompts, *size), index, totals)?;
                bar.advance();
            }
        }
    }
    drop(bar);
    report(args, &modes, &results)
}

fn read_prompts(
    path: &Path,
    served: &Served,
    args: &BenchSpeculativeArgs,
) -> anyhow::Result<BTreeMap<String, Vec<Prompt>>> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("--prompts {}", path.display()))?;
    let template = served.chat_template.as_ref();
    let template = template.context("the model has no chat template")?;
    let mut tasks: BTreeMap<String, Vec<Prompt>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let row: Row = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        let rendered = template.render(&row.messages, None, true, &Map::new())?;
        let prompts = tasks.entry(row.task).or_default();
        if prompts.len() < args.limit {
            prompts.push(Prompt {
                token_ids: served.tokenizer.encode(&rendered, false, true)?,
                max_tokens: row.max_tokens,
                prediction: if args.predictions {
                    served.tokenizer.encode(&row.prediction, false, false)?
                } else {
                    Vec::new()
                },
            });
        }
    }
    Ok(tasks)
}

/// Writes a few tokens in every mode, so that no timed answer waits until the engine has measured
/// what its steps cost. Where prompts follow each other, all of them are computed before, in every
/// mode: a draft model follows only prompts that may use it.
fn warm_up(
    served: &Served,
    args: &BenchSpeculativeArgs,
    modes: &[Speculative],
    tasks: &BTreeMap<String, Vec<Prompt>>,
) -> anyhow::Result<()> {
    let shortened = |prompt: &Prompt, max_tokens: usize| Prompt {
        token_ids: prompt.token_ids.clone(),
        max_tokens: max_tokens.min(prompt.max_tokens),
        prediction: Vec::new(),
    };
    let Some(prompt) = tasks.values().flatten().next() else {
        return Ok(());
    };
    let prompt = shortened(prompt, WARM_UP_TOKENS);
    let prompts = tasks.values().flatten();
    let prompts: Vec<Prompt> = prompts.map(|prompt| shortened(prompt, 1)).collect();
    for mode in modes {
        answer(served, args, *mode, (std::slice::from_ref(&prompt), 1))?;
        if args.refill {
            answer(served, args, *mode, (&prompts, 1))?;
        }
    }
    Ok(())
}

/// Answers prompts once in every mode, at most `size` at once; the modes take turns in going first.
fn compare(
    served: &Served,
    args: &BenchSpeculativeArgs,
    modes: &[Speculative],
    (prompts, size): (&[Prompt], usize),
    index: usize,
    totals: &mut [Totals],
) -> anyhow::Result<()> {
    let mut answers = vec![None; modes.len()];
    for turn in 0..modes.len() {
        let at = (index + turn) % modes.len();
        let answer = answer(served, args, modes[at], (prompts, size))?;
        answers[at] = Some(answer);
    }
    let answers: Vec<Timed> = answers.into_iter().flatten().collect();
    let plain = &answers[0];
    for ((mode, timed), totals) in modes.iter().zip(&answers).zip(totals) {
        if timed.token_ids != plain.token_ids {
            bail!("{} changed an answer: this is a bug", mode.name());
        }
        // The first token is the prompt's.
        let num_tokens = timed.token_ids.iter().map(Vec::len).sum::<usize>();
        totals.num_tokens += num_tokens.saturating_sub(prompts.len());
        totals.elapsed += timed.elapsed;
        totals.drafts += timed.drafts;
        let seconds = timed.elapsed.as_secs_f64();
        if seconds > 0.0 {
            totals.ratios.push(plain.elapsed.as_secs_f64() / seconds);
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
struct Timed {
    token_ids: Vec<Vec<u32>>,
    /// From when the first `size` sequences have their first token, to the last token of all.
    elapsed: Duration,
    drafts: DraftCounts,
}

/// Answers prompts in order, at most `size` at once.
fn answer(
    served: &Served,
    args: &BenchSpeculativeArgs,
    mode: Speculative,
    (prompts, size): (&[Prompt], usize),
) -> anyhow::Result<Timed> {
    let next = AtomicUsize::new(0);
    // A worker mostly waits; it stamps tokens as they arrive.
    let work = || {
        let mut answers = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(prompt) = prompts.get(at) else {
                return Ok(answers);
            };
            let stream = (served.engine).submit(request(served, args, mode, prompt, at))?;
            answers.push((at, read(stream)?));
        }
    };
    let answers: Vec<anyhow::Result<Vec<(usize, Answer)>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..size.min(prompts.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let panicked = |_| Err(anyhow!("a reader panicked"));
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|it| it.unwrap_or_else(panicked)).collect()
    });
    let mut timed = Timed {
        token_ids: vec![Vec::new(); prompts.len()],
        elapsed: Duration::ZERO,
        drafts: DraftCounts::default(),
    };
    let (mut started, mut ended): (Option<Instant>, Option<Instant>) = (None, None);
    for answers in answers {
        for (at, (token_ids, first, last, drafts)) in answers? {
            timed.token_ids[at] = token_ids;
            timed.drafts += drafts;
            if at < size {
                started = started.max(Some(first));
            }
            ended = ended.max(Some(last));
        }
    }
    if let (Some(started), Some(ended)) = (started, ended) {
        timed.elapsed = ended.saturating_duration_since(started);
    }
    Ok(timed)
}

fn request(
    served: &Served,
    args: &BenchSpeculativeArgs,
    mode: Speculative,
    prompt: &Prompt,
    seed: usize,
) -> GenerateRequest {
    let params = SamplingParams {
        temperature: args.temperature,
        seed: seed as u64,
        max_tokens: prompt.max_tokens,
        eos_token_ids: served.tokenizer.end_of_generation_ids().to_vec(),
        ..SamplingParams::default()
    };
    GenerateRequest {
        speculative: Some(mode),
        prediction: prompt.prediction.clone(),
        ..GenerateRequest::new(prompt.token_ids.clone(), params)
    }
}

/// Tokens, when the first and the last came, and what was drafted.
type Answer = (Vec<u32>, Instant, Instant, DraftCounts);

/// A stream's tokens and when the first and the last came.
fn read(mut stream: RequestStream) -> anyhow::Result<Answer> {
    let mut token_ids = Vec::new();
    let mut drafts = DraftCounts::default();
    let (mut first, mut last) = (None, None);
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token_id, .. } => {
                token_ids.push(token_id);
                let now = Instant::now();
                first.get_or_insert(now);
                last = Some(now);
            }
            StreamEvent::Finished { drafts: counts, .. } => drafts += counts,
            StreamEvent::Error(error) => return Err(error.into()),
            StreamEvent::PromptDone { .. }
            | StreamEvent::Pooled { .. }
            | StreamEvent::Adapted { .. } => {}
        }
    }
    let (first, last) = first.zip(last).context("nothing was generated")?;
    Ok((token_ids, first, last, drafts))
}

fn report(
    args: &BenchSpeculativeArgs,
    modes: &[Speculative],
    results: &Results,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for ((task, batch), totals) in results {
        for (mode, of_mode) in modes.iter().zip(totals) {
            let ratios = sorted(of_mode.ratios.clone());
            let drafts = of_mode.drafts;
            rows.push(json!({
                "task": task,
                "batch": batch,
                "mode": mode.name(),
                "tokens": of_mode.num_tokens,
                "tokens_per_second": of_mode.rate(),
                "ratio": of_mode.rate() / totals[0].rate(),
                "ratio_min": ratios.first(),
                "ratio_median": percentile(&ratios, 0.5),
                "drafts": drafts.num_drafts,
                "draft_tokens": drafts.num_draft_tokens,
                "accepted_tokens": drafts.num_accepted_tokens,
            }));
        }
    }
    if args.json {
        let result = json!({
            "model": args.engine.model,
            "threads": args.engine.num_threads(),
            "isa": ponder_kernels::isa(),
            "temperature": args.temperature,
            "predictions": args.predictions,
            "results": rows,
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{}: {} threads ({}), temperature {}; every answer is the same in all modes",
        args.engine.model,
        args.engine.num_threads(),
        ponder_kernels::isa(),
        args.temperature
    );
    println!(
        "{:<12} {:>5} {:<14} {:>8} {:>6} {:>14} {:>9} {:>8}",
        "task", "batch", "mode", "tok/s", "ratio", "min … median", "accepted", "of"
    );
    for row in &rows {
        println!(
            "{:<12} {:>5} {:<14} {:>8.1} {:>6.2} {:>6.2} … {:>5.2} {:>9} {:>8}",
            row["task"].as_str().unwrap_or_default(),
            row["batch"],
            row["mode"].as_str().unwrap_or_default(),
            row["tokens_per_second"].as_f64().unwrap_or_default(),
            row["ratio"].as_f64().unwrap_or_default(),
            row["ratio_min"].as_f64().unwrap_or_default(),
            row["ratio_median"].as_f64().unwrap_or_default(),
            row["accepted_tokens"],
            row["draft_tokens"],
        );
    }
    Ok(())
}
