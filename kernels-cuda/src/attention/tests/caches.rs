use super::*;
use crate::CudaError;

fn shape(num_blocks: usize) -> KvShape {
    KvShape {
        num_layers: 2,
        num_blocks,
        block_size: 3,
        num_kv_heads: 2,
        head_dim: 20,
    }
}

/// Fills one layer's blocks with values that name their slots.
fn filled(gpu: &Gpu) -> KvCache {
    let mut world = World::new(case(2, 2, 20, 3), 6, vec![(0..6).collect()]);
    world.gpu = gpu.clone();
    world.cache = KvCache::new(gpu, shape(6)).unwrap();
    world.rope = RopeTable::new(gpu, 8, 32, 10_000.0, None, 1.0, 1.0).unwrap();
    world.run(&[(0, 0..18, &[])]);
    world.cache
}

fn block(gpu: &Gpu, cache: &KvCache, block: u32) -> Vec<u16> {
    let slots: Vec<u32> = (block * 3..block * 3 + 3).collect();
    let heads = (0..2).flat_map(|head| cache.read(gpu, LAYER, head, &slots).unwrap());
    heads.flatten().collect()
}

#[test]
fn blocks_are_copied_in_order() {
    let gpu = Gpu::for_tests();
    let mut cache = filled(&gpu);
    let before: Vec<_> = (0..6).map(|index| block(&gpu, &cache, index)).collect();
    assert_ne!(before[0], before[1]);
    // Block 2 becomes 0, 3 what 2 is by then; 0 is overwritten after it was read; 5 is written
    // twice.
    let copies = [(0, 2), (2, 3), (4, 0), (1, 5), (4, 5)];
    cache.copy_blocks(&gpu, &copies).unwrap();
    let after: Vec<_> = (0..6).map(|index| block(&gpu, &cache, index)).collect();
    for (index, source) in [4, 1, 0, 0, 4, 4].into_iter().enumerate() {
        assert!(
            after[index] == before[source],
            "block {index} is not what {source} was"
        );
    }
    cache.copy_blocks(&gpu, &[]).unwrap();
    let error = cache.copy_blocks(&gpu, &[(0, 6)]).unwrap_err();
    assert!(matches!(error, CudaError::Unsupported(_)), "{error}");
}

#[test]
fn a_cache_that_does_not_fit_says_how_much_it_wanted() {
    let gpu = Gpu::for_tests();
    let large = KvShape {
        num_blocks: 40_000_000,
        head_dim: 128,
        ..shape(1)
    };
    let Err(CudaError::OutOfMemory { wanted, .. }) = KvCache::new(&gpu, large) else {
        panic!("245 GiB fit");
    };
    assert_eq!(wanted, 2 * 2 * 40_000_000 * 2 * 3 * 128 * 2 / (1 << 20));
    let endless = KvShape {
        num_blocks: usize::MAX / 2,
        ..large
    };
    assert!(matches!(
        KvCache::new(&gpu, endless),
        Err(CudaError::OutOfMemory { .. })
    ));
    for (head_dim, block_size) in [(257, 16), (0, 16), (64, 0)] {
        let shape = KvShape {
            head_dim,
            block_size,
            ..shape(4)
        };
        assert!(matches!(
            KvCache::new(&gpu, shape),
            Err(CudaError::Unsupported(_))
        ));
    }
}

#[test]
fn steps_that_do_not_fit_are_refused() {
    let world = World::new(case(2, 2, 20, 3), 6, vec![(0..6).collect()]);
    let shape = world.shape();
    let rows = |block_table, num_rows, context_len, leaves| AttentionRows {
        block_table,
        num_rows,
        context_len,
        leaves,
    };
    let mut plan = AttentionPlan::default();
    for bad in [
        rows(&[0, 1], 1, 7, &[]),
        rows(&[0, 6], 1, 6, &[]),
        rows(&[0, 1], 7, 6, &[]),
        rows(&[0, 1], 1, 6, &[2, 3]),
        rows(&[0, 1], 2, 6, &[5]),
    ] {
        assert!(
            matches!(plan.plan(&shape, &[bad]), Err(CudaError::Unsupported(_))),
            "{bad:?}"
        );
    }
    plan.plan(&shape, &[rows(&[0, 1], 2, 6, &[4])]).unwrap();
    let good = StepInputs {
        token_ids: Some(&[1, 2]),
        positions: &[4, 4],
        slot_mapping: &[4, 17],
        logits_rows: &[1],
        num_rows: 2,
        num_logits_rows: 1,
    };
    let mut step = StepBuffers::default();
    step.upload(&world.gpu, &shape, &good, &plan).unwrap();
    for bad in [
        StepInputs {
            token_ids: Some(&[1]),
            ..good
        },
        StepInputs {
            positions: &[4],
            ..good
        },
        StepInputs {
            slot_mapping: &[4, 18],
            ..good
        },
        StepInputs {
            logits_rows: &[2],
            ..good
        },
        StepInputs {
            num_rows: 1,
            ..good
        },
        StepInputs {
            num_logits_rows: 0,
            ..good
        },
    ] {
        let refused = step.upload(&world.gpu, &shape, &bad, &plan);
        assert!(matches!(refused, Err(CudaError::Unsupported(_))), "{bad:?}");
    }
}

/// What the kernels of a step read is where the key says, padding included.
#[test]
fn parts_of_a_step_lie_where_its_key_says() {
    let world = World::new(case(2, 2, 20, 3), 6, vec![(0..6).collect()]);
    let (gpu, shape) = (&world.gpu, world.shape());
    let mut plan = AttentionPlan::default();
    let rows = AttentionRows {
        block_table: &[3, 1],
        num_rows: 2,
        context_len: 6,
        leaves: &[],
    };
    plan.plan(&shape, &[rows]).unwrap();
    let inputs = StepInputs {
        token_ids: Some(&[8, 9]),
        positions: &[4, 5],
        slot_mapping: &[4, 5],
        logits_rows: &[1],
        num_rows: 3,
        num_logits_rows: 2,
    };
    let mut step = StepBuffers::default();
    step.upload(gpu, &shape, &inputs, &plan).unwrap();
    let first = step.address(StepPart::TokenIds);
    let later = StepInputs {
        token_ids: None,
        positions: &[5, 6],
        ..inputs
    };
    step.upload(gpu, &shape, &later, &plan).unwrap();
    assert_eq!(step.address(StepPart::TokenIds), first, "buffers stay");
    let words = step.words(gpu);
    let part = |part, len: usize| {
        let start = (step.address(part) - first) as usize / 4;
        words[start..start + len].to_vec()
    };
    assert_eq!(part(StepPart::TokenIds, 3), [8, 9, 0], "left as they were");
    assert_eq!(part(StepPart::Positions, 3), [5, 6, 0]);
    assert_eq!(part(StepPart::SlotMapping, 3), [4, 5, u32::MAX]);
    assert_eq!(part(StepPart::LogitsRows, 2), [1, 0]);
    assert_eq!(part(StepPart::Rows, 12)[8..], [u32::MAX; 4], "no row");
    assert_eq!(part(StepPart::Tables, 2), [3, 1]);
    assert_eq!(step.key().num_thin, 1);
}
