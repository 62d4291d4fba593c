//! Whether a tensor's numbers are numbers: looked at in the file's bytes, before they are packed.

use std::sync::atomic::{AtomicBool, Ordering};

use ponder_kernels::{DType, ThreadPool};

/// Bytes of a tensor that one thread has read before others could begin.
const BYTES_ALONE: usize = 64 << 10;

/// Exponents of infinities and NaN.
const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;
const F32_EXPONENT: u32 = 0x7f80_0000;

/// The largest E8M0 exponent with which all values of FP4, up to 6, are below infinity.
const MXFP4_EXPONENT_MAX: u8 = 252;

/// Where the half-precision scales of a quantised block lie; all else in it is integers.
fn scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => &[0],
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::F32 | DType::F16 | DType::BF16 | DType::MXFP4 => &[],
    }
}

/// [`is_finite`], where there is a pool by all its threads.
pub(super) fn is_finite_on(pool: Option<&ThreadPool>, dtype: DType, data: &[u8]) -> bool {
    let pool = match pool {
        Some(pool) if data.len() > BYTES_ALONE => pool,
        _ => return is_finite(dtype, data),
    };
    let block_bytes = dtype.block_bytes();
    let are_finite = AtomicBool::new(true);
    pool.run(&|part, num_parts| {
        let blocks = (data.len() / block_bytes).div_ceil(num_parts);
        let start = (part * blocks * block_bytes).min(data.len());
        let end = (start + blocks * block_bytes).min(data.len());
        if !is_finite(dtype, &data[start..end]) {
            are_finite.store(false, Ordering::Relaxed);
        }
    });
    are_finite.into_inner()
}

/// Whether no value of a tensor is infinite or NaN. Reads one value of a block, and each of float tensors.
pub(super) fn is_finite(dtype: DType, data: &[u8]) -> bool {
    let halves = || data.as_chunks::<2>().0.iter();
    let lacks = |bytes: &[u8; 2], exponent: u16| u16::from_le_bytes(*bytes) & exponent != exponent;
    match dtype {
        DType::F32 => {
            let mut words = data.as_chunks::<4>().0.iter();
            words.all(|word| u32::from_le_bytes(*word) & F32_EXPONENT != F32_EXPONENT)
        }
        DType::F16 => halves().all(|half| lacks(half, F16_EXPONENT)),
        DType::BF16 => halves().all(|half| lacks(half, BF16_EXPONENT)),
        DType::MXFP4 => {
            let mut blocks = data.chunks_exact(dtype.block_bytes());
            blocks.all(|block| block[0] <= MXFP4_EXPONENT_MAX)
        }
        quantised => {
            let block_bytes = quantised.byte_count(quantised.block_size()).unwrap_or(1);
            let scales = scales(quantised);
            data.chunks_exact(block_bytes).all(|block| {
                scales.iter().all(|at| {
                    let scale = block.get(*at..).and_then(<[u8]>::first_chunk);
                    scale.is_some_and(|scale| lacks(scale, F16_EXPONENT))
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use ponder_kernels::reference;

    use super::*;
    use crate::model::testing::uniform;

    /// Random bytes in every type: finite is what has only finite values.
    #[test]
    fn finite_bytes_become_finite_values() {
        let mut state = 5;
        for dtype in DType::ALL {
            let count = dtype.block_size() * 2;
            let num_bytes = dtype.byte_count(count).unwrap();
            let mut num_finite = 0;
            for _ in 0..400 {
                let mut data: Vec<u8> = (0..num_bytes)
                    .map(|_| ((uniform(&mut state) + 1.0) * 127.9) as u8)
                    .collect();
                // Infinities are rare among random bytes.
                if uniform(&mut state) > 0.0 {
                    let at = scales(dtype).last().copied().unwrap_or(0);
                    let size = if dtype == DType::F32 { 4 } else { 2 };
                    data[at + size - 1] = 0x7f;
                    data[at + size - 2] |= 0xf0;
                }
                let mut values = vec![0.0; count];
                reference::dequantize(dtype, &data, &mut values);
                let expected = values.iter().all(|value| value.is_finite());
                assert_eq!(is_finite(dtype, &data), expected, "{dtype:?}");
                num_finite += usize::from(expected);
            }
            assert!((20..380).contains(&num_finite), "{dtype:?}: {num_finite}");
        }
    }

    #[test]
    fn every_thread_finds_what_is_not_finite() {
        let pool = ThreadPool::new(3);
        for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4K] {
            let count = 2 * BYTES_ALONE / dtype.block_bytes() + 1;
            let mut data = vec![0; count * dtype.block_bytes()];
            assert!(is_finite_on(Some(&pool), dtype, &data));
            for block in [0, count / 3, count / 2, count - 1] {
                let at = block * dtype.block_bytes();
                let end = if dtype == DType::F32 { 4 } else { 2 };
                data[at + end - 2..at + end].copy_from_slice(&[0x80, 0x7f]);
                assert!(
                    !is_finite_on(Some(&pool), dtype, &data),
                    "{dtype:?} {block}"
                );
                data[at..at + end].fill(0);
            }
        }
    }

    #[test]
    fn models_with_numbers_that_are_none_do_not_load() {
        use crate::model::testing::TinyModel;
        use crate::model::{LoadError, LoadOptions, ModelFiles, load_decoder};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let load = |model: &TinyModel| {
            std::fs::write(&path, model.to_gguf()).unwrap();
            load_decoder(&ModelFiles::open(&path).unwrap(), LoadOptions::default()).map(drop)
        };
        assert!(load(&TinyModel::random("llama", 1)).is_ok());
        for name in [
            "token_embd.weight",
            "blk.6.attn_norm.weight",
            "blk.1.ffn_up.weight",
        ] {
            for value in [f32::NAN, f32::INFINITY] {
                let mut model = TinyModel::random("llama", 1);
                model.tensors.get_mut(name).unwrap().1[3] = value;
                let refused = load(&model).unwrap_err();
                assert!(matches!(refused, LoadError::NotFinite(tensor) if tensor == name));
            }
        }
    }
}
