//! From rows of logits to tokens and log-probabilities, on the device.
//!
//! The rules are those of the engine's sampler, bit by bit: logit bias, penalties, masked ends,
//! mask, temperature, min-p, top-k, top-p, draw. Equal logits give the same token as on the
//! processor (with fused multiply-add). What a row's candidates do not fit ([`SampledRow::Host`])
//! is left to the host's sampler, which has no limits.
//!
//! Three kernels: the largest logits (greedy rows are done then), the weights, and the choice. How
//! many are launched, and over how many blocks, follows from a [`SampleShape`] alone, so that a
//! graph can hold them.

mod pack;
mod read;
#[cfg(all(test, feature = "emulator"))]
mod tests;

use super::{Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};
use read::Wanted;
pub use read::{Alternatives, Logprobs, SampledRow};

/// Tokens whose weights are added up together, as on the host.
const CHUNK: usize = ponder_kernels::logits::CHUNK;
/// Tokens that a block reads.
const GROUP: usize = 4 * CHUNK;
const MAX_CHUNKS: usize = 512;
/// One to draw from, and the raw one.
const NUM_VIEWS: usize = 2;
const NUM_BUCKETS: usize = 752;
/// Most tokens that are reported with their logprobs.
pub const MAX_TOP: usize = 32;
const TASK_WORDS: usize = 4;
const MAXIMA_THREADS: u32 = 256;
const WEIGHTS_THREADS: u32 = 256;
const FINISH_THREADS: u32 = 512;
/// Most candidates of a row, in shared memory.
const LIST_CAPACITY: u32 = 8192;

/// How one token is drawn from one row of logits.
#[derive(Debug, Clone)]
pub struct SampleRow<'a> {
    /// Which of the logits' rows. Several may read the same one.
    pub row: u32,
    /// 0 means greedy.
    pub temperature: f32,
    /// 0 means no limit.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    /// In `0..1`; only read when the temperature is above 0.
    pub uniform: f64,
    /// Added to the logits before anything else.
    pub logit_bias: &'a [(u32, f32)],
    /// Tokens so far, each once, and how often the output has them; the penalties are theirs.
    pub counts: &'a [(u32, u32)],
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Tokens out of reach: the ends of sequences and stop tokens, where they are masked.
    pub ends: [&'a [u32]; 2],
    /// Which of the step's masks.
    pub mask: Option<u32>,
    /// `Some(k)`: the token's logprob and the top `k`.
    pub num_logprobs: Option<usize>,
    /// `Some(k)`: the token's probability and the `k` likeliest tokens beside it.
    pub num_alternatives: Option<usize>,
}

impl SampleRow<'_> {
    /// The likeliest token of a row.
    pub fn greedy(row: u32) -> Self {
        Self {
            row,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            uniform: 0.0,
            logit_bias: &[],
            counts: &[],
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            ends: [&[], &[]],
            mask: None,
            num_logprobs: None,
            num_alternatives: None,
        }
    }
}

/// A token whose logprob is wanted: one of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreRow {
    /// Which of the logits' rows.
    pub row: u32,
    pub token_id: u32,
    /// Likeliest tokens reported beside it.
    pub num_top: usize,
}

/// What one slot asks for.
#[derive(Debug, Clone)]
pub enum SlotSpec<'a> {
    Sample(SampleRow<'a>),
    Score(ScoreRow),
}

/// Which launches a step needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SampleShape {
    pub num_slots: usize,
    /// Some row is drawn from weights, or wants logprobs.
    pub has_weights: bool,
    /// Some row wants logprobs.
    pub has_raw: bool,
}

impl SampleShape {
    /// Launches that serve any step of so many slots.
    pub fn any(num_slots: usize) -> Self {
        Self {
            num_slots,
            has_weights: true,
            has_raw: true,
        }
    }

    /// Whether launches of this shape do all that `other` needs.
    pub fn covers(self, other: Self) -> bool {
        self.num_slots == other.num_slots
            && self.has_weights >= other.has_weights
            && self.has_raw >= other.has_raw
    }
}

/// Device memory of sampling. Nothing of it moves: graphs hold its addresses.
pub struct SampleBuffers {
    max_slots: usize,
    vocab: usize,
    /// Specs, masks and changes, as `pack` lays them out.
    input: Buffer<u32>,
    keys: Buffer<u64>,
    sums: Buffer<f64>,
    histogram: Buffer<u32>,
    tasks: Buffer<u32>,
    arrivals: Buffer<u32>,
    /// Headers, then the likeliest tokens.
    out: Buffer<u32>,
    /// On the host: what is uploaded next, what came back, and what was asked for.
    words: Vec<u32>,
    answers: Vec<u32>,
    wanted: Vec<Wanted>,
    packer: pack::Packer,
    /// Of what was prepared last.
    num_slots: usize,
    num_rows: usize,
}

/// As `SampleArgs` in kernels/sample.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct SampleArgs {
    logits: u64,
    input: u64,
    keys: u64,
    sums: u64,
    histogram: u64,
    tasks: u64,
    arrivals: u64,
    headers: u64,
    vocab: u32,
    num_slots: u32,
    num_chunks: u32,
    num_groups: u32,
}

// SAFETY: numbers alone, without gaps.
unsafe impl Plain for SampleArgs {}

impl SampleBuffers {
    /// For up to `max_slots` tokens and scores a step.
    ///
    /// # Errors
    /// Without memory, and for vocabularies of more than 524,288 tokens.
    pub fn new(gpu: &Gpu, max_slots: usize, vocab: usize) -> Result<Self, CudaError> {
        let num_chunks = vocab.div_ceil(CHUNK);
        if num_chunks > MAX_CHUNKS || vocab == 0 {
            let most = MAX_CHUNKS * CHUNK;
            return Err(CudaError::Unsupported(format!(
                "a vocabulary of {vocab} tokens; the device samples from 1 to {most}"
            )));
        }
        let num_tasks = max_slots * NUM_VIEWS;
        let out_words = max_slots * (read::HEADER_WORDS + MAX_TOP * read::TOP_WORDS);
        Ok(Self {
            max_slots,
            vocab,
            input: gpu.zeros(pack::capacity(max_slots, vocab))?,
            keys: gpu.zeros(num_tasks * num_chunks)?,
            sums: gpu.zeros(num_tasks * num_chunks)?,
            histogram: gpu.zeros(num_tasks * NUM_BUCKETS)?,
            tasks: gpu.zeros(num_tasks * TASK_WORDS)?,
            arrivals: gpu.zeros(num_tasks)?,
            out: gpu.zeros(out_words)?,
            words: Vec::new(),
            answers: Vec::new(),
            wanted: Vec::new(),
            packer: pack::Packer::default(),
            num_slots: 0,
            num_rows: 0,
        })
    }

    pub fn max_slots(&self) -> usize {
        self.max_slots
    }

    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Where launches leave their answers: for slot `s`, word `8 s` is its token and word `8 s + 1`
    /// is 0 if it has one. The next step may take its tokens from here without a copy to the host.
    pub fn answers(&self) -> &Buffer<u32> {
        &self.out
    }

    /// Uploads what a step asks for of `num_rows` rows of logits. Slots up to `num_slots` that
    /// nobody uses stay idle: graphs have a fixed number. `masks[i]` is a bitset: bit `id % 32` of
    /// word `id / 32`; tokens past its end are allowed.
    ///
    /// # Errors
    /// For more slots than there are, for rows, masks and scored tokens that do not exist, and when
    /// the upload fails.
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        specs: &[SlotSpec<'_>],
        masks: &[&[u32]],
        num_rows: usize,
        num_slots: usize,
    ) -> Result<SampleShape, CudaError> {
        let num_slots = num_slots.max(specs.len());
        if num_slots > self.max_slots {
            let most = self.max_slots;
            return Err(CudaError::Unsupported(format!(
                "{num_slots} sampled rows in a step of at most {most}"
            )));
        }
        let is_known = |spec: &SlotSpec<'_>| match spec {
            SlotSpec::Sample(row) => {
                (row.row as usize) < num_rows
                    && row.mask.is_none_or(|mask| (mask as usize) < masks.len())
            }
            SlotSpec::Score(row) => {
                (row.row as usize) < num_rows && (row.token_id as usize) < self.vocab
            }
        };
        if !specs.iter().all(is_known) {
            return Err(CudaError::Unsupported(
                "sampling of a row, a mask or a token that is not there".to_owned(),
            ));
        }
        (self.num_slots, self.num_rows) = (num_slots, num_rows);
        let shape = self.pack(specs, masks, num_slots);
        gpu.write(&mut self.input, 0, &self.words)?;
        Ok(shape)
    }

    /// Launches alone: what [`Self::prepare`] uploaded, on `logits` (`[num_rows, vocab]`). `shape`
    /// must cover what it returned.
    ///
    /// # Errors
    /// When `logits` have another width or fewer rows than were prepared for, for another number of
    /// slots, and when a launch fails.
    pub fn launch(&self, gpu: &Gpu, logits: &Rows, shape: SampleShape) -> Result<(), CudaError> {
        let has_rows = logits.width() == self.vocab && logits.num_rows() >= self.num_rows;
        if !has_rows || shape.num_slots != self.num_slots {
            let (rows, width, vocab) = (logits.num_rows(), logits.width(), self.vocab);
            return Err(CudaError::Unsupported(format!(
                "sampling from {rows} rows of {width} logits, prepared for {} of {vocab}",
                self.num_rows
            )));
        }
        let num_groups = self.vocab.div_ceil(GROUP) as u32;
        let slots = shape.num_slots as u32;
        let views = if shape.has_raw { NUM_VIEWS as u32 } else { 1 };
        let args = Args::new().value(SampleArgs {
            logits: logits.address(),
            input: self.input.address(),
            keys: self.keys.address(),
            sums: self.sums.address(),
            histogram: self.histogram.address(),
            tasks: self.tasks.address(),
            arrivals: self.arrivals.address(),
            headers: self.out.address(),
            vocab: self.vocab as u32,
            num_slots: slots,
            num_chunks: self.vocab.div_ceil(CHUNK) as u32,
            num_groups,
        });
        let grid = |blocks: u32, threads: u32, shared_bytes: u32| Grid {
            blocks: [blocks, slots, views],
            threads,
            shared_bytes,
        };
        // SAFETY: the struct is the parameter of all three; the buffers have room for `max_slots`
        // slots and the vocabulary, and `prepare` wrote specs whose offsets lie within the input.
        // The rows they name were checked against `num_rows`, and the logits have as many.
        unsafe {
            gpu.launch("sample_maxima", grid(num_groups, MAXIMA_THREADS, 0), &args)?;
            if !shape.has_weights {
                return Ok(());
            }
            gpu.launch(
                "sample_weights",
                grid(num_groups, WEIGHTS_THREADS, 0),
                &args,
            )?;
            let shared = LIST_CAPACITY * size_of::<u64>() as u32;
            gpu.launch("sample_finish", grid(1, FINISH_THREADS, shared), &args)
        }
    }

    /// [`Self::prepare`] and [`Self::launch`], outside of graphs.
    ///
    /// # Errors
    /// Theirs.
    pub fn sample(
        &mut self,
        gpu: &Gpu,
        logits: &Rows,
        specs: &[SlotSpec<'_>],
        masks: &[&[u32]],
    ) -> Result<(), CudaError> {
        let shape = self.prepare(gpu, specs, masks, logits.num_rows(), specs.len())?;
        self.launch(gpu, logits, shape)
    }
}
