//! Evaluates one arithmetic expression, in LaTeX or plain text, with a bound on nesting.

use super::num::{Num, decimal, ratio};
use std::f64::consts::{E, PI};

const MAX_DEPTH: u32 = 64;
const NAMES: &str = "sqrt sin cos tan log ln exp pi";
const GREEK: &str = "alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi omega";

/// The value of `text`, cleaned. Variables have a value fixed by their name at each `point`, and
/// none without one. `None` where `text` is no expression or has no finite value.
pub(crate) fn eval(text: &str, point: Option<u64>) -> Option<Num> {
    let mut parser = Parser {
        chars: text.chars().collect(),
        at: 0,
        depth: 0,
        point,
    };
    let value = parser.sum()?;
    parser.peek().is_none().then_some(value)
}

/// Whether letters in `text` read as variables: no words, and more than letters unless one letter.
pub(crate) fn is_expression(text: &str) -> bool {
    let letters_only = text.chars().all(|c| c.is_alphabetic() || c == ' ');
    if letters_only && text.len() != 1 {
        return false;
    }
    let mut rest = text.to_owned();
    for name in NAMES.split_whitespace() {
        rest = rest.replace(name, " ");
    }
    let mut parts = rest.split('\\');
    let plain = parts.next().into_iter();
    let after = parts.map(|p| p.trim_start_matches(|c: char| c.is_ascii_alphabetic()));
    let mut runs = plain
        .chain(after)
        .flat_map(|p| p.split(|c: char| !c.is_alphabetic()));
    runs.all(|run| run.len() < 4)
}

/// The value of a variable at a point, from a hash: of size 0.3 to 2.3, negative at some points.
fn variable(name: &str, point: u64) -> Num {
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = hash.wrapping_add((point + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let size = 0.3 + 2.0 * ((hash >> 11) as f64 / (1_u64 << 53) as f64);
    // Negative values tell |x| from x, but leave roots undefined, so most points have none.
    let negative = point == 3 || point == 4 && hash & 1 == 1;
    Num::R(if negative { -size } else { size })
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: u32,
    point: Option<u64>,
}

impl Parser {
    fn peek(&mut self) -> Option<char> {
        while self.here().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
        self.here()
    }

    fn here(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    fn run(&mut self, accept: impl Fn(&char) -> bool) -> String {
        let run: String = self
            .chars
            .iter()
            .skip(self.at)
            .take_while(|c| accept(c))
            .collect();
        self.at += run.chars().count();
        run
    }

    fn digits(&mut self) -> String {
        self.run(char::is_ascii_digit)
    }

    /// Runs `rule` one level deeper, so that hostile nesting cannot exhaust the stack.
    fn deeper(&mut self, rule: impl FnOnce(&mut Self) -> Option<Num>) -> Option<Num> {
        self.depth += 1;
        let value = if self.depth > MAX_DEPTH {
            None
        } else {
            rule(self)
        };
        self.depth -= 1;
        value
    }

    fn sum(&mut self) -> Option<Num> {
        let mut value = self.product()?;
        loop {
            value = if self.eat('+') {
                value.add(self.product()?)?
            } else if self.eat('-') {
                value.add(self.product()?.neg())?
            } else {
                return Some(value);
            };
        }
    }

    fn product(&mut self) -> Option<Num> {
        let mut value = self.signed()?;
        loop {
            value = if self.eat('*') {
                value.mul(self.signed()?)?
            } else if self.eat('/') {
                value.div(self.signed()?)?
            } else if self
                .peek()
                .is_some_and(|c| c.is_ascii_alphabetic() || "(π\\".contains(c))
            {
                value.mul(self.power()?)?
            } else {
                return Some(value);
            };
        }
    }

    fn signed(&mut self) -> Option<Num> {
        let mut negative = false;
        while let Some(c @ ('+' | '-')) = self.peek() {
            negative ^= c == '-';
            self.at += 1;
        }
        let value = self.power()?;
        Some(if negative { value.neg() } else { value })
    }

    fn power(&mut self) -> Option<Num> {
        let mut base = self.deeper(Self::atom)?;
        while self.eat('!') {
            base = base.factorial()?;
        }
        if self.eat('^') {
            let exponent = self.deeper(Self::signed)?;
            return base.pow(exponent);
        }
        Some(base)
    }

    fn atom(&mut self) -> Option<Num> {
        let c = self.peek()?;
        if c.is_ascii_digit() || c == '.' {
            return self.number();
        }
        if c.is_ascii_alphabetic() || c == '\\' {
            return self.named();
        }
        self.at += 1;
        match c {
            '(' => self.until(')'),
            '[' => self.until(']'),
            '{' => self.until('}'),
            '|' => self
                .until('|')
                .map(|v| if v.float() < 0.0 { v.neg() } else { v }),
            'π' => Some(Num::R(PI)),
            '≈' => self.signed().map(|v| Num::R(v.float())),
            _ => None,
        }
    }

    fn until(&mut self, close: char) -> Option<Num> {
        let value = self.sum()?;
        self.eat(close).then_some(value)
    }

    fn number(&mut self) -> Option<Num> {
        let whole = self.digits();
        let mut part = String::new();
        if self.here() == Some('.') {
            self.at += 1;
            part = self.digits();
        }
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        if let Some(exponent) = self.exponent() {
            return decimal(&whole, &part, exponent);
        }
        let value = decimal(&whole, &part, 0)?;
        match self.mixed().filter(|_| part.is_empty()) {
            Some(fraction) => value.add(fraction),
            None => Some(value),
        }
    }

    /// The exponent of `1.2e3`, `1e-3`.
    fn exponent(&mut self) -> Option<i32> {
        let start = self.at;
        self.here().filter(|c| "eE".contains(*c))?;
        self.at += 1;
        let sign = self.run(|c| "+-".contains(*c));
        let digits = self.digits();
        if sign.len() > 1 || digits.is_empty() {
            self.at = start;
            return None;
        }
        // An exponent too long to read has no finite value either.
        let size = digits.parse().unwrap_or(i32::MAX);
        Some(if sign == "-" { -size } else { size })
    }

    /// The fraction below one after a whole number: `1\frac{1}{2}` or `1 1/2`.
    fn mixed(&mut self) -> Option<Num> {
        let start = self.at;
        let spaced = self.here().is_some_and(char::is_whitespace);
        let latex = self.eat('\\');
        let found = if latex {
            let frac = self.run(char::is_ascii_alphabetic) == "frac";
            frac.then(|| (self.plain(), self.plain()))
        } else if spaced && self.peek().is_some() {
            let top = self.digits();
            self.eat('/').then(|| (top, self.digits()))
        } else {
            None
        };
        let parse = |(n, d): (String, String)| Some((n.parse().ok()?, d.parse().ok()?));
        let below_one = |(n, d): &(i128, i128)| 0 < *n && n < d;
        let parts = found.and_then(parse).filter(below_one);
        if parts.is_none() {
            self.at = start;
        }
        parts.and_then(|(n, d)| ratio(n, d))
    }

    /// The digits of one argument: `{12}`, or one digit.
    fn plain(&mut self) -> String {
        if self.eat('{') {
            let digits = self.digits();
            return if self.eat('}') { digits } else { String::new() };
        }
        let digit = self.peek().filter(char::is_ascii_digit);
        self.at += usize::from(digit.is_some());
        String::from_iter(digit)
    }

    fn named(&mut self) -> Option<Num> {
        let latex = self.eat('\\');
        let start = self.at;
        let mut name = self.run(char::is_ascii_alphabetic);
        if !latex {
            let known = NAMES.split_whitespace().find(|n| name.starts_with(n));
            name = known.map_or_else(|| name.chars().take(1).collect(), str::to_owned);
            self.at = start + name.len();
        }
        match name.as_str() {
            "frac" => self.argument()?.div(self.argument()?),
            "binom" => self.binomial(),
            "sqrt" => {
                let indexed = self.eat('[').then(|| self.until(']'));
                let degree = indexed.unwrap_or(Some(Num::Q(2, 1)))?;
                let number = self.peek().is_some_and(|c| c.is_ascii_digit());
                let inner = if number {
                    self.number()
                } else {
                    self.deeper(Self::atom)
                };
                inner?.root(degree)
            }
            "pi" => Some(Num::R(PI)),
            n if NAMES.split_whitespace().any(|f| f == n) => self.function(n),
            n if n.len() == 1 || GREEK.split_whitespace().any(|g| g == n) => self.letter(name),
            _ => None,
        }
    }

    /// One LaTeX argument: a group, one digit, or one atom.
    fn argument(&mut self) -> Option<Num> {
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return decimal(&self.plain(), "", 0);
        }
        self.deeper(Self::atom)
    }

    fn binomial(&mut self) -> Option<Num> {
        let (Num::Q(n @ 0..=1000, 1), Num::Q(k, 1)) = (self.argument()?, self.argument()?) else {
            return None;
        };
        (0..k.min(n)).try_fold(Num::Q(i128::from(k <= n && k >= 0), 1), |c, i| {
            c.mul(ratio(n - i, i + 1)?)
        })
    }

    /// `sin 2x`, `\sin^2 x`, `\log_2 8`: the argument is a group, or a power times letters.
    fn function(&mut self, name: &str) -> Option<Num> {
        let base = match self.eat('_') {
            true => self.argument()?.float(),
            false => 10.0,
        };
        let power = match self.eat('^') {
            true => self.argument()?,
            false => Num::Q(1, 1),
        };
        let grouped = self.peek().is_some_and(|c| "({".contains(c));
        let mut inner = self.deeper(if grouped { Self::atom } else { Self::signed })?;
        let letter = |c: char| c == 'π' || c.is_ascii_alphabetic();
        while !grouped && self.peek().is_some_and(letter) {
            inner = inner.mul(self.power()?)?;
        }
        let x = inner.float();
        let value = match name {
            "sin" => x.sin(),
            "cos" => x.cos(),
            "tan" => x.tan(),
            "exp" => x.exp(),
            "ln" => x.ln(),
            _ => x.ln() / base.ln(),
        };
        // The sine of π is a rounding error, not a number.
        let value = if value.abs() < 1e-15 { 0.0 } else { value };
        Num::real(value)?.pow(power)
    }

    fn letter(&mut self, mut name: String) -> Option<Num> {
        // Alone, the letter is more likely a choice than Euler's number.
        if name == "e" && self.chars.len() > 1 && self.here() != Some('_') {
            return Some(Num::R(E));
        }
        let point = self.point?;
        if self.here() == Some('_') {
            self.at += 1;
            let group = self.eat('{');
            let index = self.run(char::is_ascii_alphanumeric);
            if index.is_empty() || group && !self.eat('}') || !group && index.len() > 1 {
                return None;
            }
            name = name + "_" + &index;
        }
        Some(variable(&name, point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let table = [
            ("1+2*3-4/2", Num::Q(5, 1)),
            ("-2^2", Num::Q(-4, 1)),
            ("2^3^2", Num::Q(512, 1)),
            ("6/2(1+2)", Num::Q(9, 1)),
            ("--3", Num::Q(3, 1)),
            ("2^-1", Num::Q(1, 2)),
            ("3 1/4", Num::Q(13, 4)),
            ("3\\frac{4}{2}", Num::Q(6, 1)),
            ("1.5e-3", Num::Q(3, 2000)),
            ("\\sqrt{\\sqrt{16}}", Num::Q(2, 1)),
            ("\\sqrt[3]{-8}", Num::Q(-2, 1)),
            ("\\log_{2}8", Num::Q(3, 1)),
            ("ln(exp 2)", Num::Q(2, 1)),
            ("\\sin π + 4!", Num::Q(24, 1)),
            ("ln(e^2)", Num::Q(2, 1)),
            ("exp(2)/e^2", Num::Q(1, 1)),
        ];
        for (text, want) in table {
            assert_eq!(eval(text, None).map(Num::snapped), Some(want), "{text}");
        }
    }

    #[test]
    fn no_values() {
        for text in [
            "", "1/0", "0^-1", "2 3", "x", "1+", "(1", "1)", "9^9^9^9", "171!", "1.2.3", "\\foo",
        ] {
            assert_eq!(eval(text, None), None, "{text}");
        }
        assert!(eval("2x_1", Some(0)).is_some());
        assert!(!is_expression("dear") && !is_expression("3 cats") && is_expression("3xy"));
    }
}
