//! Exact rationals that fall back to floats.

/// An exact rational in lowest terms with a positive denominator, or a finite float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Num {
    Q(i128, i128),
    R(f64),
}

impl Num {
    pub(crate) fn float(self) -> f64 {
        match self {
            Num::Q(n, d) => n as f64 / d as f64,
            Num::R(v) => v,
        }
    }

    /// Exact where both are rational, else within 1e-9 of the larger.
    pub(crate) fn close(self, other: Num) -> bool {
        if let (Num::Q(..), Num::Q(..)) = (self, other) {
            return self == other;
        }
        let (x, y) = (self.float(), other.float());
        (x - y).abs() <= 1e-9 * x.abs().max(y.abs())
    }

    /// The rational with a small denominator that a float is but for rounding.
    pub(crate) fn snapped(self) -> Num {
        let Num::R(v) = self else { return self };
        let near = |q: &i32| {
            let scaled = v * f64::from(*q);
            let off = (scaled - scaled.round()).abs();
            scaled.round() != 0.0 && scaled.abs() < 1e9 && off <= 1e-12 * scaled.abs()
        };
        let whole = |q: i32| ratio((v * f64::from(q)).round() as i128, i128::from(q));
        (1..=100).find(near).and_then(whole).unwrap_or(self)
    }

    pub(crate) fn real(v: f64) -> Option<Num> {
        v.is_finite().then_some(Num::R(v))
    }

    pub(crate) fn add(self, other: Num) -> Option<Num> {
        let exact = || match (self, other) {
            (Num::Q(a, b), Num::Q(c, d)) => ratio(
                a.checked_mul(d)?.checked_add(c.checked_mul(b)?)?,
                b.checked_mul(d)?,
            ),
            _ => None,
        };
        exact().or_else(|| Num::real(self.float() + other.float()))
    }

    pub(crate) fn mul(self, other: Num) -> Option<Num> {
        let exact = || match (self, other) {
            (Num::Q(a, b), Num::Q(c, d)) => ratio(a.checked_mul(c)?, b.checked_mul(d)?),
            _ => None,
        };
        exact().or_else(|| Num::real(self.float() * other.float()))
    }

    pub(crate) fn div(self, other: Num) -> Option<Num> {
        let inverse = match other {
            Num::Q(n, d) => ratio(d, n)?,
            Num::R(v) => Num::real(v.recip())?,
        };
        self.mul(inverse)
    }

    pub(crate) fn neg(self) -> Num {
        match self {
            // `ratio` keeps `i128::MIN` out.
            Num::Q(n, d) => Num::Q(n.saturating_neg(), d),
            Num::R(v) => Num::R(-v),
        }
    }

    pub(crate) fn pow(self, exponent: Num) -> Option<Num> {
        let exact = || match (self, exponent) {
            (Num::Q(n, d), Num::Q(e, 1)) => {
                let size = u32::try_from(e.unsigned_abs()).ok()?;
                let (n, d) = (n.checked_pow(size)?, d.checked_pow(size)?);
                if e < 0 { ratio(d, n) } else { ratio(n, d) }
            }
            _ => None,
        };
        exact().or_else(|| Num::real(self.float().powf(exponent.float())))
    }

    pub(crate) fn root(self, degree: Num) -> Option<Num> {
        if let (Num::Q(n, d), Num::Q(2, 1)) = (self, degree)
            && let (Some(p), Some(q)) = (n.checked_isqrt(), d.checked_isqrt())
            && p * p == n
            && q * q == d
        {
            return ratio(p, q);
        }
        match degree {
            Num::Q(k, 1) if k % 2 != 0 && self.float() < 0.0 => {
                Some(self.neg().pow(ratio(1, k)?)?.neg())
            }
            _ => self.pow(Num::Q(1, 1).div(degree)?),
        }
    }

    pub(crate) fn factorial(self) -> Option<Num> {
        let Num::Q(n @ 0..=170, 1) = self else {
            return None;
        };
        (1..=n).try_fold(Num::Q(1, 1), |product, k| product.mul(Num::Q(k, 1)))
    }
}

/// `n/d` in lowest terms; `None` where `d` is zero or a part is too large.
pub(crate) fn ratio(n: i128, d: i128) -> Option<Num> {
    let (mut a, mut b) = (n.checked_abs()?, d.checked_abs()?);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    if d == 0 {
        return None;
    }
    Some(Num::Q(n / a * d.signum(), d.abs() / a))
}

/// A decimal from its digits: exact where it fits.
pub(crate) fn decimal(whole: &str, part: &str, exponent: i32) -> Option<Num> {
    let exact = || {
        let digits = format!("{whole}{part}").parse::<i128>().ok()?;
        let shift = exponent.checked_sub(i32::try_from(part.len()).ok()?)?;
        let scale = 10_i128.checked_pow(shift.unsigned_abs())?;
        if shift < 0 {
            ratio(digits, scale)
        } else {
            ratio(digits.checked_mul(scale)?, 1)
        }
    };
    let rounded = || {
        let value: f64 = format!("0{whole}.{part}0e{exponent}").parse().ok()?;
        let zero = whole.chars().chain(part.chars()).all(|c| c == '0');
        Num::real(value).filter(|_| zero || value != 0.0)
    };
    exact().or_else(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_falls_back_to_floats() {
        let big = Num::Q(i128::MAX, 1);
        let edges = [
            big,
            big.neg(),
            Num::Q(1, i128::MAX),
            Num::Q(0, 1),
            Num::R(1e300),
            Num::R(-1e-300),
        ];
        for a in edges {
            for b in edges {
                for value in [a.add(b), a.mul(b), a.div(b), a.pow(b), a.root(b)] {
                    assert!(value.is_none_or(|v| v.float().is_finite()), "{a:?} {b:?}");
                }
            }
            let _ = (a.snapped(), a.factorial());
        }
        assert!(
            big.add(big)
                .is_some_and(|v| v.close(Num::R(i128::MAX as f64 * 2.0)))
        );
        assert_eq!(ratio(i128::MIN, 1), None);
        assert_eq!(ratio(6, -4), Some(Num::Q(-3, 2)));
        assert_eq!(ratio(0, 0), None);
    }

    #[test]
    fn floats_snap_to_small_fractions_only() {
        assert_eq!(Num::R(1.0 / 3.0).snapped(), Num::Q(1, 3));
        assert_eq!(Num::R(2_f64.sqrt()).snapped(), Num::R(2_f64.sqrt()));
        assert!(decimal("1", "", i32::MAX).is_none() && decimal("1", "", -i32::MAX).is_none());
    }
}
