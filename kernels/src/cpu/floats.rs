//! Which kernel multiplies float weights.

use std::ops::Range;

use crate::activations::Activations;
use crate::float_panel::FloatPanels;

/// The variable that, set to 1, has bf16 weights multiply activations rounded to bf16: twice as
/// fast where there is AVX512-BF16, and off by about a percent of the largest logit in small
/// models.
#[cfg(target_arch = "x86_64")]
const BF16_VARIABLE: &str = "PONDER_BF16_ACTIVATIONS";

/// Whether products with bf16 weights read activations rounded to bf16, two inputs an instruction.
pub(crate) fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;

        use super::{Isa, isa};

        static HAS_BF16: OnceLock<bool> = OnceLock::new();
        *HAS_BF16.get_or_init(|| {
            std::env::var_os(BF16_VARIABLE).is_some_and(|value| value == "1")
                && matches!(isa(), Isa::Avx512 | Isa::Amx)
                && is_x86_feature_detected!("avx512bf16")
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// See [`super::panels_product`].
pub(super) fn product(
    x: &Activations,
    weights: &FloatPanels,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if weights.is_bf16() && multiplies_bf16() {
        // SAFETY: `multiplies_bf16` found AVX-512 F and BF16 on this machine.
        return unsafe { super::bf16::product(x, weights, panels, rows, out) };
    }
    super::float_product(x, weights, panels, rows, out);
}
