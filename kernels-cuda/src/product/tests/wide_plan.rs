//! Plans of wide products, on paper.

use ponder_kernels::DType;

use super::*;
use crate::product::layout::TYPES;
use crate::product::plan::splits;

/// Multiprocessors and shared memory of an H100.
fn device() -> Properties {
    Properties {
        name: "H100".to_owned(),
        major: 9,
        minor: 0,
        num_multiprocessors: 132,
        max_shared_bytes: 227 * 1024,
        total_memory: 80 << 30,
    }
}

fn job(out_features: usize, in_features: usize) -> WideJob {
    WideJob {
        out_features,
        num_parts: splits(out_features, in_features).num_parts,
    }
}

fn shape(jobs: &[WideJob], dtype: DType, in_features: usize, num_rows: usize) -> WideShape<'_> {
    WideShape {
        layout: Layout::of(dtype).unwrap(),
        in_features,
        jobs,
        is_pair: false,
        rows: RowTiles::All { num_rows },
    }
}

#[test]
fn every_kernel_has_three_stages_for_every_type() {
    let packed = TYPES.into_iter().filter(|dtype| *dtype != DType::F32);
    for dtype in packed {
        for is_pair in [false, true] {
            let jobs = [job(14336, 4096)];
            let shape = WideShape {
                is_pair,
                ..shape(&jobs, dtype, 4096, 2048)
            };
            for kind in Kind::ALL {
                let Some(plan) = shape.plan_with(kind, &device()) else {
                    assert!(is_pair && kind.m_blocks() == 1, "{dtype:?} {kind:?}");
                    continue;
                };
                assert!(plan.launch.num_stages >= 3, "{dtype:?} {kind:?}");
                assert!(plan.shared_bytes <= device().max_shared_bytes);
            }
        }
    }
}

#[test]
fn items_of_jobs_follow_each_other() {
    let jobs = [job(4096, 4096), job(1024, 4096), job(1000, 4096)];
    let shape = shape(&jobs, DType::BF16, 4096, 300);
    let plan = shape.plan_with(Kind::High, &device()).unwrap();
    assert_eq!(plan.launch.first_item, [0, 64, 80, 96]);
    let plan = shape.plan_with(Kind::FlatLow, &device()).unwrap();
    let parts = jobs.map(|job| job.num_parts as u32);
    let items = [64 * 3 * parts[0], 16 * 3 * parts[1], 16 * 3 * parts[2]];
    let ends = [items[0], items[0] + items[1], items.iter().sum()];
    assert_eq!(plan.launch.first_item[1..], ends);
    assert_eq!(plan.num_counters, ends[2] as usize);
}

#[test]
fn many_rows_take_the_highest_tiles() {
    let workspace = Workspace::new();
    for (out_features, in_features) in [(4096, 4096), (4096, 14336), (28672, 4096)] {
        let jobs = [job(out_features, in_features)];
        let shape = shape(&jobs, DType::BF16, in_features, 2048);
        let plan = shape.plan(&device(), &workspace).unwrap();
        assert_eq!(plan.kind, Kind::High, "{out_features} x {in_features}");
    }
    // A few blocks of outputs fill the device with low tiles alone.
    let jobs = [job(1024, 4096)];
    let shape = shape(&jobs, DType::BF16, 4096, 2048);
    assert_eq!(shape.plan(&device(), &workspace).unwrap().kind, Kind::Low);
}

#[test]
fn parts_that_find_no_room_are_not_spread() {
    let jobs = [job(4096, 4096)];
    let shape = shape(&jobs, DType::BF16, 4096, 100);
    let with_room = Kind::ALL.map(|kind| shape.plan_with(kind, &device()).unwrap());
    let best = with_room
        .iter()
        .min_by(|a, b| a.cycles.total_cmp(&b.cycles));
    assert!(best.unwrap().kind.is_spread(), "few rows");
    let plan = shape.plan(&device(), &Workspace::new()).unwrap();
    assert!(!plan.kind.is_spread());
}
