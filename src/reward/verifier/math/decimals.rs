//! Decimals that stand for numbers which they are not exactly: printed floats, and references that
//! were rounded.

use super::super::num::Num;

/// From so many digits on, a decimal beside a fraction or an expression is a printed float, which
/// is right but for its last digits.
const PRINTED_DIGITS: usize = 13;
const PRINTED_TOLERANCE: f64 = 1e-12;
/// The same beside a short decimal or a whole number: the sum of 0.1 and 0.2, say.
const NOISY_DIGITS: usize = 15;
const NOISY_TOLERANCE: f64 = 1e-15;
/// A reference with fewer digits behind its point is no rounded number.
const ROUNDED_DIGITS: usize = 2;

/// What a number's spelling says of its precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spelling {
    /// Digits but for zeros at the beginning.
    num_significant: usize,
    /// Digits behind the point; none without a point.
    num_fraction: Option<usize>,
    has_exponent: bool,
}

/// The spelling of a whole number or decimal; `None` of anything else.
fn spelling(text: &str) -> Option<Spelling> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (digits, exponent) = match digits.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, Some(exponent)),
        None => (digits, None),
    };
    if exponent.is_some_and(|exponent| exponent.parse::<i32>().is_err()) {
        return None;
    }
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let all = || whole.bytes().chain(fraction.unwrap_or_default().bytes());
    if all().next().is_none() || !all().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Spelling {
        num_significant: all().skip_while(|byte| *byte == b'0').count(),
        num_fraction: fraction.map(str::len),
        has_exponent: exponent.is_some(),
    })
}

/// Whether one of two values is the other one as a float prints it.
pub(super) fn is_printed((a, x): (&str, Num), (b, y): (&str, Num)) -> bool {
    let (x, y) = (x.float(), y.float());
    let differ = |tolerance: f64| (x - y).abs() > tolerance * x.abs().max(y.abs());
    match (spelling(a), spelling(b)) {
        (Some(decimal), None) | (None, Some(decimal)) => {
            let is_long = decimal.num_significant >= PRINTED_DIGITS;
            decimal.num_fraction.is_some() && is_long && !differ(PRINTED_TOLERANCE)
        }
        (Some(a), Some(b)) => {
            let (short, long) = match a.num_significant < b.num_significant {
                true => (a, b),
                false => (b, a),
            };
            let is_noisy = long.num_significant >= NOISY_DIGITS;
            let is_one = is_noisy && short.num_significant < NOISY_DIGITS;
            long.num_fraction.is_some() && is_one && !differ(NOISY_TOLERANCE)
        }
        (None, None) => false,
    }
}

/// Whether a reference is a decimal to which the exact value of `given` rounds.
pub(super) fn rounds_to(given: (&str, Num), reference: (&str, Num)) -> bool {
    let Some(spelled) = spelling(reference.0) else {
        return false;
    };
    let Some(num_digits) = spelled.num_fraction.filter(|len| *len >= ROUNDED_DIGITS) else {
        return false;
    };
    // Another decimal is another answer: it was rounded, too, and to other digits.
    if spelling(given.0).is_some() || spelled.has_exponent || num_digits > NOISY_DIGITS {
        return false;
    }
    let (x, y) = (given.1.float(), reference.1.float());
    let half = 0.5 * 0.1_f64.powi(num_digits as i32);
    (x - y).abs() <= half * (1.0 + 1e-9)
}

#[cfg(test)]
mod tests {
    use super::super::{equivalent, equivalent_text};

    const EQUAL: &[(&str, &str)] = &[
        ("0.0833333333333333", "1/12"),
        ("0.08333333333333333", "\\frac{1}{12}"),
        ("8.33333333333333e-2", "1/12"),
        ("-0.142857142857143", "-\\frac17"),
        ("0.6666666666666666", "2/3"),
        ("33.333333333333336", "100/3"),
        ("0.30000000000000004", "0.3"),
        ("2.9999999999999996", "3"),
        ("(0.333333333333333, 2)", "(1/3, 2)"),
        ("-1+exp(16)", "e^{16}-1"),
        ("8886109.520507872", "e^{16}-1"),
        ("exp(-1)", "\\frac{1}{e}"),
        ("\\frac{e^2-1}{2}", "(exp(2)-1)/2"),
        ("2e^{x}", "2\\exp(x)"),
        ("\\ln(e^3)", "3"),
        ("e^{2x}", "(e^x)^2"),
        ("1.4142135623730951", "\\sqrt2"),
    ];

    const DIFFERENT: &[(&str, &str)] = &[
        ("0.0833333333333333", "1/13"),
        ("0.0833333333333", "1/12"),
        ("0.0833333333330000", "1/12"),
        ("0.33", "1/3"),
        ("0.0833333333333333", "0.0833333333333334"),
        ("1000000000000", "1000000000001"),
        ("123456789012345", "123456789012346"),
        ("1000000000000.25", "1000000000000"),
        ("e^{16}", "e^{16}-1"),
        ("e^2", "7.389"),
        ("e", "d"),
        ("e_1", "2.718281828459045"),
    ];

    #[test]
    fn printed_floats_are_what_they_print() {
        for (a, b) in EQUAL {
            assert!(equivalent(a, b) && equivalent(b, a), "{a} = {b}");
        }
        for (a, b) in DIFFERENT {
            assert!(!equivalent(a, b) && !equivalent(b, a), "{a} ≠ {b}");
        }
    }

    #[test]
    fn rounded_references_take_what_rounds_to_them() {
        // A reference that was rounded takes what rounds to it, and no other decimal.
        for (text, reference) in [
            ("\\boxed{\\frac13}", "0.33"),
            ("\\boxed{2/3}", "0.667"),
            ("\\boxed{\\pi}", "3.14"),
            ("\\boxed{e^2}", "7.389"),
            ("\\boxed{-\\sqrt2}", "-1.41"),
        ] {
            assert!(equivalent_text(text, reference), "{text} {reference}");
        }
        for (text, reference) in [
            ("\\boxed{0.33}", "1/3"),
            ("\\boxed{\\frac13}", "0.34"),
            ("\\boxed{\\frac13}", "0.3"),
            ("\\boxed{0.333}", "0.33"),
            ("\\boxed{0.254}", "0.25"),
            ("\\boxed{3}", "3.00001"),
            ("\\boxed{\\frac13}", "0"),
            ("\\boxed{\\frac13, 2}", "0.33"),
        ] {
            assert!(!equivalent_text(text, reference), "{text} {reference}");
        }
        assert!(!equivalent_text("", ""));
    }
}
