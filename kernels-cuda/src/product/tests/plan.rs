use super::{MAX_PARTS, MIN_UNITS, MULTIPROCESSORS, Splits, Tile, splits};
use crate::product::layout::{Layout, M_BLOCK, SUPER_BLOCKS, TYPES};

fn efficiency(out_features: usize, in_features: usize) -> f64 {
    let Splits {
        num_parts,
        part_blocks,
    } = splits(out_features, in_features);
    let m_blocks = out_features.div_ceil(M_BLOCK);
    let rounds = (m_blocks * num_parts).div_ceil(MULTIPROCESSORS);
    (m_blocks * in_features.div_ceil(64)) as f64 / (MULTIPROCESSORS * rounds * part_blocks) as f64
}

#[test]
fn parts_cover_the_inputs_in_whole_super_blocks() {
    for out_features in [1, 64, 100, 896, 1024, 4096, 14_336, 151_936] {
        for in_features in [32, 64, 96, 256, 576, 896, 4096, 4864, 14_336] {
            let Splits {
                num_parts,
                part_blocks,
            } = splits(out_features, in_features);
            let k_blocks = in_features.div_ceil(64);
            assert!(part_blocks.is_multiple_of(SUPER_BLOCKS) && num_parts <= MAX_PARTS);
            assert!(
                num_parts * part_blocks >= k_blocks,
                "{out_features} {in_features}"
            );
            assert!(
                (num_parts - 1) * part_blocks < k_blocks,
                "{out_features} {in_features}"
            );
        }
    }
}

/// The shapes of an 8B model, and of the heads of smaller ones.
#[test]
fn large_matrices_fill_the_multiprocessors() {
    let shapes = [
        (4096, 4096, 8),
        (14_336, 4096, 4),
        (4096, 14_336, 8),
        (128_256, 4096, 1),
        (151_936, 896, 1),
        (8960, 1536, 3),
        (1536, 8960, 18),
    ];
    for (out_features, in_features, num_parts) in shapes {
        let found = splits(out_features, in_features);
        let units = out_features.div_ceil(M_BLOCK) * found.num_parts;
        assert_eq!(
            found.num_parts, num_parts,
            "{out_features} {in_features} {units}"
        );
        assert!(
            efficiency(out_features, in_features) >= 0.79,
            "{out_features} {in_features}"
        );
        assert!(units >= MIN_UNITS, "{out_features} {in_features}: {units}");
    }
}

#[test]
fn tiles_fit_every_device() {
    // Compute capability 8.6 and 8.9 have the least.
    const LEAST: usize = 99 * 1024;
    for dtype in TYPES {
        let Some(layout) = Layout::of(dtype) else {
            continue;
        };
        for (rows, tile) in [(1, 8), (8, 8), (9, 16), (17, 32), (33, 64), (64, 64)] {
            let found = Tile::for_rows(layout, rows, false, 2, LEAST);
            assert_eq!(found.rows, tile, "{dtype:?}");
            assert!(found.shared_bytes <= LEAST, "{dtype:?} {rows}");
        }
        let serial = Tile::for_rows(layout, 1000, true, 2, LEAST);
        assert!(
            serial.shared_bytes <= LEAST && serial.rows >= 32,
            "{dtype:?} {serial:?}"
        );
        // A decode step's blocks, four of them, fit a multiprocessor of 228 KiB with one for each
        // block.
        let decode = Tile::for_rows(layout, 1, false, 1, LEAST);
        assert!(
            4 * (decode.shared_bytes + 1024) <= 228 * 1024,
            "{dtype:?} {decode:?}"
        );
    }
}
