use proptest::prelude::*;

use super::*;

const SPLIT: usize = 32;

fn shape(group: usize, block_size: usize) -> PlanShape {
    PlanShape {
        num_heads: 2 * group,
        num_kv_heads: 2,
        head_dim: 64,
        num_blocks: 1000,
        block_size,
        num_multiprocessors: 132,
    }
}

fn planned(shape: &PlanShape, sequences: &[AttentionRows<'_>]) -> AttentionPlan {
    let mut plan = AttentionPlan::with_split(SPLIT);
    plan.plan(shape, sequences).unwrap();
    plan
}

fn decode(block_table: &[u32], context_len: usize) -> AttentionRows<'_> {
    AttentionRows {
        block_table,
        num_rows: 1,
        context_len,
        leaves: &[],
    }
}

/// Every head of every row reads each of its splits once, from its own blocks, and each state is
/// written once.
fn check(plan: &AttentionPlan, shape: &PlanShape, sequences: &[AttentionRows<'_>]) {
    let group = shape.num_heads / shape.num_kv_heads;
    let owners: Vec<usize> = (0..sequences.len())
        .flat_map(|index| std::iter::repeat_n(index, sequences[index].num_rows))
        .collect();
    assert_eq!(plan.rows.len(), owners.len());
    let mut seen = std::collections::HashMap::new();
    for unit in plan.thin.iter().chain(&plan.wide) {
        let queries = unit.num_rows * unit.num_heads;
        let is_thin = plan.thin.contains(unit);
        assert!(queries as usize <= if is_thin { THIN_QUERIES } else { WIDE_QUERIES });
        assert!(!is_thin || unit.num_splits == 1);
        assert!(unit.is_folded <= (unit.first_split == 0));
        let splits = unit.first_split..unit.first_split + unit.num_splits;
        for index in unit.first_row..unit.first_row + unit.num_rows {
            let row = &plan.rows[index as usize];
            let own = &sequences[owners[row.row as usize]];
            let mut num_read = row.num_shared_splits(SPLIT);
            if unit.own != NONE {
                num_read = row.position as usize / SPLIT + 1;
                assert!(row.is_leaf && unit.num_rows == 1 && unit.limit == row.position + 1);
            }
            for split in splits.clone().filter(|split| (*split as usize) < num_read) {
                // The last token that it sees here.
                let end = (row.position as usize + 1).min((split as usize + 1) * SPLIT);
                assert!(end <= unit.limit as usize && unit.min_position <= row.position);
                let blocks =
                    split as usize * SPLIT / shape.block_size..(end - 1) / shape.block_size + 1;
                let table = &plan.tables[unit.table as usize..];
                assert_eq!(table[blocks.clone()], own.block_table[blocks]);
                let is_folded = split < row.num_folded && row.num_folded > 1;
                assert!(unit.is_folded || !is_folded);
                assert!(!unit.is_folded || split < row.num_folded);
                for head in unit.first_head..unit.first_head + unit.num_heads {
                    let times = seen.entry((row.row, head, split)).or_insert(0);
                    *times += 1;
                }
            }
        }
    }
    let mut num_states = 0;
    for row in &plan.rows {
        for head in 0..group as u32 {
            for split in 0..=row.position / SPLIT as u32 {
                assert_eq!(
                    seen.remove(&(row.row, head, split)),
                    Some(1),
                    "{row:?}, split {split}"
                );
            }
        }
        let states = row.position / SPLIT as u32 + 2 - row.num_folded;
        if states > 1 {
            assert_eq!(row.first_state, num_states);
            num_states += states;
        } else {
            assert_eq!(row.first_state, NONE);
        }
    }
    assert!(seen.is_empty());
    assert_eq!(plan.num_states, num_states as usize);
}

#[test]
fn forks_share_their_prompt_and_keep_their_own() {
    let shape = shape(4, 16);
    let prompt: Vec<u32> = (0..10).collect();
    let tables: Vec<Vec<u32>> = (0..8)
        .map(|fork| {
            prompt
                .iter()
                .copied()
                .chain([100 + fork, 200 + fork])
                .collect()
        })
        .collect();
    let sequences: Vec<_> = tables.iter().map(|table| decode(table, 180)).collect();
    let plan = planned(&shape, &sequences);
    check(&plan, &shape, &sequences);
    // Five splits of the prompt for 8 rows of 4 heads; the rest of each fork is one thin unit.
    assert_eq!(plan.wide.len(), 5);
    assert!(plan.wide.iter().all(|unit| unit.num_rows == 8));
    assert_eq!(plan.thin.len(), 8);
    assert_eq!(plan.num_states, 8 * 6);
}

#[test]
fn nested_forks_share_what_they_have_in_common() {
    let shape = shape(2, 32);
    let tables: [&[u32]; 4] = [&[1, 2, 3, 10], &[1, 2, 3, 11], &[1, 2, 20], &[1, 2, 21]];
    let sequences: Vec<_> = tables
        .iter()
        .map(|table| decode(table, table.len() * 32))
        .collect();
    let plan = planned(&shape, &sequences);
    check(&plan, &shape, &sequences);
    let mut rows: Vec<_> = plan
        .thin
        .iter()
        .map(|unit| (unit.first_split, unit.num_rows))
        .collect();
    rows.sort_unstable();
    assert_eq!(
        rows,
        [(0, 4), (1, 4), (2, 1), (2, 1), (2, 2), (3, 1), (3, 1)]
    );
}

#[test]
fn a_prompt_that_fills_the_device_merges_in_its_units() {
    let shape = shape(4, 16);
    let table: Vec<u32> = (0..128).collect();
    let sequences = [AttentionRows {
        block_table: &table,
        num_rows: 2048,
        context_len: 2048,
        leaves: &[],
    }];
    let plan = planned(&shape, &sequences);
    check(&plan, &shape, &sequences);
    assert_eq!((plan.wide.len(), plan.num_states), (128, 0));
    assert!(
        plan.wide
            .is_sorted_by_key(|unit| std::cmp::Reverse(unit.num_splits))
    );
    // Few rows at the end of a long context: many units instead.
    let sequences = [AttentionRows {
        num_rows: 20,
        ..sequences[0]
    }];
    let plan = planned(&shape, &sequences);
    check(&plan, &shape, &sequences);
    assert!(plan.wide.len() >= 64, "{}", plan.wide.len());
}

#[test]
fn states_that_would_take_too_much_memory_are_folded() {
    let mut shape = shape(4, 16);
    (shape.num_heads, shape.num_blocks) = (256, 10_000);
    shape.num_kv_heads = 64;
    let table: Vec<u32> = (0..2000).collect();
    let sequences = [AttentionRows {
        block_table: &table,
        num_rows: 17,
        context_len: 32_000,
        leaves: &[],
    }];
    let plan = planned(&shape, &sequences);
    check(&plan, &shape, &sequences);
    assert_eq!((plan.num_states, plan.wide.len()), (0, 2));
}

/// Sequences made of a few blocks that many of them share.
fn any_sequences() -> impl Strategy<Value = Vec<(Vec<u32>, usize, usize, Vec<u32>)>> {
    let sequence = (
        1_usize..12,
        any::<u32>(),
        0_usize..16,
        1_usize..90,
        0_usize..5,
        any::<u32>(),
    );
    let of = |(num_blocks, branch, spare, num_rows, num_leaves, seed): (
        usize,
        u32,
        usize,
        usize,
        usize,
        u32,
    )| {
        // Prefixes of block 0, 1, 2, … with a branch now and then.
        let table = (0..num_blocks as u32).map(|at| {
            let branch = if at < 3 { 0 } else { branch % 3 };
            at + 20 * branch + if at == 11 { branch * 7 } else { 0 }
        });
        let table: Vec<u32> = table.collect();
        let context_len = (num_blocks * 16).saturating_sub(spare).max(1);
        let num_rows = num_rows.min(context_len);
        let num_leaves = num_leaves.min(num_rows).min(context_len - 1);
        let others = (context_len - num_leaves) as u32;
        let leaves = (0..num_leaves as u32).map(|leaf| seed.wrapping_add(leaf * 31) % others);
        (table, context_len, num_rows, leaves.collect())
    };
    proptest::collection::vec(sequence.prop_map(of), 1..12)
}

proptest! {
    #[test]
    fn any_step_is_covered_once(
        sequences in any_sequences(),
        group in 1_usize..40,
        block_size in prop::sample::select(vec![16_usize, 7, 64, 1]),
        num_multiprocessors in prop::sample::select(vec![1_usize, 132, 5000]),
    ) {
        // Tables are for blocks of 16 tokens: others get as many blocks as they need.
        let tables: Vec<Vec<u32>> = sequences
            .iter()
            .map(|(table, context_len, ..)| {
                let num_blocks = context_len.div_ceil(block_size);
                (0..num_blocks).map(|at| table[at * block_size / 16] + 40 * (at * block_size % 16) as u32).collect()
            })
            .collect();
        let rows: Vec<_> = sequences
            .iter()
            .zip(&tables)
            .map(|((_, context_len, num_rows, leaves), table)| AttentionRows {
                block_table: table,
                num_rows: *num_rows,
                context_len: *context_len,
                leaves,
            })
            .collect();
        let shape = PlanShape { num_multiprocessors, ..shape(group, block_size) };
        check(&planned(&shape, &rows), &shape, &rows);
    }
}
