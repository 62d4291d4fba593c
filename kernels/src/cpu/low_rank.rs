//! The second factor of a low-rank adapter, added to tiles of a product while they are in the
//! cache.

use super::vector::LANES;
use super::widen::Widen;
use crate::panel::PANEL_ROWS;

/// Columns of the factors whose steps are unrolled.
const AT_ONCE: usize = 8;

/// Rows of tiles to which an adapter adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowRankTile<'a> {
    /// `[num_rows, stride]`: what the first factor made of the rows, from the first column of this
    /// product on.
    pub low: &'a [f32],
    pub stride: usize,
    /// `[panels, rank, PANEL_ROWS]`, f16
    pub up: &'a [u16],
    pub rank: usize,
    /// Of the rows in a tile the first that is added to, and how many are from there on.
    pub first_row: usize,
    pub num_rows: usize,
}

/// `tiles[panel, first_row + row] += sum_j low[row, j] * up[panel, j]`; a tile is `[tile_rows,
/// PANEL_ROWS]`.
///
/// An element is summed over `j` in order, and the sum added to what was there, whatever rows are
/// beside it.
#[inline(always)]
pub(super) fn add_low_rank<V: Widen>(add: &LowRankTile<'_>, tiles: &mut [f32], tile_rows: usize) {
    let panels = add.up.chunks_exact(add.rank * PANEL_ROWS);
    for (up, tile) in panels.zip(tiles.chunks_exact_mut(tile_rows * PANEL_ROWS)) {
        let (up, tile) = (up.as_chunks().0, tile.as_chunks_mut().0);
        let tile = &mut tile[add.first_row..][..add.num_rows];
        let mut row = 0;
        if V::MAX_SUMS >= 8 {
            row = add_rows::<V, 8>(add, up, tile, row);
        }
        row = add_rows::<V, 4>(add, up, tile, row);
        add_rows::<V, 1>(add, up, tile, row);
    }
}

/// Adds to `ROWS` rows at a time from `row` on; returns the first row that is left.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // `j` and `r` number columns and rows.
fn add_rows<V: Widen, const ROWS: usize>(
    add: &LowRankTile<'_>,
    up: &[[u16; LANES]],
    tile: &mut [[f32; LANES]],
    mut row: usize,
) -> usize {
    while row + ROWS <= tile.len() {
        let low: [&[f32]; ROWS] =
            std::array::from_fn(|r| &add.low[(row + r) * add.stride..][..up.len()]);
        let mut sums = [V::splat(0.0); ROWS];
        let (pieces, rest) = up.as_chunks::<AT_ONCE>();
        for (index, up) in pieces.iter().enumerate() {
            // Arrays, so that no element is checked.
            let low: [&[f32; AT_ONCE]; ROWS] =
                std::array::from_fn(|r| &low[r].as_chunks().0[index]);
            for j in 0..AT_ONCE {
                let up = V::load_f16(&up[j]);
                for r in 0..ROWS {
                    sums[r] = sums[r].add_product(V::splat(low[r][j]), up);
                }
            }
        }
        for (j, up) in (pieces.len() * AT_ONCE..).zip(rest) {
            let up = V::load_f16(up);
            for r in 0..ROWS {
                sums[r] = sums[r].add_product(V::splat(low[r][j]), up);
            }
        }
        for (sum, out) in sums.iter().zip(&mut tile[row..row + ROWS]) {
            // `1 * out + sum` is their exact sum, rounded once.
            sum.add_product(V::splat(1.0), V::load(out)).store(out);
        }
        row += ROWS;
    }
    row
}
