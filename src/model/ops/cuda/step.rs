//! What the host knows of a step, in device memory.

pub use ponder_kernels_cuda::attention::StepKey;
use ponder_kernels_cuda::attention::{AttentionPlan, PlanShape, StepBuffers, StepInputs};
use ponder_kernels_cuda::rows::{NO_OFFSET, Offsets, RowList};
use ponder_kernels_cuda::{Buffer, CudaError, Gpu};

use super::super::{AdapterRows, AttentionShape, OpsError, RowSet};
use crate::model::causal_lm::ForwardBatch;
use crate::model::steering;

/// Blocks in all tables of a step that there is room for from the start.
const MIN_TABLE_BLOCKS: usize = 1 << 16;
/// States of rows over splits of their contexts, likewise.
const NUM_STATES: usize = 2048;

fn plan_shape(gpu: &Gpu, shape: AttentionShape) -> PlanShape {
    PlanShape {
        num_heads: shape.num_heads,
        num_kv_heads: shape.cache.num_kv_heads,
        head_dim: shape.cache.head_dim,
        num_blocks: shape.cache.num_blocks,
        block_size: shape.cache.block_size,
        num_multiprocessors: gpu.properties().num_multiprocessors,
    }
}

/// A step that was uploaded.
#[derive(Default)]
pub struct CudaStep {
    plan: AttentionPlan,
    buffers: StepBuffers,
    /// The rows of each adapter's group, and those of them that are kept, one list after the other.
    groups: Option<Buffer<u32>>,
    /// Where those lists lie: first value and length, of all rows and of kept ones.
    group_lists: Vec<[(usize, usize); 2]>,
    steering: Option<Steering>,
}

/// What steers the rows of a step.
struct Steering {
    /// For each row its sequence's place in the tables, then for each kept row.
    of_row: Buffer<u32>,
    num_rows: usize,
    /// `[num_steered, hidden_size]`
    hidden: Option<Buffer<f32>>,
    /// By layer, `[num_steered, num_experts]`.
    router: Vec<Option<Buffer<f32>>>,
}

impl CudaStep {
    /// What a recording of the step is good for; `None` where it has lists that others do not have.
    pub fn key(&self) -> Option<StepKey> {
        let is_plain = self.group_lists.is_empty() && self.steering.is_none();
        is_plain.then(|| *self.buffers.key())
    }

    pub(super) fn buffers(&self) -> &StepBuffers {
        &self.buffers
    }

    /// The rows of a group that are there.
    pub(super) fn group(&self, group: usize, rows: RowSet) -> Option<RowList<'_>> {
        let lists = self.group_lists.get(group)?;
        let (first, len) = lists[usize::from(rows == RowSet::Kept)];
        let indices = self.groups.as_ref()?;
        Some(RowList {
            indices,
            first,
            len,
        })
    }

    /// What is added to normed hidden states.
    pub(super) fn hidden(&self, rows: RowSet) -> Option<Offsets<'_>> {
        let steering = self.steering.as_ref()?;
        steering.offsets(steering.hidden.as_ref()?, rows)
    }

    /// What is added to a layer's router logits.
    pub(super) fn router(&self, layer: usize, rows: RowSet) -> Option<Offsets<'_>> {
        let steering = self.steering.as_ref()?;
        steering.offsets(steering.router.get(layer)?.as_ref()?, rows)
    }

    pub(super) fn upload(
        &mut self,
        gpu: &Gpu,
        batch: &ForwardBatch<'_>,
        groups: &[AdapterRows],
        shape: AttentionShape,
    ) -> Result<(), OpsError> {
        let plan_shape = plan_shape(gpu, shape);
        self.plan.plan(&plan_shape, batch.sequences)?;
        let inputs = StepInputs {
            token_ids: Some(batch.token_ids),
            positions: batch.positions,
            slot_mapping: batch.slot_mapping,
            logits_rows: batch.logits_rows,
            num_rows: batch.token_ids.len(),
            num_logits_rows: batch.logits_rows.len(),
        };
        self.buffers.upload(gpu, &plan_shape, &inputs, &self.plan)?;
        self.steering = Steering::upload(gpu, batch)?;
        Ok(self.upload_groups(gpu, groups)?)
    }

    /// Makes room at once for what long contexts need later: recordings hold the buffers' addresses.
    pub(super) fn reserve(
        &mut self,
        gpu: &Gpu,
        shape: AttentionShape,
        max_num_rows: usize,
    ) -> Result<(), CudaError> {
        let num_blocks = shape.cache.num_blocks.max(MIN_TABLE_BLOCKS);
        let plan_shape = plan_shape(gpu, shape);
        self.buffers
            .reserve(gpu, &plan_shape, max_num_rows, num_blocks, NUM_STATES)
    }

    fn upload_groups(&mut self, gpu: &Gpu, groups: &[AdapterRows]) -> Result<(), CudaError> {
        self.group_lists.clear();
        let mut all: Vec<u32> = Vec::new();
        for group in groups {
            self.group_lists
                .push([&group.rows, &group.kept].map(|rows| {
                    let first = all.len();
                    all.extend(rows.iter().map(|row| *row as u32));
                    (first, rows.len())
                }));
        }
        if all.is_empty() {
            return Ok(());
        }
        match self
            .groups
            .as_mut()
            .filter(|buffer| buffer.len() >= all.len())
        {
            Some(buffer) => gpu.write(buffer, 0, &all),
            None => {
                self.groups = Some(gpu.upload(&all)?);
                Ok(())
            }
        }
    }
}

impl Steering {
    fn offsets<'a>(&'a self, values: &'a Buffer<f32>, rows: RowSet) -> Option<Offsets<'a>> {
        let (first, len) = match rows {
            RowSet::All => (0, self.num_rows),
            RowSet::Kept => (self.num_rows, self.of_row.len() - self.num_rows),
        };
        let of_row = RowList {
            indices: &self.of_row,
            first,
            len,
        };
        Some(Offsets { values, of_row })
    }

    /// `None` where nothing is steered.
    fn upload(gpu: &Gpu, batch: &ForwardBatch<'_>) -> Result<Option<Self>, CudaError> {
        let all: Vec<&steering::Steering> = batch.steering.iter().copied().flatten().collect();
        if all.is_empty() {
            return Ok(None);
        }
        let num_rows = batch.token_ids.len();
        let mut of_row = vec![NO_OFFSET; num_rows + batch.logits_rows.len()];
        let mut place = 0;
        for ((rows, kept), steering) in batch.ranges().zip(batch.steering) {
            if steering.is_none() {
                continue;
            }
            of_row[rows].fill(place);
            of_row[num_rows + kept.start..num_rows + kept.end].fill(place);
            place += 1;
        }
        let hidden = table(&all, |steering| steering.hidden.as_deref());
        let num_layers = all.iter().map(|steering| steering.router.len()).max();
        let router = (0..num_layers.unwrap_or(0)).map(|layer| {
            let table = table(&all, |steering| steering.router_delta(layer));
            table.map(|values| gpu.upload(&values)).transpose()
        });
        Ok(Some(Self {
            of_row: gpu.upload(&of_row)?,
            num_rows,
            hidden: hidden.map(|values| gpu.upload(&values)).transpose()?,
            router: router.collect::<Result<_, _>>()?,
        }))
    }
}

/// The vectors of all, zeros where one has none; `None` where none has any.
fn table<'a>(
    all: &[&'a steering::Steering],
    vector: impl Fn(&'a steering::Steering) -> Option<&'a [f32]>,
) -> Option<Vec<f32>> {
    let width = all.iter().find_map(|steering| vector(steering))?.len();
    let rows = all.iter().flat_map(|steering| match vector(steering) {
        Some(values) => values.to_vec(),
        None => vec![0.0; width],
    });
    Some(rows.collect())
}
