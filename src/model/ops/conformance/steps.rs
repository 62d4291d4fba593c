//! What depends on the step: tokens, adapters, steering, and which rows are kept.

use std::ops::Range;

use ponder_kernels::{Glu, KvDtype};

use super::{
    Case, FLOATS, ROUNDED, assert_same_bits, check, floats, host, norm, observe, random, rows,
};
use crate::model::causal_lm::{AdapterId, ForwardBatch, SequenceRows};
use crate::model::lora::LowRank;
use crate::model::ops::{
    AdaptedInput, AdapterRows, Additions, AttentionShape, KvShape, Ops, OpsError, RowSet, Step,
};
use crate::model::steering::Steering;

const WIDTH: usize = 33;
const LAYER: usize = 2;
/// Rows, adapter and whether it is steered, of each sequence.
const SEQUENCES: [(usize, Option<u32>, bool); 5] = [
    (3, Some(0), false),
    (1, None, true),
    (5, Some(1), true),
    (2, None, false),
    (4, Some(0), false),
];

pub(super) fn check_all<O: Ops>(ops: &mut O) {
    for kept in [RowSet::All, RowSet::Kept] {
        check(ops, "steering", FLOATS, &Steered { kept });
        for is_normed in [false, true] {
            for (width, reads_floats, tolerance) in [(WIDTH, true, 5e-4), (96, false, ROUNDED)] {
                let case = Adapted {
                    kept,
                    is_normed,
                    width,
                    reads_floats,
                };
                check(ops, "low rank", tolerance, &case);
            }
        }
    }
    check(ops, "embeddings", FLOATS, &Embedded);
    check(ops, "kept rows", 0.0, &Kept);
    plain_rows_keep_their_bits(ops).expect("rows are normed");
}

fn steering() -> Steering {
    let mut router = vec![None; LAYER + 1];
    router[LAYER] = Some(random(80, WIDTH));
    Steering {
        router,
        hidden: Some(random(81, WIDTH)),
    }
}

/// The rows of some sequences before the step: `[rows, WIDTH]`.
fn values(seed: u64, sequences: &Range<usize>, rows: RowSet) -> Vec<f32> {
    values_of(WIDTH, seed, sequences, rows)
}

/// `[rows, width]`
fn values_of(width: usize, seed: u64, sequences: &Range<usize>, rows: RowSet) -> Vec<f32> {
    let of_sequence = |index: usize| {
        let all = random(seed + index as u64, SEQUENCES[index].0 * width);
        let is_there = |row: &usize| rows == RowSet::All || is_kept(*row);
        let kept = (0..SEQUENCES[index].0).filter(is_there);
        kept.flat_map(|row| all[row * width..(row + 1) * width].to_vec())
            .collect::<Vec<f32>>()
    };
    sequences.clone().flat_map(of_sequence).collect()
}

/// Every other row of a sequence.
fn is_kept(row: usize) -> bool {
    row.is_multiple_of(2)
}

/// A step over some of the sequences.
fn with_step<O: Ops, R>(
    ops: &mut O,
    sequences: &Range<usize>,
    rows: RowSet,
    run: impl FnOnce(&mut O, Step<'_, O>) -> Result<R, OpsError>,
) -> Result<R, OpsError> {
    let steering = steering();
    let table: Vec<u32> = vec![0];
    let (mut token_ids, mut kept, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut adapters, mut steered) = (Vec::new(), Vec::new(), Vec::new());
    for index in sequences.clone() {
        let (num_rows, adapter, is_steered) = SEQUENCES[index];
        for row in 0..num_rows {
            let at = token_ids.len();
            if let Some(adapter) = adapter {
                note(
                    &mut groups,
                    AdapterId(adapter),
                    at,
                    is_kept(row).then_some(kept.len()),
                );
            }
            if is_kept(row) {
                kept.push(at as u32);
            }
            token_ids.push((index * 7 + row * 3) as u32 % 40);
        }
        spans.push(SequenceRows {
            block_table: &table,
            num_rows,
            context_len: num_rows,
            leaves: &[],
        });
        adapters.push(adapter.map(AdapterId));
        steered.push(is_steered.then_some(&steering));
    }
    let batch = ForwardBatch {
        token_ids: &token_ids,
        positions: &token_ids,
        slot_mapping: &token_ids,
        sequences: &spans,
        adapters: &adapters,
        steering: &steered,
        logits_rows: &kept,
        skip: None,
        local: None,
    };
    let mut inputs = O::StepInputs::default();
    let shape = AttentionShape {
        num_heads: 1,
        cache: KvShape {
            num_layers: 1,
            num_blocks: 1,
            block_size: 64,
            num_kv_heads: 1,
            head_dim: 32,
            dtype: KvDtype::F16,
        },
    };
    ops.prepare(&batch, &groups, shape, &mut inputs)?;
    let step = Step {
        batch: &batch,
        groups: &groups,
        inputs: &inputs,
        rows,
    };
    run(ops, step)
}

fn note(groups: &mut Vec<AdapterRows>, adapter: AdapterId, row: usize, kept: Option<usize>) {
    let known = groups.iter_mut().find(|group| group.adapter == adapter);
    match known {
        Some(group) => {
            group.rows.push(row);
            group.kept.extend(kept);
        }
        None => groups.push(AdapterRows {
            adapter,
            rows: vec![row],
            kept: kept.into_iter().collect(),
        }),
    }
}

struct Embedded;

impl Case for Embedded {
    fn num_units(&self) -> usize {
        SEQUENCES.len()
    }

    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let table = floats(ops, 82, 40, WIDTH)?;
        let mut out = O::Rows::default();
        with_step(ops, &units, RowSet::All, |ops, step| {
            ops.embed(step, &table.weights, 1.5, &mut out)
        })?;
        host(ops, &out)
    }
}

struct Kept;

impl Case for Kept {
    fn num_units(&self) -> usize {
        SEQUENCES.len()
    }

    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let mut rows = rows(ops, &values(83, &units, RowSet::All), WIDTH)?;
        with_step(ops, &units, RowSet::Kept, |ops, step| {
            ops.keep_rows(step, &mut rows)
        })?;
        let kept = host(ops, &rows)?;
        assert_eq!(kept, values(83, &units, RowSet::Kept));
        Ok(kept)
    }
}

struct Steered {
    kept: RowSet,
}

impl Case for Steered {
    fn num_units(&self) -> usize {
        SEQUENCES.len()
    }

    /// Router logits, then hidden states, sequence by sequence.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let x = values(84, &units, self.kept);
        let mut logits = rows(ops, &x, WIDTH)?;
        let hidden = rows(ops, &x, WIDTH)?;
        let weight = ops.vector(norm(85, WIDTH))?;
        let mut out = ops.activations(0, 0, true)?;
        with_step(ops, &units, self.kept, |ops, step| {
            ops.steer_router(step, LAYER, &mut logits)?;
            // A layer that nothing is added to.
            ops.steer_router(step, LAYER + 1, &mut logits)?;
            ops.final_norm(step, &hidden, &weight, 1e-6, &mut out)
        })?;
        let (logits, hidden) = (host(ops, &logits)?, observe(ops, &out, WIDTH)?);
        let rows = logits.chunks_exact(WIDTH).zip(hidden.chunks_exact(WIDTH));
        Ok(rows.flat_map(|(a, b)| [a, b].concat()).collect())
    }
}

/// Products with two adapters, of which one changes both matrices.
struct Adapted {
    kept: RowSet,
    is_normed: bool,
    width: usize,
    reads_floats: bool,
}

impl Adapted {
    /// Of one matrix a rank; 0 leaves the matrix alone.
    fn factors<O: Ops>(&self, ops: &O, ranks: &[usize]) -> Result<O::LowRank, OpsError> {
        let width = self.width;
        let scaled = |seed, count| random(seed, count).iter().map(|x| 0.3 * x).collect();
        let part = |seed, rank| LowRank {
            rank,
            out_features: width,
            in_features: width,
            a: scaled(seed, rank * width),
            b: scaled(seed + 1, width * rank),
        };
        let parts = ranks.iter().zip([90, 92]);
        let parts: Vec<_> = parts.map(|(rank, seed)| part(seed, *rank)).collect();
        let parts = parts.iter().map(|part| (part.rank > 0).then_some(part));
        ops.low_rank(&parts.collect::<Vec<_>>(), self.reads_floats)
    }
}

impl Case for Adapted {
    fn num_units(&self) -> usize {
        SEQUENCES.len()
    }

    /// Two products, what is gated by one of them, and rows that the first is added to.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let width = self.width;
        let packed = [self.factors(ops, &[1, 0])?, self.factors(ops, &[3, 5])?];
        let alone = [self.factors(ops, &[1])?, self.factors(ops, &[3])?];
        let linears = [
            floats(ops, 86, width, width)?,
            floats(ops, 87, width, width)?,
        ];
        let linears = linears.each_ref();
        let x = rows(ops, &values_of(width, 94, &units, self.kept), width)?;
        let weight = ops.vector(norm(95, width))?;
        let mut read = ops.activations(0, 0, true)?;
        match self.is_normed {
            true => ops.norm(&x, &weight, 1e-6, &mut read)?,
            false => ops.quantise(&x, &mut read)?,
        }
        let mut sums = rows(ops, &values_of(width, 96, &units, self.kept), width)?;
        let [mut first, mut second, mut gate, mut up] = std::array::from_fn(|_| O::Rows::default());
        let mut gated = ops.activations(0, 0, true)?;
        with_step(ops, &units, self.kept, |ops, step| {
            let input = match self.is_normed {
                true => AdaptedInput::Normed {
                    rows: &x,
                    weight: &weight,
                    eps: 1e-6,
                },
                false => AdaptedInput::Plain(&x),
            };
            let of_group = |group: &AdapterRows| Some(&packed[group.adapter.0 as usize]);
            let additions = Additions {
                step,
                input,
                factors: step.groups.iter().map(of_group).collect(),
            };
            ops.project_adapted(&read, linears, [&mut first, &mut second], &additions)?;
            let rows = [&mut gate, &mut up];
            ops.gate_up_adapted(&read, linears, Glu::Silu, &additions, rows, &mut gated)?;
            let of_group = |group: &AdapterRows| Some(&alone[group.adapter.0 as usize]);
            let factors = step.groups.iter().map(of_group);
            let additions = Additions {
                factors: factors.collect(),
                ..additions
            };
            ops.project_add_adapted(&read, linears[0], &mut sums, &additions)
        })?;
        let parts = [
            host(ops, &first)?,
            host(ops, &second)?,
            observe(ops, &gated, width)?,
            host(ops, &sums)?,
        ];
        let num_rows = parts[0].len() / width;
        let of_row = |row: usize| {
            parts
                .iter()
                .flat_map(move |p| p[row * width..][..width].to_vec())
        };
        Ok((0..num_rows).flat_map(of_row).collect())
    }
}

/// The rows of a sequence that nothing steers get the bits of the plain norm.
fn plain_rows_keep_their_bits<O: Ops>(ops: &mut O) -> Result<(), OpsError> {
    let all = 0..SEQUENCES.len();
    let weight = ops.vector(norm(98, WIDTH))?;
    let x = rows(ops, &values(99, &all, RowSet::All), WIDTH)?;
    let mut steered = ops.activations(0, 0, true)?;
    with_step(ops, &all, RowSet::All, |ops, step| {
        ops.final_norm(step, &x, &weight, 1e-6, &mut steered)
    })?;
    let mut plain = ops.activations(0, 0, true)?;
    ops.norm(&x, &weight, 1e-6, &mut plain)?;
    let (steered, plain) = (observe(ops, &steered, WIDTH)?, observe(ops, &plain, WIDTH)?);
    let mut at = 0;
    for (num_rows, _, is_steered) in SEQUENCES {
        let range = at..at + num_rows * WIDTH;
        at = range.end;
        match is_steered {
            true => assert_ne!(steered[range.clone()], plain[range]),
            false => assert_same_bits("plain", &steered[range.clone()], &plain[range]),
        }
    }
    Ok(())
}
