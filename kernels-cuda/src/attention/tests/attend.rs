use super::*;

/// Blocks in order, or scattered.
fn tables(lens: &[usize], block_size: usize, num_blocks: u32, is_scattered: bool) -> Vec<Vec<u32>> {
    let mut next = 0;
    let mut table = |len: &usize| -> Vec<u32> {
        let blocks = next..next + len.div_ceil(block_size) as u32;
        next = blocks.end;
        assert!(next <= num_blocks);
        let place = |block: u32| match is_scattered {
            true => (block * 37 + 5) % num_blocks,
            false => block,
        };
        blocks.map(place).collect()
    };
    lens.iter().map(&mut table).collect()
}

const LENS: [usize; 3] = [75, 1, 40];
/// Coprime to 37.
const NUM_BLOCKS: usize = 140;

fn cases() -> Vec<Case> {
    let mut all = vec![
        case(2, 2, 32, 16),
        case(6, 2, 48, 7),
        case(7, 1, 64, 32),
        case(20, 1, 128, 1),
        case(3, 1, 96, 16),
        case(2, 1, 160, 16),
        case(2, 1, 256, 32),
        case(2, 1, 30, 16),
    ];
    all[0].params.sliding_window = Some(5);
    all[1].params.softcap = Some(2.0);
    all[2].params.sliding_window = Some(37);
    all[2].params.softcap = Some(5.0);
    all
}

/// Prompts at once, alone, in pieces, from other blocks, in units of any size: near the definition,
/// and the same bits.
fn check(case: Case) {
    let whole: Vec<StepRows<'_>> = LENS
        .iter()
        .enumerate()
        .map(|(sequence, len)| (sequence, 0..*len, &[][..]))
        .collect();
    let own = |is_scattered| tables(&LENS, case.block_size, NUM_BLOCKS as u32, is_scattered);
    let mut world = World::new(case, NUM_BLOCKS, own(false));
    let all = world.run(&whole);
    let context = format!("{case:?}");
    assert_near(&all, &world.expected(&whole), &context);
    let first_row = |sequence: usize| LENS[..sequence].iter().sum::<usize>();
    for (num_multiprocessors, size) in [(132, 7), (1, 75), (10_000, 75), (132, 1)] {
        let case = Case {
            num_multiprocessors,
            ..case
        };
        let mut world = World::new(case, NUM_BLOCKS, own(true));
        let mut got = vec![Vec::new(); all.len()];
        for start in (0..75).step_by(size) {
            let rows = pieces(start, size);
            world.prepare(&rows, 0);
            world.launch();
            rows_into(&rows, &world, &mut got, first_row);
        }
        assert_same_bits(&got, &all, &format!("pieces of {size}: {case:?}"));
    }
    for (sequence, rows) in whole.iter().enumerate() {
        let mut world = World::new(case, NUM_BLOCKS, own(true));
        let got = world.run(std::slice::from_ref(rows));
        let expected = &all[first_row(sequence)..][..LENS[sequence]];
        assert_same_bits(&got, expected, &format!("alone: {context}"));
    }
}

fn pieces(start: usize, size: usize) -> Vec<StepRows<'static>> {
    let of = |(sequence, len): (usize, &usize)| {
        let end = (*len).min(start + size);
        (start < end).then_some((sequence, start..end, &[][..]))
    };
    LENS.iter().enumerate().filter_map(of).collect()
}

fn rows_into(
    rows: &[StepRows<'_>],
    world: &World,
    all: &mut [Vec<f32>],
    first_row: impl Fn(usize) -> usize,
) {
    let out = world.read(3);
    let mut out = out.chunks(world.rows[3].width());
    for (sequence, tokens, _) in rows {
        for token in tokens.clone() {
            all[first_row(*sequence) + token] = out.next().unwrap().to_vec();
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_step_heads_of_32() {
    check(cases()[0]);
}

#[test]
fn a_row_has_the_same_bits_in_any_step_heads_of_48_and_blocks_of_7() {
    check(cases()[1]);
}

#[test]
fn a_row_has_the_same_bits_in_any_step_groups_of_7() {
    check(cases()[2]);
}

#[test]
fn a_row_has_the_same_bits_in_any_step_groups_of_20_and_blocks_of_1() {
    check(cases()[3]);
}

#[test]
fn a_row_has_the_same_bits_in_any_step_other_dims() {
    for case in &cases()[4..] {
        check(*case);
    }
}

/// Splits as they are served: contexts of several.
#[test]
fn splits_of_the_real_size_are_merged() {
    let case = Case {
        split_tokens: SPLIT_TOKENS,
        ..case(4, 1, 32, 16)
    };
    const LEN: usize = 2 * SPLIT_TOKENS + 70;
    let last = (0, LEN - 5..LEN, &[][..]);
    let own = |is_scattered| tables(&[LEN], 16, 40, is_scattered);
    // All of the context in one step, then its last tokens again, together and one by one.
    let mut world = World::new(case, 40, own(true));
    let all = world.run(&[(0, 0..LEN, &[])]);
    let tail = &all[LEN - 5..];
    let again = world.run(std::slice::from_ref(&last));
    assert_near(&again, &world.expected(&[last]), "the last five");
    assert_same_bits(&again, tail, "five rows");
    for (index, token) in (LEN - 5..LEN).enumerate() {
        let one = world.run(&[(0, token..token + 1, &[])]);
        assert_same_bits(&one, &tail[index..=index], "one row");
    }
    let folding = Case {
        num_multiprocessors: 1,
        ..case
    };
    let mut world = World::new(folding, 40, own(false));
    assert_same_bits(&world.run(&[(0, 0..LEN, &[])]), &all, "merged by its unit");
}

/// Sequences with the first 80 (and some 112) tokens in common, then their own.
fn forks(case: Case) -> World {
    let own = |first: u32| first..first + 4;
    let prompt: Vec<u32> = (100..105).collect();
    let branch: Vec<u32> = (200..202).collect();
    let table = |has_branch: bool, first: u32| -> Vec<u32> {
        let branch = branch.iter().copied().filter(|_| has_branch);
        prompt
            .iter()
            .copied()
            .chain(branch)
            .chain(own(first))
            .collect()
    };
    let tables = vec![
        table(false, 0),
        table(true, 4),
        table(true, 8),
        table(false, 12),
        table(true, 16),
        (20..31).collect(),
    ];
    let mut world = World::new(case, 210, tables);
    world.names = |sequence, token| {
        let is_common = token < 80 || (token < 112 && [1, 2, 4].contains(&sequence));
        let owner = match sequence {
            5 => 5,
            _ if is_common => usize::from(token >= 80),
            _ => 10 + sequence,
        };
        (owner * 10_000 + token) as u64
    };
    world
}

const FORK_LENS: [usize; 6] = [90, 115, 130, 144, 120, 176];

/// Forks that decode together, one at a time, or several rows each: the same bits.
#[test]
fn forks_read_their_common_tokens_together() {
    let mut windowed = case(4, 2, 32, 16);
    windowed.params.sliding_window = Some(70);
    for case in [case(4, 2, 32, 16), case(20, 1, 32, 16), windowed] {
        let mut world = forks(case);
        for (sequence, len) in FORK_LENS.into_iter().enumerate() {
            world.run(&[(sequence, 0..len, &[])]);
        }
        for num_rows in [1, 6] {
            let rows: Vec<StepRows<'_>> = FORK_LENS
                .iter()
                .enumerate()
                .map(|(sequence, len)| (sequence, len - num_rows..*len, &[][..]))
                .collect();
            let together = world.run(&rows);
            let context = format!("{num_rows} rows each: {case:?}");
            assert_near(&together, &world.expected(&rows), &context);
            if num_rows == 1 {
                let units = world.plan.thin.iter().chain(&world.plan.wide);
                let most = units.map(|unit| unit.num_rows).max();
                assert_eq!(most, Some(5), "all forks read the prompt together");
            }
            for (rows, together) in rows.iter().zip(together.chunks(num_rows)) {
                let alone = world.run(std::slice::from_ref(rows));
                assert_same_bits(&alone, together, &context);
            }
        }
    }
}

/// A leaf is attended as if its token were that of its position, beside other leaves and rows.
#[test]
fn leaves_stand_in_for_rows() {
    let mut windowed = case(2, 1, 64, 16);
    windowed.params.sliding_window = Some(40);
    for case in [case(2, 1, 64, 16), case(20, 1, 32, 7), windowed] {
        // Tokens 0..95 are there; then two rows, and leaves beside the last token and the rows.
        let own: Vec<u32> = (0..20).collect();
        let mut world = World::new(case, 40, vec![own, (20..40).collect()]);
        world.run(&[(0, 0..95, &[])]);
        let leaves = [94, 95, 95, 96, 96, 96];
        let rows = [(0, 95..103, &leaves[..])];
        let got = world.run(&rows);
        let context = format!("{case:?}");
        assert_near(&got, &world.expected(&rows), &context);
        for (index, position) in leaves.into_iter().enumerate() {
            // The same tokens, with the leaf's in its place.
            let mut in_place = World::new(case, 40, world.tables.clone());
            in_place.names = NAMES[index];
            let position = position as usize;
            let expected = in_place.run(&[(1, 0..position + 1, &[])]);
            assert_same_bits(&got[2 + index..3 + index], &expected[position..], &context);
        }
        // Alone, and in the first split.
        let alone = world.run(&[(0, 96..97, &[3])]);
        let mut in_place = World::new(case, 40, world.tables.clone());
        in_place.names = |_, token| if token == 3 { 96 } else { token as u64 };
        assert_same_bits(&alone, &in_place.run(&[(1, 0..4, &[])])[3..], &context);
    }
}

/// The tokens of sequence 0 with a leaf's in its position.
const NAMES: [fn(usize, usize) -> u64; 6] = [
    |_, token| if token == 94 { 97 } else { token as u64 },
    |_, token| if token == 95 { 98 } else { token as u64 },
    |_, token| if token == 95 { 99 } else { token as u64 },
    |_, token| if token == 96 { 100 } else { token as u64 },
    |_, token| if token == 96 { 101 } else { token as u64 },
    |_, token| if token == 96 { 102 } else { token as u64 },
];

/// What another sequence left in a block, were it not even numbers, changes nothing.
#[test]
fn what_lies_past_the_context_changes_nothing() {
    let case = case(2, 1, 32, 16);
    let mut clean = World::new(case, 4, vec![(0..4).collect(); 2]);
    let expected = clean.run(&[(0, 0..45, &[])]);
    let mut stale = World::new(case, 4, vec![(0..4).collect(); 2]);
    stale.prepare(&[(1, 0..64, &[])], 0);
    for (part, value) in [(1, f32::NAN), (2, f32::INFINITY)] {
        let rows = &mut stale.rows[part];
        let values = vec![value; rows.num_rows() * rows.width()];
        stale
            .gpu
            .write(rows.buffer_mut().unwrap(), 0, &values)
            .unwrap();
    }
    stale.launch();
    assert_same_bits(&stale.run(&[(0, 0..45, &[])]), &expected, "over bad tokens");
    assert_same_bits(&stale.run(&[(0, 44..45, &[])]), &expected[44..], "one row");
}

/// A graph's launches serve every step of the same key.
#[test]
fn a_graph_serves_other_steps() {
    let case = case(2, 1, 32, 16);
    let lens = [70, 33];
    let mut world = World::new(case, 40, tables(&lens, 16, 40, true));
    world.run(&[(0, 0..60, &[]), (1, 0..31, &[])]);
    let steps: [Vec<StepRows<'_>>; 3] = [
        vec![(0, 60..61, &[]), (1, 31..32, &[])],
        vec![(0, 61..62, &[]), (1, 32..33, &[])],
        vec![(0, 62..63, &[])],
    ];
    let mut expected = World::new(case, 40, tables(&lens, 16, 40, false));
    expected.run(&[(0, 0..60, &[]), (1, 0..31, &[])]);
    world.prepare(&steps[0], 1);
    let key = *world.step.key();
    let growths = world.gpu.num_growths();
    // Buffers are there: what is captured does not allocate.
    world.rows[3].reshape(&world.gpu, 3, 64).unwrap();
    let gpu = world.gpu.clone();
    let graph = gpu
        .capture(|| {
            world.launch();
            Ok(())
        })
        .unwrap();
    for (index, step) in steps.iter().enumerate() {
        world.prepare(step, 3 - step.len());
        // The last step has fewer units: a smaller graph would do, a larger one does too.
        if index < 2 {
            assert_eq!(*world.step.key(), key, "step {index}");
        }
        if *world.step.key() == key {
            gpu.replay(&graph).unwrap();
        } else {
            world.launch();
        }
        let got = world.read(3);
        let got: Vec<Vec<f32>> = got
            .chunks(64)
            .take(step.len())
            .map(<[f32]>::to_vec)
            .collect();
        assert_same_bits(&got, &expected.run(step), &format!("step {index}"));
    }
    assert_eq!(gpu.num_growths(), growths, "no buffer grew");
}

/// Splits that lie before a row's window, in a unit that merges them for rows that see them.
#[test]
fn splits_before_the_window_change_nothing() {
    let mut all = Vec::new();
    for num_multiprocessors in [1, 10_000] {
        let mut case = Case {
            num_multiprocessors,
            ..case(2, 2, 32, 16)
        };
        case.params.sliding_window = Some(5);
        let mut world = World::new(case, 20, tables(&[140], 16, 20, true));
        let rows = [(0, 0..140, &[][..])];
        all.push(world.run(&rows));
        assert_near(&all[0], &world.expected(&rows), "140 tokens");
    }
    assert_same_bits(&all[1], &all[0], "merged elsewhere");
}

/// A token whose values are not finite is seen by those after it alone.
#[test]
fn a_bad_token_changes_no_earlier_row() {
    let case = case(2, 1, 32, 16);
    let rows = [(0, 0..45, &[][..])];
    let mut world = World::new(case, 4, vec![(0..4).collect()]);
    let expected = world.run(&rows);
    world.prepare(&rows, 0);
    for (part, value) in [(1, f32::NAN), (2, f32::INFINITY)] {
        let rows = &mut world.rows[part];
        let (first, bad) = (40 * rows.width(), vec![value; rows.width()]);
        let buffer = rows.buffer_mut().unwrap();
        world.gpu.write(buffer, first, &bad).unwrap();
    }
    world.launch();
    let got: Vec<Vec<f32>> = world.read(3).chunks(64).map(<[f32]>::to_vec).collect();
    assert_same_bits(&got[..40], &expected[..40], "the rows before");
    assert!(got[40].iter().all(|x| x.is_nan()), "its own row tells");
}
