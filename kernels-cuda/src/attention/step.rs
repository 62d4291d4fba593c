//! What a step's launches read beside rows: token ids, positions, slots and the plan of attention,
//! copied to the device at once.

use super::plan::NONE;
use super::{AttentionPlan, PlanShape};
use crate::rows::RowList;
use crate::{Buffer, CudaError, Gpu};

const ROW_WORDS: usize = 4;
const UNIT_WORDS: usize = 8;
/// Words of 16 bytes: records are read so.
const ALIGNMENT: usize = 4;
/// A slot that nothing is written to.
const NO_SLOT: u32 = u32::MAX;
/// Bytes of device memory that room is made for beyond what is needed, as a share.
const HEADROOM: usize = 4;

/// A part of the step's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepPart {
    /// `[num_rows]`
    TokenIds,
    /// `[num_rows]`
    Positions,
    /// `[num_rows]`
    SlotMapping,
    /// `[num_logits_rows]`
    LogitsRows,
    /// `[num_rows]` records of 4 words
    Rows,
    /// Records of 8 words
    ThinUnits,
    WideUnits,
    Tables,
}

const PARTS: [StepPart; 8] = [
    StepPart::TokenIds,
    StepPart::Positions,
    StepPart::SlotMapping,
    StepPart::LogitsRows,
    StepPart::Rows,
    StepPart::ThinUnits,
    StepPart::WideUnits,
    StepPart::Tables,
];

/// What the launches of a step depend on: steps with the same key, and buffers that did not grow,
/// may replay the same graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StepKey {
    /// Room for rows: those past the step's own have token 0, position 0 and no slot.
    pub num_rows: usize,
    /// Room for rows whose logits are wanted: row 0 past the step's own.
    pub num_logits_rows: usize,
    /// Thin and wide units, rounded up to powers of two, or none.
    pub num_thin: usize,
    pub num_wide: usize,
    /// Whether some row's states are merged by a launch of their own.
    pub has_states: bool,
}

impl StepKey {
    /// Words of a part; of the tables whatever follows.
    fn words(&self, part: StepPart) -> usize {
        let words = match part {
            StepPart::TokenIds | StepPart::Positions | StepPart::SlotMapping => self.num_rows,
            StepPart::LogitsRows => self.num_logits_rows,
            StepPart::Rows => self.num_rows * ROW_WORDS,
            StepPart::ThinUnits => self.num_thin * UNIT_WORDS,
            StepPart::WideUnits => self.num_wide * UNIT_WORDS,
            StepPart::Tables => 0,
        };
        words.next_multiple_of(ALIGNMENT)
    }

    /// Where a part begins.
    fn offset(&self, part: StepPart) -> usize {
        let before = PARTS.iter().take_while(|other| **other != part);
        before.map(|part| self.words(*part)).sum()
    }
}

/// What a step brings beside its plan.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs<'a> {
    /// `[rows]`; `None` leaves those on the device as they are: a sampler wrote them there.
    pub token_ids: Option<&'a [u32]>,
    /// `[rows]`
    pub positions: &'a [u32],
    /// `[rows]`
    pub slot_mapping: &'a [u32],
    /// Ascending
    pub logits_rows: &'a [u32],
    /// Room in the step's key, at least the rows that there are.
    pub num_rows: usize,
    pub num_logits_rows: usize,
}

/// The inputs of a step in device memory, and room for the states of its attention. One upload a
/// step; addresses depend on the key.
#[derive(Default)]
pub struct StepBuffers {
    words: Option<Buffer<u32>>,
    states: Option<Buffer<f32>>,
    key: StepKey,
    /// Of the plan: what its launches must agree with.
    shape: Option<PlanShape>,
    split_tokens: usize,
    staged: Vec<u32>,
}

impl StepBuffers {
    /// Makes room for steps of up to `num_rows` rows and as many units, `num_blocks` blocks in all
    /// tables together, and `num_states` states, so that later steps need not grow.
    pub fn reserve(
        &mut self,
        gpu: &Gpu,
        shape: &PlanShape,
        num_rows: usize,
        num_blocks: usize,
        num_states: usize,
    ) -> Result<(), CudaError> {
        let key = StepKey {
            num_rows,
            num_logits_rows: num_rows,
            num_thin: num_rows.next_power_of_two(),
            num_wide: num_rows.next_power_of_two(),
            has_states: true,
        };
        grow(
            gpu,
            &mut self.words,
            key.offset(StepPart::Tables) + num_blocks,
        )?;
        grow(gpu, &mut self.states, num_states * shape.state_len())
    }

    /// Copies a step's inputs and its plan to the device.
    ///
    /// # Errors
    /// When positions, slots or rows do not fit each other or the cache, or the device fails.
    pub fn upload(
        &mut self,
        gpu: &Gpu,
        shape: &PlanShape,
        inputs: &StepInputs<'_>,
        plan: &AttentionPlan,
    ) -> Result<(), CudaError> {
        if let Some(fault) = fault_of(shape, inputs, plan) {
            return Err(CudaError::Unsupported(format!("a step with {fault}")));
        }
        let bucket = |count: usize| {
            if count == 0 {
                0
            } else {
                count.next_power_of_two()
            }
        };
        self.key = StepKey {
            num_rows: inputs.num_rows,
            num_logits_rows: inputs.num_logits_rows,
            num_thin: bucket(plan.thin.len()),
            num_wide: bucket(plan.wide.len()),
            has_states: plan.num_states > 0,
        };
        self.shape = Some(*shape);
        self.split_tokens = plan.split_tokens();
        self.stage(inputs, plan);
        grow(gpu, &mut self.words, self.staged.len())?;
        grow(gpu, &mut self.states, plan.num_states * shape.state_len())?;
        let first = match inputs.token_ids {
            Some(_) => 0,
            None => self.key.offset(StepPart::Positions),
        };
        match &mut self.words {
            Some(words) => gpu.write(words, first, &self.staged[first..]),
            None => Ok(()),
        }
    }

    /// The words in the order of [`PARTS`].
    fn stage(&mut self, inputs: &StepInputs<'_>, plan: &AttentionPlan) {
        self.staged.clear();
        for part in PARTS {
            let start = self.staged.len();
            let mut padding = 0;
            match part {
                StepPart::TokenIds => {
                    self.staged
                        .extend_from_slice(inputs.token_ids.unwrap_or(&[]));
                }
                StepPart::Positions => self.staged.extend_from_slice(inputs.positions),
                StepPart::SlotMapping => {
                    padding = NO_SLOT;
                    self.staged.extend_from_slice(inputs.slot_mapping);
                }
                StepPart::LogitsRows => self.staged.extend_from_slice(inputs.logits_rows),
                StepPart::Rows => {
                    padding = NONE;
                    let rows = plan.rows.iter().flat_map(|row| row.words());
                    self.staged.extend(rows);
                }
                StepPart::ThinUnits => {
                    let units = plan.thin.iter().flat_map(|unit| unit.words());
                    self.staged.extend(units);
                }
                StepPart::WideUnits => {
                    let units = plan.wide.iter().flat_map(|unit| unit.words());
                    self.staged.extend(units);
                }
                StepPart::Tables => {
                    self.staged.extend_from_slice(&plan.tables);
                    continue;
                }
            }
            self.staged.resize(start + self.key.words(part), padding);
        }
    }

    /// Of the last upload.
    pub fn key(&self) -> &StepKey {
        &self.key
    }

    /// Where a part lies: for launches. Null before the first upload.
    pub fn address(&self, part: StepPart) -> u64 {
        let offset = self.key.offset(part);
        self.words
            .as_ref()
            .map_or(0, |words| words.address_of(offset))
    }

    /// Token ids, or the rows whose logits are wanted, as lists with the room that the key has for
    /// them.
    ///
    /// # Panics
    /// Before the first upload.
    pub fn list(&self, part: StepPart) -> RowList<'_> {
        let len = match part {
            StepPart::LogitsRows => self.key.num_logits_rows,
            _ => self.key.num_rows,
        };
        RowList {
            indices: self
                .words
                .as_ref()
                .expect("a step is uploaded before it is read; this is a bug"),
            first: self.key.offset(part),
            len,
        }
    }

    /// All words, for tests.
    #[cfg(all(test, feature = "emulator"))]
    pub(super) fn words(&self, gpu: &Gpu) -> Vec<u32> {
        let Some(buffer) = &self.words else {
            return Vec::new();
        };
        let mut words = vec![0; buffer.len()];
        gpu.read(buffer, 0, &mut words).expect("words are read");
        words
    }

    pub(super) fn states(&self) -> u64 {
        self.states.as_ref().map_or(0, Buffer::address)
    }

    pub(super) fn shape(&self) -> Option<&PlanShape> {
        self.shape.as_ref()
    }

    pub(super) fn split_tokens(&self) -> usize {
        self.split_tokens
    }
}

/// Makes room for `len` values. What a smaller buffer held is gone, and graphs that hold its
/// address are void.
fn grow<T: crate::Plain>(
    gpu: &Gpu,
    buffer: &mut Option<Buffer<T>>,
    len: usize,
) -> Result<(), CudaError> {
    if buffer.as_ref().map_or(0, Buffer::len) >= len {
        return Ok(());
    }
    // The old one first: both may not fit.
    drop(buffer.take());
    *buffer = Some(gpu.zeros(len + len / HEADROOM)?);
    gpu.note_growth();
    Ok(())
}

/// What a launch would read or write outside of memory for.
fn fault_of(
    shape: &PlanShape,
    inputs: &StepInputs<'_>,
    plan: &AttentionPlan,
) -> Option<&'static str> {
    let num_rows = inputs.positions.len();
    let num_slots = shape.num_blocks * shape.block_size;
    let fits = |slot: &u32| *slot == NO_SLOT || (*slot as usize) < num_slots;
    let num_tokens = inputs.token_ids.map_or(num_rows, <[u32]>::len);
    if plan.rows.len() != num_rows {
        Some("a plan of other rows")
    } else if inputs.slot_mapping.len() != num_rows || num_tokens != num_rows {
        Some("rows without a token, a position and a slot each")
    } else if !inputs.slot_mapping.iter().all(fits) {
        Some("a slot that the cache does not have")
    } else if inputs
        .logits_rows
        .iter()
        .any(|row| *row as usize >= num_rows)
    {
        Some("logits of a row that is not there")
    } else if inputs.num_rows < num_rows || inputs.num_logits_rows < inputs.logits_rows.len() {
        Some("less room than rows")
    } else {
        None
    }
}
