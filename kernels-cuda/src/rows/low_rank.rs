//! What adapters add to the products of the rows that use them.

use super::float_product::{FloatRows, Product};
use super::norm::norm_listed;
use super::{FloatMatrix, Norm, RowList};
use crate::{CudaError, Gpu, Rows};

/// What adapted products read.
#[derive(Clone, Copy)]
pub enum AdaptedInput<'a> {
    /// The rows as they are.
    Plain(&'a Rows),
    /// Their RMS norm.
    Normed { rows: &'a Rows, norm: Norm<'a> },
}

/// The two factors of what an adapter adds to a product.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, in_features]`
    pub down: &'a FloatMatrix,
    /// `[out_features, rank]`, scaled.
    pub up: &'a FloatMatrix,
}

/// Room for [`add_low_rank`].
#[derive(Default)]
pub struct LowRankScratch {
    /// `[listed rows, in_features]`
    normed: Rows,
    /// `[listed rows, rank]`
    low: Rows,
}

/// `out[row] += input[row] · down^T · up^T` of each product that has factors, at the listed rows
/// alone.
///
/// # Panics
/// When shapes do not fit.
pub fn add_low_rank<const N: usize>(
    gpu: &Gpu,
    scratch: &mut LowRankScratch,
    rows: RowList<'_>,
    input: AdaptedInput<'_>,
    products: [(Option<LowRank<'_>>, &mut Rows); N],
) -> Result<(), CudaError> {
    if rows.len == 0 {
        return Ok(());
    }
    // Normed rows lie one after the other, plain ones are where they were.
    let (x, x_rows) = match input {
        AdaptedInput::Plain(x) => (FloatRows::from(x), Some(rows)),
        AdaptedInput::Normed { rows: x, norm } => {
            norm_listed(gpu, x, rows, norm, &mut scratch.normed)?;
            (FloatRows::from(&scratch.normed), None)
        }
    };
    for (factors, out) in products {
        let Some(LowRank { down, up }) = factors else {
            continue;
        };
        let rank = down.out_features();
        assert_eq!(up.in_features(), rank, "factors of one rank");
        scratch.low.reshape(gpu, rows.len, rank)?;
        let product = Product {
            x,
            x_rows,
            out: FloatRows::from(&scratch.low),
            num_rows: rows.len,
            ..Product::new(down)
        };
        product.launch(gpu)?;
        let product = Product {
            x: FloatRows::from(&scratch.low),
            out: FloatRows::from(&*out),
            out_rows: Some(rows),
            num_rows: rows.len,
            accumulates: true,
            ..Product::new(up)
        };
        product.launch(gpu)?;
    }
    Ok(())
}
