//! `--quantize`: float weights become quantised blocks as they are loaded, one tensor at a time.

use std::borrow::Cow;
use std::sync::Arc;

use ponder_kernels::quantise::quantise;
use ponder_kernels::{DType, KernelError, ThreadPool};

/// Matrices with fewer outputs stay floats: they cost nothing, and decide much.
const MIN_OUT_FEATURES: usize = 16;
/// Routers choose experts by small differences.
const ROUTER: &str = "ffn_gate_inp";

/// What float weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight; the head, or the table of embeddings that is one, 6.6 (`Q6_K`).
    Q4K,
}

impl Quantization {
    pub const ALL: [Self; 2] = [Self::Q8_0, Self::Q4K];

    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The type of a matrix whose rows have `in_features` values: `Q8_0` where they are not whole
    /// blocks of 256, `None` where they are no blocks of 32 either.
    fn type_of(self, is_head: bool, in_features: usize) -> Option<DType> {
        let wanted = match (self, is_head) {
            (Self::Q8_0, _) => DType::Q8_0,
            (Self::Q4K, false) => DType::Q4K,
            (Self::Q4K, true) => DType::Q6K,
        };
        let fits = |dtype: &DType| in_features.is_multiple_of(dtype.block_size());
        [wanted, DType::Q8_0].into_iter().find(fits)
    }
}

/// Quantises a model's tensors.
pub(super) struct Quantizer {
    pub kind: Quantization,
    /// Rows are shared among its threads.
    pub pool: Arc<ThreadPool>,
    /// The name of the matrix that makes logits.
    pub head: &'static str,
}

impl Quantizer {
    /// The blocks of tensor `name` (rows of `in_features` values), and their type. A tensor that is
    /// quantised already, a router, and one that is too small or has rows of no blocks comes back
    /// as it is.
    pub(super) fn apply<'a>(
        &self,
        name: &str,
        (dtype, data): (DType, &'a [u8]),
        [out_features, in_features]: [usize; 2],
    ) -> Result<(DType, Cow<'a, [u8]>), KernelError> {
        let is_float = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        let is_small = out_features < MIN_OUT_FEATURES || name.contains(ROUTER);
        let target = self.kind.type_of(name == self.head, in_features);
        match target {
            Some(target) if is_float && !is_small => {
                let blocks = quantise(&self.pool, dtype, data, in_features, target)?;
                Ok((target, Cow::Owned(blocks)))
            }
            _ => Ok((dtype, Cow::Borrowed(data))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_decide_what_blocks_there_are() {
        let check = |kind: Quantization, is_head, width, expected| {
            assert_eq!(kind.type_of(is_head, width), expected);
        };
        check(Quantization::Q4K, false, 512, Some(DType::Q4K));
        check(Quantization::Q4K, true, 512, Some(DType::Q6K));
        check(Quantization::Q4K, false, 576, Some(DType::Q8_0));
        check(Quantization::Q4K, true, 576, Some(DType::Q8_0));
        check(Quantization::Q8_0, true, 576, Some(DType::Q8_0));
        check(Quantization::Q8_0, false, 40, None);
        check(Quantization::Q4K, false, 40, None);
        for kind in Quantization::ALL {
            assert_eq!(Quantization::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Quantization::from_name("Q4_K_M"), None);
    }

    #[test]
    fn only_large_float_matrices_change() {
        let quantizer = Quantizer {
            kind: Quantization::Q8_0,
            pool: Arc::new(ThreadPool::new(1)),
            head: "output.weight",
        };
        let apply = |name: &str, dtype: DType, out: usize| {
            let data = vec![0; dtype.byte_count(64 * out).unwrap()];
            let made = quantizer.apply(name, (dtype, &data), [out, 64]).unwrap();
            made.0
        };
        let name = "blk.0.ffn_up.weight";
        assert_eq!(apply(name, DType::BF16, 32), DType::Q8_0);
        assert_eq!(apply(name, DType::F32, 32), DType::Q8_0);
        assert_eq!(apply(name, DType::Q4_0, 32), DType::Q4_0);
        assert_eq!(apply(name, DType::F32, 1), DType::F32);
        assert_eq!(
            apply("blk.0.ffn_gate_inp.weight", DType::F32, 32),
            DType::F32
        );
    }
}
