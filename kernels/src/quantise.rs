//! Float weights to quantised blocks, row by row: what `--quantize` does while a model loads.
//!
//! Bits do not depend on the instruction set nor on threads: products are rounded before they are
//! added, and a block is a function of its own values.

use std::cell::RefCell;

use crate::cost::Nanoseconds;
use crate::cpu;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;
use crate::reference;

/// What a value costs one thread, its search for scales included.
const VALUE: f64 = 10.0;

thread_local! {
    /// A row's values.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether [`quantise`] makes blocks of this type.
pub fn can_quantise(target: DType) -> bool {
    matches!(target, DType::Q8_0 | DType::Q4K | DType::Q6K)
}

/// Row-major blocks of type `target` from row-major `data` of type `source`, whose rows have
/// `in_features` values.
///
/// # Errors
/// When rows are not whole blocks of either type, when `data` is not whole rows, or when
/// [`can_quantise`] denies the type.
pub fn quantise(
    pool: &ThreadPool,
    source: DType,
    data: &[u8],
    in_features: usize,
    target: DType,
) -> Result<Vec<u8>, KernelError> {
    if !can_quantise(target) {
        return Err(KernelError::CannotQuantise(target.name()));
    }
    let row_bytes = |dtype: DType| {
        dtype
            .byte_count(in_features)
            .filter(|bytes| *bytes > 0)
            .ok_or(KernelError::RaggedBlock {
                dtype: dtype.name(),
                block_size: dtype.block_size(),
                in_features,
            })
    };
    let (from_bytes, to_bytes) = (row_bytes(source)?, row_bytes(target)?);
    let num_rows = data.len() / from_bytes;
    if num_rows * from_bytes != data.len() {
        return Err(KernelError::WrongByteCount {
            dtype: source.name(),
            out_features: num_rows,
            in_features,
            expected: num_rows * from_bytes,
            actual: data.len(),
        });
    }
    let mut blocks = vec![0; num_rows * to_bytes];
    let shared = SharedSlice::new(&mut blocks);
    let work = Nanoseconds((num_rows * in_features) as f64 * VALUE);
    for_each(pool, work, num_rows, |row| {
        // SAFETY: each row is taken once.
        let out = unsafe { shared.slice_mut(row * to_bytes, to_bytes) };
        ROW.with_borrow_mut(|values| {
            values.resize(in_features, 0.0);
            let data = &data[row * from_bytes..][..from_bytes];
            reference::dequantize(source, data, values);
            cpu::quantise_values(target, values, out);
        });
    });
    Ok(blocks)
}
