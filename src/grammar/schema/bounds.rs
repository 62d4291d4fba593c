//! Numbers in schemas: those that cannot be written, and those that cost too much.

use serde_json::{Map, Number, Value, json};

use crate::grammar::limits::{MAX_DIGITS, MAX_REPETITIONS};

/// Integers up to here are exact as floating-point numbers, which llguidance calculates with.
const MAX_EXACT: f64 = 9_007_199_254_740_991.0;
/// Larger factors overflow in llguidance.
const MAX_FACTOR: f64 = 1e6;
const MAX_FACTOR_DECIMALS: usize = 6;

const LEAST: [&str; 3] = ["minItems", "minLength", "minProperties"];
const MOST: [&str; 3] = ["maxItems", "maxLength", "maxProperties"];
const LOWER: [&str; 2] = ["minimum", "exclusiveMinimum"];
const UPPER: [&str; 2] = ["maximum", "exclusiveMaximum"];

pub(super) fn check(map: &mut Map<String, Value>, strict: bool) -> Result<(), String> {
    for keyword in LEAST.into_iter().chain(MOST) {
        let Some(value) = map.get(keyword) else {
            continue;
        };
        // 3.0 is an integer, too.
        let whole = value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0);
        let Some(whole) = whole else {
            return Err(format!("{keyword} is an integer that is not negative"));
        };
        let whole = whole as u64;
        let is_least = LEAST.contains(&keyword);
        if is_least && whole > MAX_REPETITIONS {
            return Err(format!("{keyword} is at most {MAX_REPETITIONS}"));
        }
        // No answer is that long.
        match whole > u64::from(u32::MAX) / 2 {
            true => map.remove(keyword),
            false => map.insert(keyword.to_owned(), json!(whole)),
        };
    }
    for keyword in LOWER.into_iter().chain(UPPER) {
        check_bound(map, keyword)?;
    }
    check_factor(map, strict)
}

/// A bound that floating-point numbers do not have exactly is drawn nearer to zero.
fn check_bound(map: &mut Map<String, Value>, keyword: &str) -> Result<(), String> {
    let bound = match map.get(keyword) {
        None | Some(Value::Bool(_)) => return Ok(()),
        Some(Value::Number(number)) => number.clone(),
        Some(_) => return Err(format!("{keyword} is a number")),
    };
    let value = bound.as_f64().unwrap_or(f64::NAN);
    if LOWER.contains(&keyword) && value < -MAX_EXACT {
        map.insert(keyword.to_owned(), json!(-MAX_EXACT as i64));
        return Ok(());
    }
    if UPPER.contains(&keyword) && value > MAX_EXACT {
        map.insert(keyword.to_owned(), json!(MAX_EXACT as i64));
        return Ok(());
    }
    check_number(&bound).map_err(|error| format!("{keyword}: {error}"))
}

fn check_factor(map: &mut Map<String, Value>, strict: bool) -> Result<(), String> {
    let Some(factor) = map.get("multipleOf") else {
        return Ok(());
    };
    let Some(value) = factor.as_f64().filter(|value| *value > 0.0) else {
        return Err("multipleOf is a number above zero".to_owned());
    };
    let text = format!("{value}");
    let decimals = text.split('.').nth(1).map_or(0, str::len);
    // The decimals as llguidance finds them.
    let scaled = value * 10f64.powi(decimals as i32);
    let is_exact = decimals <= MAX_FACTOR_DECIMALS && scaled <= MAX_FACTOR;
    if is_exact {
        return Ok(());
    }
    if strict {
        return Err(format!(
            "the keyword \"multipleOf\" is supported with strict up to {MAX_FACTOR} and {MAX_FACTOR_DECIMALS} decimals"
        ));
    }
    map.remove("multipleOf");
    Ok(())
}

/// Numbers in a constant, and `see` for its strings.
pub(super) fn check_value(value: &Value, see: &mut dyn FnMut(&str)) -> Result<(), String> {
    match value {
        Value::Number(number) => check_number(number),
        Value::String(text) => {
            see(text);
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, see)),
        Value::Object(map) => map.iter().try_for_each(|(name, item)| {
            see(name);
            check_value(item, see)
        }),
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

/// Whether a number can be written exactly as llguidance writes it, within the bound on digits.
fn check_number(number: &Number) -> Result<(), String> {
    let value = number.as_f64().unwrap_or(f64::NAN);
    let is_large = number.is_i64() || number.is_u64();
    let text = format!("{value}");
    let is_short = text
        .split(['.', '-'])
        .all(|digits| digits.len() <= MAX_DIGITS);
    if !value.is_finite() || !is_short || (is_large && value.abs() > MAX_EXACT) {
        return Err(format!("the number {number} has too many digits"));
    }
    Ok(())
}
