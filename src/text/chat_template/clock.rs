//! `strftime_now` of templates: the date that a conversation begins with.

use std::fmt::Write;
use std::time::SystemTime;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};
use minijinja::{Error, ErrorKind};

/// Now, in UTC, by a format of C's `strftime`. transformers takes the local time; a server's
/// prompts should not depend on where it stands.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, SystemTime::now().into())
}

fn strftime(format: &str, now: DateTime<Utc>) -> Result<String, Error> {
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    let unknown = || {
        let message = format!("strftime_now does not know the format {format:?}");
        Error::new(ErrorKind::InvalidOperation, message)
    };
    if items.contains(&Item::Error) {
        return Err(unknown());
    }
    let mut text = String::new();
    write!(text, "{}", now.format_with_items(items.iter())).map_err(|_| unknown())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_the_format_says() {
        let now = DateTime::from_timestamp(1_709_251_199, 0).unwrap();
        let written = |format| strftime(format, now).unwrap();
        assert_eq!(
            written("%Y-%m-%d %H:%M:%S %A"),
            "2024-02-29 23:59:59 Thursday"
        );
        assert_eq!(
            written("%e %b %y, %a, %-d %B: 100%%"),
            "29 Feb 24, Thu, 29 February: 100%"
        );
        for format in ["%Q", "50%"] {
            let error = strftime(format, now).unwrap_err().to_string();
            assert!(error.contains(format), "{error}");
        }
    }
}
