//! `ponder bench swift`: what a model's sub-layers are worth. For every way of choosing what a draft leaves out: how often it agrees
//! with the whole model, what it costs, and how much faster decoding could get.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Map, Value, json};

use super::bayes::Process;
use crate::cli::args::EngineArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::ModelExecutor;
use crate::engine::skip_search::{Scratch, Window, matchness, time_rows};
use crate::model::{
    BlockId, ForwardBatch, LoadOptions, ModelFiles, Probe, SequenceRows, SkipCosts, SkipSet,
    SubLayer, load,
};
use crate::text::{ChatTemplate, Tokenizer};

const BLOCK_SIZE: usize = 16;
/// Tokens of a text that are compared (SWIFT's context window is 32 to 50).
const WINDOW: usize = 48;
/// KnapSpec counts an MLP as at most five attentions.
const MOST_MLP_UNITS: usize = 5;
/// Hidden states are compared at this many tokens.
const NUM_PROBES: usize = 4;
/// Draft lengths that the prediction tries.
const MOST_DRAFT_TOKENS: usize = 15;

#[derive(Debug, Clone, Args)]
pub struct BenchSwiftArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON lines of {"task", "messages"}; benches/speculative/prompts.py makes some
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Texts that are generated: half of them to choose by, half to measure on
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=64))]
    pub texts: u64,
    /// Sets that random and Bayesian search try
    #[arg(long, default_value_t = 60)]
    pub candidates: usize,
    /// Every how many of them Bayesian search proposes one (SWIFT: 25)
    #[arg(long, default_value_t = 5)]
    pub bayes_interval: usize,
    /// Shares of the sub-layers to leave out
    #[arg(long, value_delimiter = ',', default_values_t = [0.05, 0.1, 0.2, 0.3, 0.45])]
    pub ratios: Vec<f64>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the set that promises most as JSON, for `ponder serve --skip-set`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

/// A text that the model wrote, with its KV in the cache.
struct Text {
    token_ids: Vec<u32>,
    block_table: Vec<BlockId>,
}

/// A set and what it is worth.
struct Measured {
    method: &'static str,
    skip: SkipSet,
    /// On the texts that it was chosen by, and on the others.
    chosen_by: f64,
    agreement: f64,
    /// Of a draft step, relative to a step of the model.
    cost: f64,
    /// Draft tokens that promise most, and the tokens a second relative to no drafts.
    num_draft_tokens: usize,
    speedup: f64,
}

struct Lab {
    executor: ModelExecutor,
    texts: Vec<Text>,
    scratch: Scratch,
    buffer: Vec<f32>,
    /// Seconds of a step of the model by its rows, from one on.
    step_seconds: Vec<f64>,
    num_layers: usize,
    seed: u64,
}

pub(in crate::cli) fn run(args: &BenchSwiftArgs) -> anyhow::Result<()> {
    let mut lab = Lab::new(args)?;
    let total = args.ratios.len() * (2 * args.candidates + 3);
    let bar = Counter::new("skip sets", total as u64);
    let mut measured = vec![lab.measure("none", SkipSet::default(), 1.0)?];
    let by_units = lab.knapsack()?;
    for ratio in &args.ratios {
        let num_candidates = SkipSet::candidates(lab.num_layers).len();
        let num_skipped = ((num_candidates as f64 * ratio) as usize).max(1);
        let odd = (1..lab.num_layers).step_by(2);
        let odd = odd.flat_map(|layer| [SubLayer::Attention(layer), SubLayer::Mlp(layer)]);
        let odd = SkipSet::new(lab.num_layers, odd.take(num_skipped));
        let score = lab.agreement(&odd, true)?;
        measured.push(lab.measure("every other", odd, score)?);
        for (method, interval) in [
            ("random", usize::MAX),
            ("bayes", args.bayes_interval.max(1)),
        ] {
            let (skip, score) = lab.search(num_skipped, args.candidates, interval, &bar)?;
            measured.push(lab.measure(method, skip, score)?);
        }
        // The same share of what the sub-layers cost, not of their number.
        let at = ((by_units.len() - 1) as f64 * ratio * 2.0).round() as usize;
        if let Some(skip) = by_units.get(at).cloned().flatten() {
            let score = lab.agreement(&skip, true)?;
            measured.push(lab.measure("knapsack", skip, score)?);
        }
        bar.advance();
    }
    drop(bar);
    let best = measured[1..]
        .iter()
        .max_by(|a, b| a.speedup.total_cmp(&b.speedup));
    if let (Some(path), Some(best)) = (&args.out, best) {
        let text = serde_json::to_string(&best.skip)?;
        std::fs::write(path, text).with_context(|| format!("--out {}", path.display()))?;
    }
    lab.report(args, &measured)
}

impl Lab {
    fn new(args: &BenchSwiftArgs) -> anyhow::Result<Self> {
        let path = setup::locate(&args.engine.model)?;
        let files = ModelFiles::open(&path)?;
        let num_threads = setup::num_threads(&args.engine);
        let tokenizer = Tokenizer::from_files(&files)?;
        let template = ChatTemplate::from_files(&files, &tokenizer, None)?;
        let template = template.context("the model has no chat template")?;
        let rows = std::fs::read_to_string(&args.prompts);
        let rows = rows.with_context(|| format!("--prompts {}", args.prompts.display()))?;
        let rows = rows.lines().map(serde_json::from_str::<Value>);
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let step = (rows.len() / args.texts as usize).max(1);
        let mut prompts = Vec::new();
        for row in rows.iter().step_by(step).take(args.texts as usize) {
            let messages = row["messages"].as_array().context("messages: a list")?;
            let text = template.render(messages, None, true, &Map::new())?;
            prompts.push(tokenizer.encode(&text, false, true)?);
        }
        ensure!(prompts.len() > 1, "--prompts has too few lines");
        let options = LoadOptions {
            num_threads,
            ..LoadOptions::default()
        };
        let model = load(&files, options)?;
        let num_layers = model.info().num_layers;
        // A knapsack's states, with a block each.
        let num_scratch = NUM_PROBES * (num_layers * (1 + MOST_MLP_UNITS) / 2 + 1);
        let text_len = |prompt: &Vec<u32>| (prompt.len() + 2 * WINDOW).div_ceil(BLOCK_SIZE);
        let num_blocks: usize = prompts.iter().map(text_len).sum();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let mut lab = Self {
            executor: ModelExecutor::new(model),
            texts: Vec::new(),
            scratch: Scratch {
                first_block: num_blocks,
                block_size: BLOCK_SIZE,
            },
            buffer: Vec::new(),
            step_seconds: Vec::new(),
            num_layers,
            seed: args.seed,
        };
        let max_num_rows = longest.max(num_scratch);
        lab.executor.model().allocate_kv_cache(
            num_blocks + num_scratch,
            BLOCK_SIZE,
            max_num_rows,
        )?;
        let bar = Counter::new("texts", prompts.len() as u64);
        let mut first_block = 0;
        for prompt in prompts {
            let text = lab.write(prompt, first_block)?;
            first_block += text.block_table.len() as BlockId;
            lab.texts.push(text);
            bar.advance();
        }
        for rows in 1..=MOST_DRAFT_TOKENS + 1 {
            let seconds = lab.seconds(rows, None)?;
            lab.step_seconds.push(seconds);
        }
        Ok(lab)
    }

    fn seconds(&mut self, rows: usize, skip: Option<&SkipSet>) -> anyhow::Result<f64> {
        let skip = skip.map(|skip| Arc::new(skip.clone()));
        let time = time_rows(&mut self.executor, rows, skip.as_ref(), self.scratch);
        Ok(time.context("the model failed")?.as_secs_f64())
    }

    /// Continues a prompt greedily, past its end if need be.
    fn write(&mut self, prompt: Vec<u32>, first_block: BlockId) -> anyhow::Result<Text> {
        let len = prompt.len() + 2 * WINDOW;
        let num_blocks = len.div_ceil(BLOCK_SIZE) as BlockId;
        let block_table: Vec<BlockId> = (first_block..first_block + num_blocks).collect();
        let mut token_ids = prompt;
        let mut start = 0;
        while token_ids.len() < len {
            let positions: Vec<u32> = (start as u32..token_ids.len() as u32).collect();
            let slot = |position: &u32| first_block * BLOCK_SIZE as u32 + position;
            let slot_mapping: Vec<u32> = positions.iter().map(slot).collect();
            let batch = ForwardBatch {
                token_ids: &token_ids[start..],
                positions: &positions,
                slot_mapping: &slot_mapping,
                sequences: &[SequenceRows {
                    block_table: &block_table,
                    num_rows: positions.len(),
                    context_len: token_ids.len(),
                    leaves: &[],
                }],
                adapters: &[None],
                steering: &[],
                logits_rows: &[positions.len() as u32 - 1],
                skip: None,
            };
            self.executor.model().forward(&batch, &mut self.buffer)?;
            start = token_ids.len();
            let best = ponder_kernels::logits::argmax(&self.buffer);
            token_ids.push(best.context("the model's logits are not numbers")?.0 as u32);
        }
        Ok(Text {
            token_ids,
            block_table,
        })
    }

    /// How often the model without `skip` predicts the texts that sets are chosen by, or the others.
    fn agreement(&mut self, skip: &SkipSet, is_choosing: bool) -> anyhow::Result<f64> {
        let (mut sum, mut num) = (0.0, 0);
        let skip = Arc::new(skip.clone());
        for text in self.texts.iter().skip(usize::from(!is_choosing)).step_by(2) {
            let first_compared = text.token_ids.len() - 1 - WINDOW;
            let start = first_compared / BLOCK_SIZE * BLOCK_SIZE;
            let kept = &text.block_table[..start / BLOCK_SIZE];
            let own = text.block_table.len() - kept.len();
            let own = self.scratch.first_block..self.scratch.first_block + own;
            let own: Vec<BlockId> = own.map(|block| block as BlockId).collect();
            let window = Window {
                token_ids: &text.token_ids,
                start,
                first_compared,
                block_table: &[kept, &own].concat(),
                block_size: BLOCK_SIZE,
            };
            sum += matchness(&mut self.executor, &window, Some(&skip))?;
            num += 1;
        }
        Ok(sum / f64::from(num.max(1)))
    }

    fn measure(
        &mut self,
        method: &'static str,
        skip: SkipSet,
        chosen_by: f64,
    ) -> anyhow::Result<Measured> {
        let agreement = self.agreement(&skip, false)?;
        // One after the other: what ran before changes the clock rate.
        let cost = self.seconds(1, Some(&skip))? / self.seconds(1, None)?;
        // The cost model of the specification: M / (n r + v).
        let speedup = |n: usize| {
            let accepted: f64 = (1..=n).map(|len| agreement.powi(len as i32)).sum();
            let verify = self.step_seconds[n] / self.step_seconds[0];
            (1.0 + accepted) / (n as f64 * cost + verify)
        };
        let best = (1..=MOST_DRAFT_TOKENS).max_by(|a, b| speedup(*a).total_cmp(&speedup(*b)));
        let num_draft_tokens = best.unwrap_or(1);
        Ok(Measured {
            method,
            chosen_by,
            agreement,
            cost,
            num_draft_tokens,
            speedup: speedup(num_draft_tokens),
            skip,
        })
    }

    /// SWIFT's search: random subsets, and every `interval` one proposed by a Gaussian process.
    fn search(
        &mut self,
        num_skipped: usize,
        num_candidates: usize,
        interval: usize,
        bar: &Counter,
    ) -> anyhow::Result<(SkipSet, f64)> {
        let all = SkipSet::candidates(self.num_layers);
        let mut random = Random(self.seed);
        let mut process = Process::default();
        let mut best = (SkipSet::default(), -1.0);
        for index in 1..=num_candidates.max(1) {
            let chosen = if index % interval == 0 {
                process.suggest(|| random.subset(all.len(), num_skipped))
            } else {
                random.subset(all.len(), num_skipped)
            };
            let pairs = all.iter().zip(&chosen).filter(|(_, is_chosen)| **is_chosen);
            let skip = SkipSet::new(self.num_layers, pairs.map(|(sub_layer, _)| *sub_layer));
            let score = self.agreement(&skip, true)?;
            process.add(chosen, score);
            if score > best.1 {
                best = (skip, score);
            }
            bar.advance();
        }
        Ok(best)
    }

    /// A set for every number of saved units, up to half of them all.
    fn knapsack(&mut self) -> anyhow::Result<Vec<Option<SkipSet>>> {
        let inner = SkipSet::candidates(self.num_layers);
        let (attention, mlp): (Vec<_>, Vec<_>) = inner
            .into_iter()
            .partition(|s| matches!(s, SubLayer::Attention(_)));
        let mut saves = |sub_layers: Vec<SubLayer>| -> anyhow::Result<f64> {
            let skip = SkipSet::new(self.num_layers, sub_layers);
            let saved = self.seconds(1, None)? - self.seconds(1, Some(&skip))?;
            Ok(saved.max(1e-9))
        };
        let num_inner = mlp.len();
        let units = (saves(mlp)? / saves(attention)?).round() as usize;
        let units = units.clamp(1, MOST_MLP_UNITS);
        let costs = SkipCosts {
            attention: 1,
            mlp: units,
            most: num_inner * (1 + units) / 2,
        };
        let chosen: Vec<&Text> = self.texts.iter().step_by(2).take(NUM_PROBES).collect();
        let probes: Vec<Probe<'_>> = chosen
            .iter()
            .map(|text| {
                let position = (text.token_ids.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
                Probe {
                    token_id: text.token_ids[position],
                    position,
                    block_table: &text.block_table[..position / BLOCK_SIZE],
                }
            })
            .collect();
        let first = self.scratch.first_block as BlockId;
        let sub_layers = self.executor.model().sub_layers();
        let sub_layers = sub_layers.context("this model's sub-layers cannot be left out")?;
        Ok(sub_layers.skip_sets(&probes, costs, first)?)
    }

    fn report(&self, args: &BenchSwiftArgs, measured: &[Measured]) -> anyhow::Result<()> {
        let num_sub_layers = SkipSet::candidates(self.num_layers).len();
        let verify: Vec<f64> = self
            .step_seconds
            .iter()
            .map(|t| t / self.step_seconds[0])
            .collect();
        if args.json {
            let rows: Vec<Value> = measured
                .iter()
                .map(|row| {
                    json!({
                        "method": row.method, "skipped": row.skip.len(), "of": num_sub_layers,
                        "skip": row.skip, "agreement_chosen_by": row.chosen_by,
                        "agreement": row.agreement, "draft_cost": row.cost,
                        "draft_tokens": row.num_draft_tokens, "predicted_speedup": row.speedup,
                    })
                })
                .collect();
            let result = json!({
                "model": args.engine.model, "isa": ponder_kernels::isa(), "verify_cost": verify,
                "step_ms": self.step_seconds[0] * 1e3, "sets": rows,
            });
            println!("{}", serde_json::to_string_pretty(&result)?);
            return Ok(());
        }
        println!(
            "{}: {} threads ({}), a step takes {:.1} ms; with 2, 4, 8 and 16 rows {:.2}, {:.2}, {:.2} and {:.2} times that",
            args.engine.model,
            setup::num_threads(&args.engine),
            ponder_kernels::isa(),
            self.step_seconds[0] * 1e3,
            verify[1],
            verify[3],
            verify[7],
            verify[15]
        );
        println!(
            "{:<12} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}",
            "method", "left out", "chosen by", "agreement", "draft cost", "drafts", "speedup"
        );
        for row in measured {
            println!(
                "{:<12} {:>4} of {:<3} {:>9.1}% {:>9.1}% {:>10.2} {:>8} {:>8.2}",
                row.method,
                row.skip.len(),
                num_sub_layers,
                row.chosen_by * 100.0,
                row.agreement * 100.0,
                row.cost,
                row.num_draft_tokens,
                row.speedup
            );
        }
        Ok(())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    /// `count` of `len`, as flags.
    fn subset(&mut self, len: usize, count: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in 0..count.min(len) {
            let other = i + self.below(len - i);
            order.swap(i, other);
        }
        let mut flags = vec![false; len];
        for index in &order[..count.min(len)] {
            flags[*index] = true;
        }
        flags
    }
}
