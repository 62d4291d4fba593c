//! Codes that name values: the types whose 4-bit codes are looked up in sixteen signed integers.

use crate::dtype::DType;

/// Which sixteen integers a code names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codebook {
    /// IQ4_NL and IQ4_XS.
    Iq4,
    /// FP4 (E2M1), doubled.
    Mxfp4,
    /// The levels of IQ2_XXS, IQ2_XS and IQ2_S; bit 3 of a code is the sign.
    Iq2,
    /// Those of IQ3_XXS.
    Iq3Xxs,
    /// Those of IQ3_S.
    Iq3S,
}

/// `kvalues_iq4nl` of ggml's `ggml-common.h`.
static IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Twice the values of FP4 E2M1: OCP Microscaling Formats (MX) v1.0, table 5.
static MXFP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The values in `iq2xxs_grid`, `iq2xs_grid` and `iq2s_grid` of `ggml-common.h`. There is no fourth
/// level.
static IQ2: [i8; 16] = [8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43, 0, 0, 0, 0, 0];
/// Those in `iq3xxs_grid`.
static IQ3_XXS: [i8; 16] = [
    4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62,
];
/// Those in `iq3s_grid`.
static IQ3_S: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];

impl Codebook {
    /// `None` for types whose codes are numbers.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::IQ4_NL | DType::IQ4_XS => Some(Self::Iq4),
            DType::MXFP4 => Some(Self::Mxfp4),
            DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => Some(Self::Iq2),
            DType::IQ3_XXS => Some(Self::Iq3Xxs),
            DType::IQ3_S => Some(Self::Iq3S),
            _ => None,
        }
    }

    pub(crate) fn values(self) -> &'static [i8; 16] {
        match self {
            Self::Iq4 => &IQ4,
            Self::Mxfp4 => &MXFP4,
            Self::Iq2 => &IQ2,
            Self::Iq3Xxs => &IQ3_XXS,
            Self::Iq3S => &IQ3_S,
        }
    }

    /// What super-block scales are multiplied by, a power of two: the formats' scales are odd
    /// numbers of such units.
    pub(crate) fn unit(self) -> f32 {
        match self {
            Self::Iq2 => 0.125,
            Self::Iq3Xxs => 0.25,
            Self::Iq4 | Self::Mxfp4 | Self::Iq3S => 1.0,
        }
    }
}

/// Two to the power of `exponent - 128`: half of an E8M0 scale, for values that are doubled. The
/// largest code, which the standard calls NaN, is a power of two as in ggml.
pub(crate) fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_become_powers_of_two() {
        for exponent in 0..=u8::MAX {
            let expected = 2_f64.powi(i32::from(exponent) - 128);
            assert_eq!(f64::from(half_power(exponent)), expected);
        }
    }
}
