//! Rotation, the cache and attention: whatever steps a sequence is cut into and wherever its blocks
//! lie.

use std::ops::Range;

use ponder_kernels::{AttentionParams, KvDtype, RopeKind};

use super::{ROUNDED, assert_near, assert_same_bits, norm, random, rows};
use crate::model::causal_lm::{BlockId, ForwardBatch, SequenceRows};
use crate::model::ops::reference::ReferenceOps;
use crate::model::ops::{
    AttentionShape, KvShape, LayerAttention, Needs, Ops, OpsError, RopeParams, Rotation, RowSet,
    Step,
};

const LENGTHS: [usize; 3] = [37, 1, 21];
const NUM_BLOCKS: u32 = 24;
const NUM_LAYERS: usize = 2;
/// The layer that is looked at.
const LAYER: usize = 1;
const EPS: f32 = 1e-6;

/// A variant of attention.
struct Setup {
    params: AttentionParams,
    kind: RopeKind,
    rotary_dim: usize,
    has_norms: bool,
    block_size: usize,
    freq_factors: Option<Vec<f32>>,
    magnitude: f32,
    has_sinks: bool,
    dtype: KvDtype,
}

/// Rows of one step: sequence, tokens, and the positions of leaves among the last of them.
type Rows<'a> = (usize, Range<usize>, &'a [u32]);

pub(super) fn check_all<O: Ops>(ops: &mut O, dtypes: &[KvDtype]) {
    let needs = Needs {
        attention_sinks: true,
        ..Needs::NONE
    };
    let has_sinks = ops.lacks(needs).is_none();
    for setup in dtypes.iter().flat_map(|dtype| setups(*dtype)) {
        if setup.has_sinks && !has_sinks {
            continue;
        }
        let name = format!("attention over {:?} of {:?}", setup.dtype, setup.params);
        check_steps(ops, &name, &setup).expect("attention runs");
        check_leaf(ops, &name, &setup).expect("a leaf is attended");
        check_copies(ops, &name, &setup).expect("blocks are copied");
    }
}

/// A type of keys and values that an implementation lacks is refused.
pub(super) fn check_refusal<O: Ops>(ops: &O, dtypes: &[KvDtype]) {
    for dtype in [KvDtype::F16, KvDtype::Q8_0] {
        let shape = cache_shape(&setups(dtype)[0]);
        let is_refused = matches!(ops.kv_cache(&shape), Err(OpsError::Lacks(_)));
        assert_eq!(is_refused, !dtypes.contains(&dtype), "{dtype:?}");
    }
}

fn setups(dtype: KvDtype) -> Vec<Setup> {
    let plain = || Setup {
        params: AttentionParams {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            scale: 0.18,
            sliding_window: None,
            softcap: None,
        },
        kind: RopeKind::Neox,
        rotary_dim: 32,
        has_norms: false,
        block_size: 16,
        freq_factors: None,
        magnitude: 1.0,
        has_sinks: false,
        dtype,
    };
    let mut all: Vec<Setup> = (0..6).map(|_| plain()).collect();
    all[1].params.sliding_window = Some(5);
    all[1].has_norms = true;
    all[2].params.softcap = Some(2.0);
    all[2].params.num_kv_heads = 4;
    all[2].kind = RopeKind::Norm;
    all[2].block_size = 32;
    all[3].params.num_heads = 6;
    all[3].params.head_dim = 48;
    all[3].rotary_dim = 16;
    all[3].freq_factors = Some(vec![1.0, 1.0, 2.0, 3.5, 4.0, 4.0, 8.0, 8.0]);
    all[3].magnitude = 1.25;
    // Nothing rotates.
    all[4].rotary_dim = 0;
    all[5].has_sinks = true;
    all[5].params.sliding_window = Some(6);
    all
}

/// Sequences' blocks: one after the other, or scattered in one of two ways that have no block in common.
fn tables(setup: &Setup, scattering: Option<u32>) -> Vec<Vec<BlockId>> {
    let mut next = 0;
    let mut table = |len: usize| -> Vec<BlockId> {
        let blocks = next..next + len.div_ceil(setup.block_size) as u32;
        next = blocks.end;
        let place = |block| match scattering {
            Some(offset) => (block + offset) * 7 % NUM_BLOCKS,
            None => block,
        };
        blocks.map(place).collect()
    };
    LENGTHS.map(&mut table).into()
}

fn check_steps<O: Ops>(ops: &mut O, name: &str, setup: &Setup) -> Result<(), OpsError> {
    let whole: Vec<Rows<'_>> = (0..LENGTHS.len())
        .map(|sequence| (sequence, 0..LENGTHS[sequence], &[][..]))
        .collect();
    let all = run(
        ops,
        setup,
        &tables(setup, None),
        std::slice::from_ref(&whole),
    )?;
    let mut reference = ReferenceOps::default();
    let expected = run(
        &mut reference,
        setup,
        &tables(setup, None),
        std::slice::from_ref(&whole),
    )?;
    assert_near(name, &all.concat(), &expected.concat(), ROUNDED);
    let alone: Vec<Vec<Rows<'_>>> = whole.iter().map(|rows| vec![rows.clone()]).collect();
    let piece = |step: usize, size: usize| -> Vec<Rows<'_>> {
        let pieces = whole.iter().filter_map(|(sequence, tokens, leaves)| {
            let end = tokens.end.min((step + 1) * size);
            (step * size < end).then_some((*sequence, step * size..end, *leaves))
        });
        pieces.collect()
    };
    let pieces = |size: usize| (0..37_usize.div_ceil(size)).map(move |step| piece(step, size));
    let cuts = [alone, pieces(7).collect(), pieces(1).collect()];
    for (steps, scattering) in cuts.iter().zip([None, Some(0), Some(12)]) {
        let cut = run(ops, setup, &tables(setup, scattering), steps)?;
        assert_same_bits(name, &cut.concat(), &all.concat());
    }
    Ok(())
}

/// Copied blocks are as good as their sources.
fn check_copies<O: Ops>(ops: &mut O, name: &str, setup: &Setup) -> Result<(), OpsError> {
    let steps = [vec![(0, 0..30, &[][..])], vec![(0, 30..37, &[][..])]];
    let (own, others) = (tables(setup, Some(0)), tables(setup, Some(12)));
    let stayed = run(ops, setup, &own, &steps)?;
    let moved = run_with(ops, setup, &own, &steps, |token| token, Some(&others))?;
    assert_same_bits(name, &moved[0], &stayed[0]);
    Ok(())
}

/// A leaf is attended as if its token were that of its position.
fn check_leaf<O: Ops>(ops: &mut O, name: &str, setup: &Setup) -> Result<(), OpsError> {
    let tables = tables(setup, Some(0));
    // The last token of the first sequence stands in for the one at position 17.
    let last = LENGTHS[0] - 1;
    let steps = [
        vec![(0, 0..last, &[][..])],
        vec![(0, last..last + 1, &[17][..])],
    ];
    let got = run(ops, setup, &tables, &steps)?;
    let mut reference = ReferenceOps::default();
    let expected = run(&mut reference, setup, &tables, &steps)?;
    assert_near(name, &got[0], &expected[0], ROUNDED);
    let width = setup.params.num_heads * setup.params.head_dim;
    let as_leaf = |token| if token == 17 { last } else { token };
    let steps = [vec![(0, 0..18, &[][..])]];
    let in_place = run_with(ops, setup, &tables, &steps, as_leaf, None)?;
    let of = |rows: &[f32], row: usize| rows[row * width..(row + 1) * width].to_vec();
    assert_same_bits(name, &of(&got[0], last), &of(&in_place[0], 17));
    Ok(())
}

fn run<O: Ops>(
    ops: &mut O,
    setup: &Setup,
    tables: &[Vec<BlockId>],
    steps: &[Vec<Rows<'_>>],
) -> Result<Vec<Vec<f32>>, OpsError> {
    run_with(ops, setup, tables, steps, |token| token, None)
}

/// Runs steps over an empty cache; every sequence's results, token by token. `data` names the token whose values a token has;
/// `moved` are blocks that the sequences' own are copied to before the last step, which reads those.
fn cache_shape(setup: &Setup) -> KvShape {
    KvShape {
        num_layers: NUM_LAYERS,
        num_blocks: NUM_BLOCKS as usize,
        block_size: setup.block_size,
        num_kv_heads: setup.params.num_kv_heads,
        head_dim: setup.params.head_dim,
        dtype: setup.dtype,
    }
}

fn run_with<O: Ops>(
    ops: &mut O,
    setup: &Setup,
    tables: &[Vec<BlockId>],
    steps: &[Vec<Rows<'_>>],
    data: impl Fn(usize) -> usize,
    moved: Option<&[Vec<BlockId>]>,
) -> Result<Vec<Vec<f32>>, OpsError> {
    let params = &setup.params;
    let mut cache = ops.kv_cache(&cache_shape(setup))?;
    let mut results = vec![Vec::new(); tables.len()];
    for (index, step) in steps.iter().enumerate() {
        let moved = moved.filter(|_| index + 1 == steps.len());
        if let Some(moved) = moved {
            let copies = tables.iter().flatten().copied();
            let copies: Vec<_> = copies.zip(moved.iter().flatten().copied()).collect();
            ops.copy_blocks(&mut cache, &copies)?;
        }
        let tables = moved.unwrap_or(tables);
        let mut widths = [params.num_heads, params.num_kv_heads, params.num_kv_heads];
        widths
            .iter_mut()
            .for_each(|width| *width *= params.head_dim);
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        let mut values: [Vec<f32>; 3] = Default::default();
        for (sequence, tokens, leaves) in step {
            for token in tokens.clone() {
                let leaf = (token + leaves.len()).checked_sub(tokens.end);
                positions.push(leaf.map_or(token as u32, |leaf| leaves[leaf]));
                let block = tables[*sequence][token / setup.block_size];
                slots.push(block * setup.block_size as u32 + (token % setup.block_size) as u32);
                for (part, (values, width)) in values.iter_mut().zip(widths).enumerate() {
                    let seed = (*sequence * 1000 + data(token) * 3 + part) as u64;
                    values.extend(random(seed, width));
                }
            }
        }
        let sequences: Vec<SequenceRows<'_>> = step
            .iter()
            .map(|(sequence, tokens, leaves)| SequenceRows {
                block_table: &tables[*sequence],
                num_rows: tokens.len(),
                context_len: tokens.end,
                leaves,
            })
            .collect();
        let batch = ForwardBatch {
            token_ids: &positions,
            positions: &positions,
            slot_mapping: &slots,
            sequences: &sequences,
            adapters: &[],
            steering: &[],
            logits_rows: &[],
            skip: None,
            local: None,
        };
        let out = attend(ops, setup, &mut cache, &batch, widths, &values)?;
        let mut out = out.chunks_exact(widths[0]);
        for (sequence, tokens, _) in step {
            results[*sequence].extend(out.by_ref().take(tokens.len()).flatten());
        }
    }
    Ok(results)
}

fn attend<O: Ops>(
    ops: &mut O,
    setup: &Setup,
    cache: &mut O::KvCache,
    batch: &ForwardBatch<'_>,
    widths: [usize; 3],
    values: &[Vec<f32>; 3],
) -> Result<Vec<f32>, OpsError> {
    let table = ops.rope_table(&RopeParams {
        rotary_dim: setup.rotary_dim,
        num_positions: 64,
        theta: 10_000.0,
        freq_factors: setup.freq_factors.as_deref(),
        linear_scale: 1.0,
        magnitude: setup.magnitude,
    })?;
    let norms = [40, 41].map(|seed| ops.vector(norm(seed, setup.params.head_dim)));
    let [q_norm, k_norm] = norms;
    let (q_norm, k_norm) = (q_norm?, k_norm?);
    let rotation = Rotation {
        table: &table,
        kind: setup.kind,
        q_norm: setup.has_norms.then_some(&q_norm),
        k_norm: setup.has_norms.then_some(&k_norm),
        eps: EPS,
    };
    let mut inputs = O::StepInputs::default();
    let shape = AttentionShape {
        num_heads: setup.params.num_heads,
        cache: cache_shape(setup),
    };
    ops.prepare(batch, &[], shape, &mut inputs)?;
    let step = Step {
        batch,
        groups: &[],
        inputs: &inputs,
        rows: RowSet::All,
    };
    let mut q = rows(ops, &values[0], widths[0])?;
    let mut k = rows(ops, &values[1], widths[1])?;
    let mut v = rows(ops, &values[2], widths[2])?;
    let qkv = [&mut q, &mut k, &mut v];
    ops.rotate_and_cache(step, &rotation, cache, LAYER, qkv)?;
    let mut out = O::Rows::default();
    // About as large as the tokens' scores.
    let sinks = ops.vector(random(42, setup.params.num_heads))?;
    let attention = LayerAttention {
        layer: LAYER,
        params: &setup.params,
        sinks: setup.has_sinks.then_some(&sinks),
    };
    ops.attention(step, &attention, cache, &q, &mut out)?;
    super::host(ops, &out)
}
