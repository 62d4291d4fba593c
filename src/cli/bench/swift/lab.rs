//! A model with texts that it wrote, and what sets of sub-layers are worth on them.

use std::sync::Arc;

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::args::BenchSwiftArgs;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::engine::ModelExecutor;
use crate::engine::skip_search::{Scratch, Window, matchness, time_rows};
use crate::model::{BlockId, ForwardBatch, LoadOptions, ModelFiles, SequenceRows, SkipSet, load};
use crate::text::{ChatTemplate, Tokenizer};

pub(super) const BLOCK_SIZE: usize = 16;
/// Tokens of a text that are compared (SWIFT's context window is 32 to 50).
const WINDOW: usize = 48;
/// KnapSpec counts an MLP as at most five attentions.
pub(super) const MOST_MLP_UNITS: usize = 5;
/// Hidden states are compared at this many tokens.
pub(super) const NUM_PROBES: usize = 4;
/// Draft lengths that the prediction tries.
const MOST_DRAFT_TOKENS: usize = 15;

/// A set and what it is worth.
pub(super) struct Measured {
    pub method: &'static str,
    pub skip: SkipSet,
    /// On the texts that it was chosen by, and on the others.
    pub chosen_by: f64,
    pub agreement: f64,
    /// Of a draft step, relative to a step of the model.
    pub cost: f64,
    /// Draft tokens that promise most, and the tokens a second relative to no drafts.
    pub num_draft_tokens: usize,
    pub speedup: f64,
}

/// A text that the model wrote, with its KV in the cache.
pub(super) struct Text {
    pub token_ids: Vec<u32>,
    pub block_table: Vec<BlockId>,
}

pub(super) struct Lab {
    pub executor: ModelExecutor,
    pub texts: Vec<Text>,
    pub scratch: Scratch,
    buffer: Vec<f32>,
    /// Seconds of a step of the model by its rows, from one on.
    pub step_seconds: Vec<f64>,
    pub num_layers: usize,
    pub seed: u64,
}

impl Lab {
    pub fn new(args: &BenchSwiftArgs) -> anyhow::Result<Self> {
        let path = setup::locate(&args.engine.model)?;
        let files = ModelFiles::open(&path)?;
        let num_threads = args.engine.num_threads();
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
            kv_cache_dtype: args.engine.kv_cache_dtype.dtype(),
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
                first_local_block: None,
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

    pub fn seconds(&mut self, rows: usize, skip: Option<&SkipSet>) -> anyhow::Result<f64> {
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
                local: None,
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
    pub fn agreement(&mut self, skip: &SkipSet, is_choosing: bool) -> anyhow::Result<f64> {
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
                local_table: None,
                block_size: BLOCK_SIZE,
            };
            sum += matchness(&mut self.executor, &window, Some(&skip))?;
            num += 1;
        }
        Ok(sum / f64::from(num.max(1)))
    }

    pub fn measure(
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
}
