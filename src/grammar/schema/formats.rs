//! Formats of strings as patterns, and what patterns may be.
//!
//! llguidance's own formats have no longest text, and accept dates that there are not.

use llguidance::derivre::{RegexAst, RegexBuilder};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use crate::grammar::limits::MAX_REGEX_BYTES;

macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
            "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            // Leap years.
            "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}

macro_rules! time {
    () => {
        concat!(
            "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?",
            "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

macro_rules! byte {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

macro_rules! label {
    () => {
        "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
    };
}

macro_rules! url {
    () => {
        "[a-zA-Z0-9._~!$&'()*+,;=:@-]"
    };
}

/// Formats and their patterns. Each format is a part of what its standard allows.
const FORMATS: [(&str, &str); 11] = [
    ("date", concat!("^", date!(), "$")),
    ("time", concat!("^", time!(), "$")),
    ("date-time", concat!("^", date!(), "T", time!(), "$")),
    (
        "duration",
        concat!(
            "^P(?:[0-9]{1,4}W|[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?",
            "|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}D",
            "|(?:[0-9]{1,4}D)?T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?",
            "|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))$"
        ),
    ),
    (
        "email",
        concat!(
            "^[a-zA-Z0-9_+-]{1,20}(?:\\.[a-zA-Z0-9_+-]{1,20}){0,2}@",
            label!(),
            "(?:\\.",
            label!(),
            "){1,3}$"
        ),
    ),
    (
        "hostname",
        concat!("^", label!(), "(?:\\.", label!(), "){0,4}$"),
    ),
    ("ipv4", concat!("^(?:", byte!(), "\\.){3}", byte!(), "$")),
    (
        "ipv6",
        concat!(
            "^(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}",
            "|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}",
            "|(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){2}",
            "|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){3}",
            "|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){4}",
            "|[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}",
            "|:(?::[0-9a-fA-F]{1,4}){1,7}|::|(?:[0-9a-fA-F]{1,4}:){1,7}:)$"
        ),
    ),
    (
        "uuid",
        "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    ),
    (
        "uri",
        concat!(
            "^[a-z][a-z0-9+-]{1,15}://",
            label!(),
            "(?:\\.",
            label!(),
            "){0,4}(?::[0-9]{1,4})?(?:/",
            url!(),
            "{0,60}){0,8}(?:\\?",
            url!(),
            "{0,200})?(?:#",
            url!(),
            "{0,60})?$"
        ),
    ),
    // llguidance's name for no format.
    ("unknown", ""),
];

/// Replaces the format of strings by a pattern.
pub(super) fn replace(map: &mut Map<String, Value>, strict: bool) -> Result<(), String> {
    check_patterns(map, strict)?;
    let Some(format) = map.get("format") else {
        return Ok(());
    };
    let Some(format) = format.as_str().map(str::to_owned) else {
        return Err("format is a string".to_owned());
    };
    map.remove("format");
    // `int32` and others of numbers are annotations.
    if !may_be_string(map) {
        return Ok(());
    }
    match FORMATS.iter().find(|(name, _)| *name == format) {
        Some((_, "")) => {}
        Some((_, pattern)) => add_pattern(map, pattern),
        None if strict => {
            let known: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "the format {format:?} is not supported with strict; supported are {}",
                known[..known.len() - 1].join(", ")
            ));
        }
        None => {}
    }
    Ok(())
}

fn may_be_string(map: &Map<String, Value>) -> bool {
    match map.get("type") {
        None => true,
        Some(Value::Array(types)) => types.contains(&json!("string")),
        Some(one) => one == "string",
    }
}

/// A string matches the pattern beside all else that the schema says.
fn add_pattern(map: &mut Map<String, Value>, pattern: &str) {
    if !map.contains_key("pattern") {
        map.insert("pattern".to_owned(), json!(pattern));
        return;
    }
    let also = json!({"pattern": pattern});
    match map.get_mut("allOf") {
        Some(Value::Array(all)) => all.push(also),
        _ => {
            map.insert("allOf".to_owned(), json!([also]));
        }
    }
}

fn check_patterns(map: &mut Map<String, Value>, strict: bool) -> Result<(), String> {
    let Some(pattern) = map.get("pattern") else {
        return Ok(());
    };
    let Some(pattern) = pattern.as_str() else {
        return Err("pattern is a string".to_owned());
    };
    match check_pattern(pattern) {
        Ok(()) => Ok(()),
        // A pattern that is too long stays an error.
        Err(error) if strict || pattern.len() > MAX_REGEX_BYTES => Err(error),
        Err(_) => {
            map.remove("pattern");
            Ok(())
        }
    }
}

/// Whether a pattern can be enforced: no look-around, no back references.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_REGEX_BYTES {
        return Err(format!(
            "a pattern has {} bytes; at most {MAX_REGEX_BYTES} are allowed",
            pattern.len()
        ));
    }
    let pattern_of_lark = regex_to_lark(pattern, "dw");
    let built = RegexBuilder::new().mk(&RegexAst::SearchRegex(pattern_of_lark));
    match built {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "the pattern {pattern:?} is not supported: {}",
            error.to_string().lines().last().unwrap_or("invalid")
        )),
    }
}
