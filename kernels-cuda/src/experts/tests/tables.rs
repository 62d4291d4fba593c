//! Rows sorted by expert.

use proptest::prelude::*;

use super::*;
use crate::experts::ExpertCounts;

/// Fails unless the tables say what the processor's routes say.
fn check_tables(gpu: &Gpu, routing: &Routing, routes: &Routes) {
    let (num_experts, num_choices) = (routes.num_experts(), routes.experts().len());
    let buffers = &routing.buffers;
    let counts = values(gpu, &buffers.counts, num_experts);
    let sorted = values(gpu, &buffers.sorted_rows, routing.capacity());
    let slots = values(gpu, &buffers.slots, num_choices);
    let tiles = values(gpu, &buffers.tiles, 4 * routing.max_tiles());
    let height = routing.tile_height() as u32;
    let mut tiles = tiles.chunks(4);
    let mut first = 0;
    for (expert, count) in counts.iter().enumerate() {
        let range = routes.rows_of(expert);
        assert_eq!(*count as usize, range.len(), "rows of expert {expert}");
        let (own, rest) = sorted[first..].split_at(range.len());
        assert_eq!(
            own,
            &routes.rows()[range.clone()],
            "rows of expert {expert}"
        );
        let padded = range.len().next_multiple_of(8);
        assert!(
            rest[..padded - range.len()]
                .iter()
                .all(|row| *row == u32::MAX)
        );
        for (index, slot) in routes.slots().iter().enumerate() {
            if range.contains(&(*slot as usize)) {
                let place = first + *slot as usize - range.start;
                assert_eq!(slots[index] as usize, place, "choice {index}");
            }
        }
        for done in (0..*count).step_by(height as usize) {
            let tile = [
                expert as u32,
                first as u32 + done,
                height.min(count - done),
                0,
            ];
            assert_eq!(tiles.next(), Some(&tile[..]), "tiles of expert {expert}");
        }
        first += padded;
    }
    assert!(sorted[first..].iter().all(|row| *row == u32::MAX));
    assert!(tiles.all(|tile| tile == [0, 0, 0, 0]));
}

#[test]
fn rows_are_sorted_in_tiles_of_any_height() {
    let gpu = Gpu::for_tests();
    // Tables that longer ones were in before.
    let mut routing = Routing::default();
    // More choices than a block has threads; many for few experts; few for many; more experts than
    // threads.
    let sizes = [
        (150, 2, 2),
        (70, 16, 4),
        (2, 64, 3),
        (8, 300, 32),
        (1, 1, 1),
        (9, 4, 1),
    ];
    for (num_rows, num_experts, chosen) in sizes {
        let logits = random(num_rows as u64, num_rows * num_experts);
        let rows = rows_of(&gpu, &logits, num_experts);
        let gating = plain(chosen);
        let routes = expected(&gating, &logits, num_experts, None);
        for height in [8, 16, 32, 64, 128] {
            let params = RouteParams::new(&gating, height);
            route(&gpu, &params, &rows, &mut routing).expect("launch");
            check_tables(&gpu, &routing, &routes);
        }
    }
}

#[test]
fn all_rows_may_go_to_one_expert() {
    let gpu = Gpu::for_tests();
    for favourite in [0, 3, 5] {
        let mut logits = vec![0.0; 37 * 6];
        logits
            .iter_mut()
            .skip(favourite)
            .step_by(6)
            .for_each(|x| *x = 4.0);
        let routing = routed(&gpu, &plain(1), &logits, 6, None, 16);
        check_tables(&gpu, &routing, &expected(&plain(1), &logits, 6, None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_choices_are_sorted(
        seed in 0_u64..1 << 40,
        num_rows in 1_usize..40,
        num_experts in 1_usize..20,
        chosen in 1_usize..6,
        height in prop::sample::select(vec![8_usize, 16, 32, 64, 128]),
    ) {
        let gpu = Gpu::for_tests();
        let gating = plain(chosen.min(num_experts));
        let logits = distinct_logits(seed, num_rows, num_experts);
        let routing = routed(&gpu, &gating, &logits, num_experts, None, height);
        check_tables(&gpu, &routing, &expected(&gating, &logits, num_experts, None));
    }
}

#[test]
fn a_graph_routes_what_its_buffers_hold() {
    let gpu = Gpu::for_tests();
    let num_experts = 6;
    let gating = plain(2);
    for num_rows in [3, 9] {
        let first = distinct_logits(1, num_rows, num_experts);
        let mut logits = rows_of(&gpu, &first, num_experts);
        let mut routing = Routing::default();
        routing
            .reserve(&gpu, num_rows, num_experts, 2)
            .expect("memory");
        let growths = gpu.num_growths();
        let params = RouteParams::new(&gating, 8);
        let graph = gpu.capture(|| route(&gpu, &params, &logits, &mut routing));
        let graph = graph.expect("captured");
        assert_eq!(gpu.num_growths(), growths);
        for seed in [1, 2] {
            let values = distinct_logits(seed, num_rows, num_experts);
            let buffer = logits.buffer_mut().expect("shaped");
            gpu.write(buffer, 0, &values).expect("fits");
            gpu.replay(&graph).expect("launch");
            check_tables(
                &gpu,
                &routing,
                &expected(&gating, &values, num_experts, None),
            );
        }
    }
}

#[test]
fn counts_grow_until_they_are_taken() {
    let gpu = Gpu::for_tests();
    let num_experts = 5;
    let gating = plain(2);
    for num_rows in [7, 11] {
        let mut counts = ExpertCounts::new(&gpu, 2, num_experts).expect("memory");
        let mut totals = vec![0_u64; 2 * num_experts];
        for (seed, layer) in [(1, 1), (20, 0), (40, 1)] {
            let logits = distinct_logits(seed, num_rows, num_experts);
            let mut routing = Routing::default();
            let mut params = RouteParams::new(&gating, 8);
            let rows = rows_of(&gpu, &logits, num_experts);
            // Once with the route, once after it.
            params.counted = Some((&counts, layer));
            route(&gpu, &params, &rows, &mut routing).expect("launch");
            counts.add(&gpu, &routing, layer).expect("launch");
            let routes = expected(&gating, &logits, num_experts, None);
            for expert in 0..num_experts {
                let num_rows = routes.rows_of(expert).len() as u64;
                totals[layer * num_experts + expert] += 2 * num_rows;
            }
        }
        assert_eq!(counts.take(&gpu), Ok(totals));
        assert_eq!(counts.take(&gpu), Ok(vec![0; 2 * num_experts]));
    }
}
