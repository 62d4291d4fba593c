//! Pairs of answers that are equal or not.

use super::*;
use std::time::Duration;

const EQUAL: &[(&str, &str)] = &[
    ("1/2", r"\frac{1}{2}"),
    ("0.5", r"\dfrac12"),
    ("$0.50$", r"\tfrac{1}{2}"),
    (".5", "1/2"),
    ("50\\%", "50"),
    ("50%", "50"),
    ("1,234", "1234"),
    (r"1,\!234,\!567", "1234567"),
    ("1{,}234", "1234"),
    ("1,234, 5", "1234,5"),
    ("\\$1,234.50", "1234.5"),
    ("x=5", "5"),
    ("x = 5", "$5$."),
    ("x_1 = 3", "3"),
    ("f(x) = x+1", "x+1"),
    ("3.000", "3"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("-0.5", "\\frac{1}{-2}"),
    ("1\\frac{1}{2}", "3/2"),
    ("1 1/2", "1.5"),
    ("-2\\frac{1}{4}", "-2.25"),
    ("3½", "3.5"),
    ("1.2\\times10^3", "1200"),
    ("1.2 × 10^{3}", "1.2e3"),
    ("5e-1", "0.5"),
    ("\\sqrt2", "\\sqrt{2}"),
    ("sqrt(2)", "√2"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\frac{1}{\\sqrt2}", "\\frac{\\sqrt{2}}{2}"),
    ("\\sqrt[3]{8}", "2"),
    ("\\sqrt{\\frac14}", "1/2"),
    ("2\\pi", "2 * pi"),
    ("2π", "2\\cdot\\pi"),
    ("\\frac{\\pi}{4}", "pi/4"),
    ("2^{10}", "1024"),
    ("2**10", "1024"),
    ("2^{-1}", "1/2"),
    ("x^{2}", "x^2"),
    ("\\infty", "∞"),
    ("-infinity", "-\\infty"),
    ("(1, 2)", "\\left( 1,2 \\right)"),
    ("(\\frac12, 3)", "(0.5,3)"),
    ("[0, \\infty)", "\\left[0,\\infty\\right)"),
    ("(-\\infty,1)\\cup(2,3]", "(2,3] \\cup (-\\infty,1)"),
    ("x \\in (1,2]", "(1,2]"),
    ("\\{1,2\\}", "2, 1"),
    ("1,2,3", "3, 2, 1"),
    ("x=1, x=2", "1 \\text{ or } 2"),
    ("1 and 2", "2,1"),
    ("(1,2),(3,4)", "(3,4), (1,2)"),
    ("1\\pm\\sqrt{2}", "1-\\sqrt2, 1+\\sqrt2"),
    ("\\pm 2", "2,-2"),
    (
        "\\begin{pmatrix} 1 & 1/2 \\\\ 3 & 4 \\end{pmatrix}",
        "\\begin{bmatrix}1&0.5\\\\3&4\\end{bmatrix}",
    ),
    ("y=2x+1", "y = 1+2x"),
    ("2x+3y=6", "6 = 3y + 2x"),
    ("4x+6y=12", "2x+3y=6"),
    ("x>5", "5<x"),
    ("1 < x \\leq 2", "1<x<=2"),
    ("two", "2"),
    ("Twelve", "12"),
    ("Yes", "yes"),
    ("\\text{True}", "true"),
    ("(A)", "A"),
    ("A.", "\\text{(A)}"),
    ("a)", "A"),
    ("5 cm", "5"),
    ("5\\text{ cm}^2", "5"),
    ("5 \\mathrm{~km}", "5 km"),
    ("90^\\circ", "90"),
    ("90^{\\circ}", "90 degrees"),
    ("3 hours", "3"),
    ("12 square feet", "12"),
    ("five dollars", "\\$5"),
    ("60 miles per hour", "60 mph"),
    ("(x+1)^2", "x^2+2x+1"),
    ("\\frac{x}{2}", "x/2"),
    ("(x+1)(x-1)", "x^2 - 1"),
    ("2a b", "2a\\cdot b"),
    ("\\sin^2 x + \\cos^2 x", "1 + 0x"),
    ("\\sin 2x", "2 \\sin x \\cdot \\cos x"),
    ("\\log_2 8", "3"),
    ("5!", "120"),
    ("\\binom{5}{2}", "10"),
    ("\\emptyset", "\\{\\}"),
    ("\\boxed{5}", "5"),
    ("no real  solution", "No real solution"),
    ("1011_2", "1011_{2}"),
    ("\\theta + 1", "1+\\theta"),
    ("x_1+x_2", "x_{2}+x_{1}"),
    ("\\langle 1,-2\\rangle", "(1,-2)"),
    (
        "x = \\frac{-1 \\pm \\sqrt{5}}{2}",
        "\\frac{-1+\\sqrt5}{2}, \\frac{-1-\\sqrt5}{2}",
    ),
    ("4.5\\times 10^{33}", "4.5e33"),
    ("2e^3", "2 e^{3}"),
    ("\\frac{a}{b}c", "ac/b"),
    ("y=2x+1", "2x-y+1=0"),
    ("(x-2)^2+(y+1)^2=9", "x^2-4x+y^2+2y=4"),
    ("-2 + 7i", "7i-2"),
    ("9\\pi \\text{ cm}^3", "9\\pi"),
    ("", ""),
    ("1/0", "1/0"),
    (
        "100000000000000000000000000000000000000000.0",
        "100000000000000000000000000000000000000000",
    ),
    ("10^{50}", "1e50"),
    ("|-3|", "3"),
    ("3:2", "3 : 2"),
];

const DIFFERENT: &[(&str, &str)] = &[
    ("1", "2"),
    ("0.333", "1/3"),
    ("0.33333333333", "1/3"),
    ("3.14", "\\pi"),
    ("50%", "0.5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "[1,2)"),
    ("(1,234)", "1234"),
    ("\\{1,234\\}", "1234"),
    ("{1,234}", "1234"),
    ("1,2", "12"),
    ("1,2", "1,2,3"),
    ("1,1", "1,2"),
    ("2 3", "23"),
    ("2 3", "6"),
    ("1 1/2", "11/2"),
    ("-5", "5"),
    ("x+1", "x+2"),
    ("x+1", "y+1"),
    ("|x|", "x"),
    ("\\sqrt{x^2}", "x"),
    ("2x+3y=6", "2x+3y=7"),
    ("x<5", "x>5"),
    ("x<5", "x\\le5"),
    ("A", "B"),
    ("yes", "no"),
    ("dear", "read"),
    ("ab c", "ba c"),
    ("\\infty", "-\\infty"),
    ("\\frac{1}{2}", "\\frac{2}{1}"),
    ("5 m + 3", "5"),
    ("3x m", "3x"),
    ("2^{10}", "20"),
    ("9^9^9^9", "9^9^9^8"),
    ("1/0", "2/0"),
    ("1/0", "0"),
    ("0/0", "1"),
    ("\\pm 2", "2"),
    ("1e999999999999", "1e99999999999"),
    ("1e-999999999999", "0"),
    ("", "0"),
    ("$", "%"),
    ("🙂", "🙃"),
    ("\\frac{1}{2", "0.5"),
    (
        "100000000000000000000000000000000000000001",
        "100000000000000000000000000000000000000000",
    ),
    (
        "\\begin{pmatrix}1&2\\end{pmatrix}",
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    ),
    (
        "\\begin{pmatrix}1&2\\end{pmatrix}",
        "\\begin{vmatrix}1&2\\end{vmatrix}",
    ),
    ("10^{-20}x", "10^{-10}x"),
    ("2e5", "2"),
    ("1011_2", "1011"),
];

fn hostile() -> Vec<String> {
    let pieces = [
        "(",
        ")",
        "[",
        "{",
        "}",
        "\\{",
        "\\",
        "\\frac",
        "\\frac{",
        "\\sqrt",
        "\\sqrt{",
        "^",
        "9^",
        "-",
        "+",
        "--1",
        "|",
        "||",
        ",",
        "1,",
        "(1,",
        "1,234",
        "=",
        "x=",
        "<",
        "±",
        "\\pm1",
        "!",
        "3!",
        "9!!",
        "🙂",
        "é",
        "\u{301}",
        "x",
        "x+",
        "(x+1)",
        "x^",
        "e9",
        "1e9",
        "∪",
        "(1,2)∪",
        "\\begin{pmatrix}",
        "&",
        "\\\\",
        "\\text{",
        "\\boxed{",
        " or ",
        " 1 m/s",
        "1 1/",
        "1/",
        "\\sin",
        "sin",
        "\\log_",
        "_",
        "≈",
        "≋",
        "x,",
        "∞",
        "%",
        "$",
        " ",
        ".",
        "\0",
        "A)",
        "\\left(",
        "\\binom9",
        "π",
        "x \\in ",
        "^{2}",
        "²",
        "**",
        "`",
        "{,}",
        "9",
        "0.",
        "٣",
        "ß",
        "İ",
    ];
    let mut all = Vec::new();
    for piece in pieces {
        for size in [1, 40, 600, 100_000] {
            let text = piece.repeat((size / piece.len()).max(1));
            all.push(format!("{text}1"));
            all.push(text);
        }
    }
    all.push("9^9^9^9".to_owned());
    all.push(format!("{}1{}", "(".repeat(60), ")".repeat(60)));
    all.push(format!("{}1{}", "(".repeat(2_000), ")".repeat(2_000)));
    all.push(format!("{}1{}", "{1,".repeat(600), "}".repeat(600)));
    all.push(format!("{}1{}", "\\frac{".repeat(500), "}{2}".repeat(500)));
    all
}

#[test]
fn equal_pairs() {
    for (a, b) in EQUAL {
        assert!(
            equivalent(a, b),
            "{a} = {b}: {} {}",
            normalize(a),
            normalize(b)
        );
        assert!(equivalent(b, a), "{b} = {a}");
    }
}

#[test]
fn different_pairs() {
    for (a, b) in DIFFERENT {
        assert!(
            !equivalent(a, b),
            "{a} ≠ {b}: {} {}",
            normalize(a),
            normalize(b)
        );
        assert!(!equivalent(b, a), "{b} ≠ {a}");
    }
}

#[test]
fn equal_keys() {
    for group in [
        &[
            "1/2",
            "\\frac{1}{2}",
            "0.5",
            "\\dfrac12",
            "$0.50$",
            "x=.5",
            "2/4",
            "5e-1",
        ][..],
        &["(1, 2)", "\\left(1,\\frac{4}{2}\\right)", "(1.0,2)"],
        &["1,2", "\\{2, 1\\}", "x=1 or x=2", "x = 2, 1"],
        &["\\sqrt8", "2\\sqrt2", "sqrt(8)"],
        &["x^2-1", "(x-1)(x+1)", "y=x*x-1"],
    ] {
        for pair in group.windows(2) {
            let keys: Vec<String> = pair.iter().map(|a| normalize(a)).collect();
            assert!(keys.windows(2).all(|k| k[0] == k[1]), "{pair:?} {keys:?}");
        }
    }
    assert_eq!(normalize("$0.50$"), "1/2");
    assert_eq!(normalize("(A)"), "a");
}

#[test]
fn keys_are_stable_and_equivalent() {
    let table = EQUAL.iter().chain(DIFFERENT);
    let mut all: Vec<String> = table
        .flat_map(|(a, b)| [*a, *b])
        .map(str::to_owned)
        .collect();
    all.extend(hostile());
    for text in &all {
        let key = normalize(text);
        let short: String = text.chars().take(60).collect();
        assert_eq!(normalize(&key), key, "{short}");
        assert!(equivalent(text, text), "{short}");
        assert!(equivalent(&key, &key), "{short}");
        if text.len() <= MAX_LEN && key.len() <= MAX_LEN {
            assert!(equivalent(text, &key), "{short} {key}");
        }
    }
}

#[test]
fn hostile_answers_end_fast() {
    for text in hostile() {
        let started = crate::work::thread_time();
        let _ = equivalent(&text, "1");
        let _ = equivalent(&text, &format!("{text} "));
        let _ = equivalent(&text, &text.chars().rev().collect::<String>());
        let _ = equivalent_text(&text, "1");
        let short: String = text.chars().take(60).collect();
        let took = crate::work::thread_time() - started;
        assert!(
            took < Duration::from_secs(5),
            "{short} {} {took:?}",
            text.len()
        );
    }
}

#[test]
fn random_strings_do_not_panic() {
    let alphabet: Vec<char> = "0123456789xyze+-*/^(){}[],.\\=<> π√±≤½²🙂!|_&$%:fracsqt"
        .chars()
        .collect();
    let mut state = 7_u64;
    for _ in 0..3_000 {
        let mut text = String::new();
        for _ in 0..(state >> 60) + 4 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            text.push(alphabet[(state >> 33) as usize % alphabet.len()]);
        }
        let key = normalize(&text);
        assert_eq!(normalize(&key), key, "{text}");
        assert!(equivalent(&text, &key), "{text} {key}");
        let _ = equivalent_text(&text, &key);
    }
}

#[test]
fn random_rationals_agree_in_every_form() {
    let mut state = 1_u64;
    for _ in 0..2_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (n, d) = ((state >> 33) % 2_000, (state >> 50) % 500 + 1);
        let reference = format!("{n}/{d}");
        for form in [
            format!("\\frac{{{n}}}{{{d}}}"),
            format!("$\\dfrac{{{}}}{{{}}}$", 3 * n, 3 * d),
            format!("x = -\\frac{{-{n}}}{{{d}}}"),
            format!("{n} \\div {d}"),
            format!("{n} \\cdot {d}^{{-1}}"),
        ] {
            assert_eq!(normalize(&form), normalize(&reference), "{form}");
        }
        assert!(!equivalent(&format!("{}/{d}", n + 1), &reference));
    }
}

#[test]
fn texts() {
    assert!(equivalent_text("so \\boxed{\\frac{1}{2}}", "0.5"));
    assert!(equivalent_text("The answer is $1,234$ dollars.", "1234"));
    assert!(!equivalent_text("no idea", "5"));
}
