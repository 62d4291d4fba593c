//! The parameters of the traces' routes.

use axum::extract::Query;

use crate::api::error::ApiError;
use crate::api::tenant::TraceScope;
use crate::trace::{ExportOptions, Filter, Format, Level, Order};

/// Traces of one list.
const DEFAULT_LIMIT: usize = 20;
pub(in crate::api) const MAX_LIMIT: usize = 1000;

/// Parameters of one URL.
const MAX_PAIRS: usize = 64;
/// Longest value of one, in bytes; no tag or name that is kept is longer.
const MAX_VALUE_BYTES: usize = 4096;
/// What an error repeats of a value.
const MAX_QUOTED_CHARS: usize = 64;
/// Most detours of a walk that may be asked for.
pub(in crate::api) const MAX_WRONG_BRANCHES: u64 = 1000;

/// Name and value of each parameter of the URL.
pub(super) type Pairs = Query<Vec<(String, String)>>;

/// What of the store is meant, and in which shape.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TraceQuery {
    pub filter: Filter,
    pub order: Order,
    pub after: Option<Cursor>,
    pub limit: Option<u64>,
    pub follow: bool,
    pub format: Format,
    pub options: ExportOptions,
    /// Whether rows say which traces are damaged.
    pub tells_skipped: bool,
}

/// A place in the stream: behind a trace, or behind one of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub seq: u64,
    pub row: Option<usize>,
}

impl Cursor {
    /// The first trace to read.
    pub fn from(self) -> u64 {
        match self.row {
            Some(_) => self.seq,
            None => self.seq.saturating_add(1),
        }
    }

    /// Rows of trace `seq` that were read already.
    pub fn skip(self, seq: u64) -> usize {
        match self.row {
            Some(row) if seq == self.seq => row.saturating_add(1),
            _ => 0,
        }
    }

    /// Takes any text.
    pub fn parse(text: &str) -> Option<Self> {
        let (seq, row) = match text.split_once('-') {
            Some((seq, row)) => (seq, Some(row.parse().ok()?)),
            None => (text, None),
        };
        // The store's numbers are signed.
        let seq = seq.parse().ok().filter(|seq| *seq <= i64::MAX as u64)?;
        Some(Self { seq, row })
    }
}

fn invalid(name: &str, expected: &str, value: &str) -> ApiError {
    let value = quoted(value);
    ApiError::invalid(name, format!("{name} must be {expected}, not {value:?}"))
}

/// The beginning of what a client wrote.
fn quoted(text: &str) -> &str {
    let end = text.char_indices().nth(MAX_QUOTED_CHARS);
    end.map_or(text, |(end, _)| &text[..end])
}

/// Reads the query of a URL as the stream's route would, for any text: whether it was taken.
#[doc(hidden)]
pub fn check_query(text: &str) -> bool {
    let Ok(uri) = axum::http::Uri::builder()
        .path_and_query(format!("/?{text}"))
        .build()
    else {
        return false;
    };
    let pairs = Pairs::try_from_uri(&uri);
    let query = pairs.map(|pairs| TraceQuery::parse(&pairs, TraceScope(None), &STREAM_PARAMETERS));
    query.is_ok_and(|query| query.is_ok())
}

/// What the stream takes beside filters.
pub(super) const STREAM_PARAMETERS: [&str; 10] = [
    "format",
    "after",
    "follow",
    "limit",
    "deduplicate",
    "max_per_prompt",
    "min_margin",
    "level",
    "max_wrong_branches",
    "skipped",
];

fn parsed<T: std::str::FromStr>(name: &str, value: &str, expected: &str) -> Result<T, ApiError> {
    value.parse().map_err(|_| invalid(name, expected, value))
}

fn number(name: &str, value: &str) -> Result<f64, ApiError> {
    let number: f64 = parsed(name, value, "a number")?;
    match number.is_finite() {
        true => Ok(number),
        false => Err(invalid(name, "a finite number", value)),
    }
}

fn whole(name: &str, value: &str) -> Result<u64, ApiError> {
    let number: u64 = parsed(name, value, "a whole number")?;
    match i64::try_from(number) {
        Ok(_) => Ok(number),
        Err(_) => Err(invalid(name, "a smaller number", value)),
    }
}

fn truth(name: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(invalid(name, "true or false", value)),
    }
}

impl TraceQuery {
    /// Checks every parameter; `allowed` are those that the route takes beside filters.
    pub fn parse(pairs: &Pairs, scope: TraceScope, allowed: &[&str]) -> Result<Self, ApiError> {
        let mut query = Self::default();
        query.filter.owner = scope.0;
        if pairs.0.len() > MAX_PAIRS {
            let message = format!("a URL takes at most {MAX_PAIRS} parameters");
            return Err(ApiError::invalid("query", message));
        }
        for (name, value) in &pairs.0 {
            // The SDKs write a list as `tag[]=a&tag[]=b`.
            let name = quoted(name.strip_suffix("[]").unwrap_or(name));
            if value.len() > MAX_VALUE_BYTES {
                let message = format!("{name} takes at most {MAX_VALUE_BYTES} bytes");
                return Err(ApiError::invalid(name, message));
            }
            if !query.take_filter(name, value)? {
                if !allowed.contains(&name) {
                    let message = format!("there is no parameter {name} here");
                    return Err(ApiError::invalid(name, message));
                }
                query.take_other(name, value)?;
            }
        }
        Ok(query)
    }

    fn take_filter(&mut self, name: &str, value: &str) -> Result<bool, ApiError> {
        let filter = &mut self.filter;
        match name {
            "model" => filter.model = Some(value.to_owned()),
            "strategy" => filter.strategy = Some(value.to_owned()),
            "tag" => filter.tags.push(value.to_owned()),
            "min_value" => filter.min_value = Some(number(name, value)?),
            "min_outcome" => filter.min_outcome = Some(number(name, value)?),
            "has_outcome" => filter.has_outcome = Some(truth(name, value)?),
            "created_from" => filter.created_from = Some(whole(name, value)?),
            "created_before" => filter.created_before = Some(whole(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_other(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        let options = &mut self.options;
        match name {
            "after" => {
                let cursor = Cursor::parse(value);
                let cursor = cursor.ok_or_else(|| invalid(name, "a cursor", value))?;
                self.after = Some(cursor);
            }
            "limit" => self.limit = Some(whole(name, value)?),
            "order" => {
                self.order = match value {
                    "desc" => Order::NewestFirst,
                    "asc" => Order::OldestFirst,
                    _ => return Err(invalid(name, "asc or desc", value)),
                }
            }
            "follow" => self.follow = truth(name, value)?,
            "format" => {
                let names = Format::ALL.map(Format::name).join(", ");
                self.format = parsed(name, value, &format!("one of {names}"))?;
            }
            "min_margin" => options.min_margin = number(name, value)?,
            "max_per_prompt" => options.max_per_prompt = Some(whole(name, value)? as usize),
            "deduplicate" => options.deduplicate = truth(name, value)?,
            "level" => {
                options.level = match value {
                    "answer" => Level::Answer,
                    "step" => Level::Step,
                    _ => return Err(invalid(name, "answer or step", value)),
                }
            }
            "max_wrong_branches" => {
                let most = Some(whole(name, value)?).filter(|most| *most <= MAX_WRONG_BRANCHES);
                let expected = format!("0 to {MAX_WRONG_BRANCHES}");
                let most = most.ok_or_else(|| invalid(name, &expected, value))?;
                options.max_wrong_branches = most as usize;
            }
            "skipped" => self.tells_skipped = truth(name, value)?,
            _ => {}
        }
        Ok(())
    }

    /// Traces of one list.
    pub fn list_limit(&self) -> Result<usize, ApiError> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT as u64);
        match usize::try_from(limit) {
            Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            _ => Err(ApiError::invalid(
                "limit",
                format!("limit must be 1 to {MAX_LIMIT}, not {limit}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[(&str, &str)]) -> Result<TraceQuery, ApiError> {
        let pairs = text
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        TraceQuery::parse(
            &Query(pairs.collect()),
            TraceScope(Some(7)),
            &["after", "limit", "format"],
        )
    }

    #[test]
    fn filters_and_cursors_are_read() {
        let query = parse(&[
            ("tag", "a"),
            ("tag[]", "b"),
            ("min_value", "0.5"),
            ("after", "12-3"),
            ("format", "sft"),
        ]);
        let query = query.unwrap();
        assert_eq!(query.filter.tags, ["a", "b"]);
        assert_eq!(query.filter.owner, Some(7));
        assert_eq!(query.format, Format::Sft);
        let cursor = query.after.unwrap();
        assert_eq!(
            (cursor.from(), cursor.skip(12), cursor.skip(13)),
            (12, 4, 0)
        );
        let behind = Cursor::parse("12").unwrap();
        assert_eq!((behind.from(), behind.skip(13)), (13, 0));
    }

    #[test]
    fn mistakes_name_the_parameter() {
        for (name, value) in [
            ("min_value", "high"),
            ("min_value", "nan"),
            ("after", "x"),
            ("after", "1-"),
            ("after", "99999999999999999999"),
            ("limit", "-1"),
            ("format", "csv"),
            ("has_outcome", "maybe"),
            ("follow", "true"),
            ("color", "red"),
            ("tag", "x".repeat(MAX_VALUE_BYTES + 1).as_str()),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.len() < 1000);
        }
        assert!(parse(&vec![("tag", "x"); MAX_PAIRS]).is_ok());
        assert!(parse(&vec![("tag", "x"); MAX_PAIRS + 1]).is_err());
        assert!(check_query("max_wrong_branches=1000&tag=a%20b"));
        assert!(!check_query("max_wrong_branches=1001"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_query_or_an_error(text: String) {
            check_query(&text);
        }

        #[test]
        fn any_text_is_a_cursor_or_none(text in "[0-9-]{0,24}|.*") {
            if let Some(cursor) = Cursor::parse(&text) {
                let from = cursor.from();
                cursor.skip(from);
                proptest::prop_assert!(from >= cursor.seq);
            }
        }
    }
}
