//! Values of flags: how they are written and how large they may be.

use std::path::PathBuf;

use crate::engine::Speculative;
use crate::model::Quantization;

/// Longest duration that a flag may name, ten years: a point in time so far away can still be told.
pub(super) const MAX_SECONDS: u64 = 10 * 365 * 24 * 3600;
pub(super) const MAX_MILLISECONDS: u64 = 1000 * MAX_SECONDS;
/// Longest time that traces may be kept, a hundred years.
pub(super) const MAX_DAYS: u64 = 100 * 365;

pub(super) fn parse_speculative(text: &str) -> Result<Speculative, String> {
    let names = Speculative::ALL.map(Speculative::name).join(", ");
    Speculative::from_name(text).ok_or_else(|| format!("choose one of {names}"))
}

pub(super) fn parse_quantization(text: &str) -> Result<Quantization, String> {
    let names = Quantization::ALL.map(Quantization::name).join(", ");
    Quantization::from_name(text).ok_or_else(|| format!("choose one of {names}"))
}

/// `NAME=FOLDER`
pub(super) fn parse_module(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(folder)))
        }
        _ => Err(format!("{text:?} is not NAME=FOLDER")),
    }
}

/// `512M`, `4G`, `1000000`
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        other => return Err(format!("unknown unit {other:?}; use K, M or G")),
    };
    let value: f64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size"))?;
    let bytes = value * (1_u64 << unit) as f64;
    if !(1.0..1e15).contains(&bytes) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("77"), Ok(77));
        for bad in ["", "M", "5X", "-1", "1e30"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_durations_can_be_added_to_now() {
        let seconds = MAX_SECONDS.max(MAX_MILLISECONDS / 1000);
        let longest = Duration::from_secs(seconds);
        assert!(Instant::now().checked_add(longest).is_some());
        let longest = Duration::from_secs(MAX_DAYS * 24 * 3600);
        assert!(SystemTime::now().checked_add(longest).is_some());
    }
}
