//! Which experts rows go to.

use ponder_kernels::{GroupScore, Groups};

use super::*;
use crate::CudaError;
use crate::rows::testing::assert_close;

struct Case {
    family: &'static str,
    num_experts: usize,
    gating: Gating,
    has_bias: bool,
}

/// The table in `ponder_kernels::gating`.
fn cases() -> Vec<Case> {
    let case = |family, num_experts, gating| Case {
        family,
        num_experts,
        gating,
        has_bias: false,
    };
    let unnormalised = |chosen| Gating {
        normalise: false,
        ..plain(chosen)
    };
    let groups = |count, num_chosen, score| {
        Some(Groups {
            count,
            num_chosen,
            score,
        })
    };
    vec![
        case("OLMoE", 64, unnormalised(8)),
        case("Qwen3-MoE", 128, plain(8)),
        case("Mixtral", 8, plain(2)),
        case("one of few", 3, plain(1)),
        case("all of them", 5, plain(5)),
        case("DeepSeek-V2-Lite", 66, unnormalised(6)),
        case(
            "DeepSeek-V2",
            160,
            Gating {
                scale: 16.0,
                groups: groups(8, 3, GroupScore::Best),
                ..unnormalised(6)
            },
        ),
        Case {
            has_bias: true,
            ..case(
                "DeepSeek-V3",
                256,
                Gating {
                    scoring: Scoring::Sigmoid,
                    scale: 2.5,
                    groups: groups(8, 4, GroupScore::BestTwo),
                    ..plain(8)
                },
            )
        },
        case(
            "more groups than lanes",
            80,
            Gating {
                groups: groups(40, 7, GroupScore::BestTwo),
                ..plain(9)
            },
        ),
        case(
            "a group an expert",
            64,
            Gating {
                groups: groups(64, 40, GroupScore::Best),
                ..plain(36)
            },
        ),
    ]
}

#[test]
fn every_family_routes_as_on_the_processor() {
    let gpu = Gpu::for_tests();
    for case in cases() {
        let Case {
            family,
            num_experts,
            gating,
            has_bias,
        } = case;
        // More than one block takes at once; rows alone go through the other kernel.
        let num_rows = 9;
        let logits = distinct_logits(5, num_rows, num_experts);
        // Biases that change choices, but make no two scores equal.
        let bias: Vec<f32> = random(9, num_experts).iter().map(|x| 0.3 * x).collect();
        let bias = has_bias.then_some(&bias[..]);
        let routing = routed(&gpu, &gating, &logits, num_experts, bias, 8);
        let routes = expected(&gating, &logits, num_experts, bias);
        let (experts, gates) = routing.read(&gpu).expect("read");
        assert_eq!(experts, routes.experts(), "{family}");
        assert_close(&gates, routes.gates().iter().map(|x| f64::from(*x)), 2e-6);
        let chosen = gating.num_experts_per_tok;
        for row in 0..num_rows {
            let alone = &logits[row * num_experts..][..num_experts];
            let alone = routed(&gpu, &gating, alone, num_experts, bias, 8);
            let (own, of_own) = alone.read(&gpu).expect("read");
            assert_eq!(own, &experts[row * chosen..][..chosen], "{family}");
            assert_eq!(of_own, &gates[row * chosen..][..chosen], "{family}");
        }
    }
}

#[test]
fn of_equal_scores_the_lower_expert_wins() {
    let gpu = Gpu::for_tests();
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let gating = Gating {
            scoring,
            ..plain(6)
        };
        let mut logits = vec![0.25; 40];
        (logits[37], logits[33], logits[2]) = (1.0, 1.0, -1.0);
        let routing = routed(&gpu, &gating, &logits, 40, None, 8);
        let (experts, _) = routing.read(&gpu).expect("read");
        assert_eq!(experts, [33, 37, 0, 1, 3, 4]);
        let routes = expected(&gating, &logits, 40, None);
        assert_eq!(experts, routes.experts());
    }
}

#[test]
fn equal_groups_give_way_to_lower_ones() {
    let gpu = Gpu::for_tests();
    let groups = Groups {
        count: 4,
        num_chosen: 2,
        score: GroupScore::BestTwo,
    };
    let gating = Gating {
        groups: Some(groups),
        ..plain(4)
    };
    let logits = [0.5; 16];
    let routing = routed(&gpu, &gating, &logits, 16, None, 8);
    let (experts, _) = routing.read(&gpu).expect("read");
    assert_eq!(experts, [0, 1, 2, 3]);
    assert_eq!(experts, expected(&gating, &logits, 16, None).experts());
}

#[test]
fn logits_that_are_not_numbers_still_choose_different_experts() {
    let gpu = Gpu::for_tests();
    let groups = Groups {
        count: 4,
        num_chosen: 2,
        score: GroupScore::Best,
    };
    for groups in [None, Some(groups)] {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            let gating = Gating {
                scoring,
                groups,
                ..plain(5)
            };
            let mut logits = random(1, 2 * 36);
            // All of them, or nearly all.
            for numbers in [0..0, 3..4] {
                logits[..36].fill(f32::NAN);
                logits[numbers].fill(0.5);
                let routing = routed(&gpu, &gating, &logits, 36, None, 8);
                let (mut experts, _) = routing.read(&gpu).expect("read");
                let row = expected(&gating, &logits[36..], 36, None);
                assert_eq!(&experts[5..], row.experts());
                experts.truncate(5);
                experts.sort_unstable();
                experts.dedup();
                assert!(experts.len() == 5 && experts.iter().all(|expert| *expert < 36));
            }
        }
    }
}

#[test]
fn rows_that_are_not_there_go_nowhere() {
    let gpu = Gpu::for_tests();
    let num_experts = 10;
    for num_rows in [6, 12] {
        let logits = distinct_logits(2, num_rows, num_experts);
        let counts = gpu.upload(&[99, 4_u32]).expect("memory");
        let live = LiveRows {
            counts: &counts,
            index: 1,
        };
        let gating = plain(3);
        let params = RouteParams {
            live: Some(live),
            ..RouteParams::new(&gating, 8)
        };
        let mut routing = Routing::default();
        let rows = rows_of(&gpu, &logits, num_experts);
        route(&gpu, &params, &rows, &mut routing).expect("launch");
        let (experts, gates) = routing.read(&gpu).expect("read");
        let routes = expected(&gating, &logits[..4 * num_experts], num_experts, None);
        assert_eq!(&experts[..12], routes.experts());
        assert!(experts[12..].iter().all(|expert| *expert == u32::MAX));
        assert!(gates[12..].iter().all(|gate| *gate == 0.0));
        let counts = values(&gpu, &routing.buffers.counts, num_experts);
        let of_experts = (0..num_experts).map(|expert| routes.rows_of(expert).len() as u32);
        assert_eq!(counts, of_experts.collect::<Vec<_>>());
        let slots = values(&gpu, &routing.buffers.slots, 3 * num_rows);
        assert!(slots[12..].iter().all(|slot| *slot == u32::MAX));
    }
}

#[test]
fn too_many_experts_are_an_error() {
    let gpu = Gpu::for_tests();
    let logits = rows_of(&gpu, &[0.0; 4097], 4097);
    let mut routing = Routing::default();
    let gating = plain(2);
    let result = route(&gpu, &RouteParams::new(&gating, 8), &logits, &mut routing);
    assert!(
        matches!(result, Err(CudaError::Unsupported(_))),
        "{result:?}"
    );
}
