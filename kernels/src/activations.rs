//! The left-hand side of a product: rows of f32, quantised once and shared by every matrix that
//! reads them.

use std::cell::RefCell;

use crate::cpu;
use crate::memory::PageBuffer;
use crate::panel::BLOCK_INPUTS;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// How the codes of one row's block of 32 inputs are scaled.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockInfo {
    /// value = scale * code
    pub scale: f32,
    /// scale times the sum of the codes: what a weight offset multiplies.
    pub scaled_sum: f32,
}

/// Minus a weight's zero point times the sum of a block's codes, for each [`Correction`]: an integer dot
/// product of raw weight codes that starts here ends at that of `code - zero`.
pub(crate) type Corrections = [i32; 6];

/// The sums of a block's first and second 16 codes.
pub(crate) fn half_sums(corrections: &Corrections) -> [i32; 2] {
    [Correction::LowHalf, Correction::HighHalf].map(|half| corrections[half as usize] / -32)
}

/// Index into [`Corrections`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Correction {
    /// Zero point 8: Q4_0.
    Eight = 0,
    /// Zero point 16: Q5_0.
    Sixteen = 1,
    /// Zero point 128: signed codes made unsigned.
    Signed = 2,
    /// Zero point 32 over the first, 32 over the second 16 inputs: Q6_K.
    LowHalf = 3,
    HighHalf = 4,
    /// No zero point.
    None = 5,
}

/// Rows quantised to int8 in blocks of 32 inputs. Reused between calls: buffers only grow.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) num_rows: usize,
    pub(crate) in_features: usize,
    /// Whether float matrices will read the rows, so that `values` is kept.
    keeps_values: bool,
    /// `[num_rows, in_features]`, when kept.
    pub(crate) values: Vec<f32>,
    /// `values` rounded to bf16, rows filled up to whole pairs with zeros; where products read
    /// them.
    halves: Vec<u16>,
    /// `[num_rows, in_features]`, in -127..=127; on a page so that rows of whole blocks start where a
    /// cache line or its half does.
    codes: PageBuffer,
    /// `[num_rows, in_features / 32]`
    pub(crate) infos: Vec<BlockInfo>,
    /// `[num_rows, in_features / 32]`
    pub(crate) corrections: Vec<Corrections>,
}

/// Buffers of [`Activations`] that several threads fill row by row.
pub(crate) struct SharedRows<'a> {
    in_features: usize,
    values: Option<SharedSlice<'a, f32>>,
    halves: Option<SharedSlice<'a, u16>>,
    codes: SharedSlice<'a, i8>,
    infos: SharedSlice<'a, BlockInfo>,
    corrections: SharedSlice<'a, Corrections>,
}

impl SharedRows<'_> {
    /// Takes columns `start..start + x.len()` of a row: whole blocks, or the whole row when it isn't
    /// made of blocks.
    ///
    /// # Safety
    /// No other thread may hold the same columns of the row.
    pub(crate) unsafe fn store(&self, row: usize, start: usize, x: &[f32]) {
        let at = row * self.in_features + start;
        if let Some(values) = &self.values {
            // SAFETY: the caller's promise.
            unsafe { values.slice_mut(at, x.len()) }.copy_from_slice(x);
        }
        if let Some(halves) = &self.halves {
            let at = row * self.in_features.next_multiple_of(2) + start;
            // SAFETY: the caller's promise; a row's last pair goes with its last column.
            let halves = unsafe { halves.slice_mut(at, x.len().next_multiple_of(2)) };
            let (halves, rest) = halves.split_at_mut(x.len());
            cpu::round_to_bf16(x, halves);
            rest.fill(0);
        }
        if self.in_features.is_multiple_of(BLOCK_INPUTS) {
            // SAFETY: the caller's promise.
            unsafe {
                let codes = self.codes.slice_mut(at, x.len());
                let (first, count) = (at / BLOCK_INPUTS, x.len() / BLOCK_INPUTS);
                let infos = self.infos.slice_mut(first, count);
                let corrections = self.corrections.slice_mut(first, count);
                cpu::quantise_row(x, codes, infos, corrections);
            }
        }
    }
}

thread_local! {
    /// A normalised row before it is quantised.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Activations {
    /// Buffers for up to `max_rows` rows of up to `max_in_features` values. `keeps_values` must be set
    /// when float matrices read them.
    pub fn with_capacity(max_rows: usize, max_in_features: usize, keeps_values: bool) -> Self {
        let mut activations = Self {
            keeps_values,
            ..Self::default()
        };
        activations.resize(max_rows, max_in_features);
        activations
    }

    fn resize(&mut self, num_rows: usize, in_features: usize) {
        self.num_rows = num_rows;
        self.in_features = in_features;
        let count = num_rows * in_features;
        if self.keeps_values && self.values.len() < count {
            self.values.resize(count, 0.0);
        }
        let halves = num_rows * in_features.next_multiple_of(2);
        if self.keeps_halves() && self.halves.len() < halves {
            self.halves.resize(halves, 0);
        }
        if self.codes.len() < count {
            self.codes = PageBuffer::zeroed(count).expect("memory for the rows of a step");
        }
        let blocks = num_rows * in_features.div_ceil(BLOCK_INPUTS);
        if self.infos.len() < blocks {
            self.infos.resize(blocks, BlockInfo::default());
            self.corrections.resize(blocks, Corrections::default());
        }
    }

    fn keeps_halves(&self) -> bool {
        self.keeps_values && cpu::multiplies_bf16()
    }

    /// Makes room for `[num_rows, in_features]` and hands out the rows to be filled.
    pub(crate) fn start(&mut self, num_rows: usize, in_features: usize) -> SharedRows<'_> {
        self.resize(num_rows, in_features);
        let keeps_halves = self.keeps_halves();
        SharedRows {
            in_features,
            halves: keeps_halves.then(|| SharedSlice::new(&mut self.halves)),
            values: self
                .keeps_values
                .then(|| SharedSlice::new(&mut self.values)),
            codes: SharedSlice::new(self.codes.signed_mut()),
            infos: SharedSlice::new(&mut self.infos),
            corrections: SharedSlice::new(&mut self.corrections),
        }
    }

    /// Takes `x` (`[num_rows, in_features]`) and quantises it when its rows are whole blocks.
    ///
    /// # Panics
    /// When `x` has another length.
    pub fn load(&mut self, pool: &ThreadPool, x: &[f32], num_rows: usize, in_features: usize) {
        assert_eq!(
            x.len(),
            num_rows * in_features,
            "x is [num_rows, in_features]"
        );
        let rows = self.start(num_rows, in_features);
        for_rows(pool, num_rows, in_features, |row| {
            // SAFETY: each row is taken once.
            unsafe { rows.store(row, 0, &x[row * in_features..][..in_features]) };
        });
    }

    /// [`Self::load`] of the RMS-normalised rows of `x`: `x / sqrt(mean(x^2) + eps) * weight`.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn load_normed(&mut self, pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32) {
        let in_features = weight.len();
        assert!(x.len().is_multiple_of(in_features), "x has whole rows");
        let num_rows = x.len() / in_features;
        let rows = self.start(num_rows, in_features);
        for_rows(pool, num_rows, in_features, |row| {
            ROW.with_borrow_mut(|normed| {
                normed.resize(in_features, 0.0);
                normed.copy_from_slice(&x[row * in_features..][..in_features]);
                cpu::rms_norm_row(normed, weight, eps);
                // SAFETY: each row is taken once.
                unsafe { rows.store(row, 0, normed) };
            });
        });
    }

    /// Copies rows of `source`, in the order of `rows`: the same codes, not rounded again.
    ///
    /// # Panics
    /// When a row does not exist, or floats are kept here that `source` lacks.
    pub fn gather(&mut self, pool: &ThreadPool, source: &Activations, rows: &[u32]) {
        let width = source.in_features;
        let blocks = width / BLOCK_INPUTS;
        assert!(
            source.keeps_values || !self.keeps_values,
            "the source keeps no values"
        );
        let is_known = |row: &u32| (*row as usize) < source.num_rows;
        assert!(rows.iter().all(is_known), "rows of the source");
        let is_blocks = width.is_multiple_of(BLOCK_INPUTS);
        let target = self.start(rows.len(), width);
        for_rows(pool, rows.len(), width / 4, |index| {
            let row = rows[index] as usize;
            // SAFETY: each row is taken once.
            unsafe {
                if let Some(values) = &target.values {
                    let from = &source.values[row * width..][..width];
                    values.slice_mut(index * width, width).copy_from_slice(from);
                }
                if let Some(halves) = &target.halves {
                    let width = width.next_multiple_of(2);
                    let from = &source.halves[row * width..][..width];
                    halves.slice_mut(index * width, width).copy_from_slice(from);
                }
                if is_blocks {
                    let codes = target.codes.slice_mut(index * width, width);
                    codes.copy_from_slice(&source.codes()[row * width..][..width]);
                    let infos = target.infos.slice_mut(index * blocks, blocks);
                    infos.copy_from_slice(&source.infos[row * blocks..][..blocks]);
                    let corrections = target.corrections.slice_mut(index * blocks, blocks);
                    corrections.copy_from_slice(&source.corrections[row * blocks..][..blocks]);
                }
            }
        });
    }

    /// `[num_rows, in_features]`, or more.
    pub(crate) fn codes(&self) -> &[i8] {
        self.codes.signed()
    }

    /// Pairs of inputs as bf16, `[num_rows, in_features / 2]` rounded up, or more.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pairs(&self) -> &[[u16; 2]] {
        self.halves.as_chunks().0
    }

    /// Whether float matrices can read the rows.
    pub(crate) fn has_values(&self) -> bool {
        self.keeps_values
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }
}
