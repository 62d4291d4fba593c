//! What was found, and how it is told.

use std::io::Write;

use serde::Serialize;
use serde_json::json;

use crate::cli::terminal::has_colours;

/// Columns of a level's and of a check's name.
const LEVEL_WIDTH: usize = 8;
const CHECK_WIDTH: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// Something is slower, or a part of Ponder does not work.
    Warning,
    /// A server does not start, or nothing can be served.
    Fault,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }

    /// As terminals name it.
    fn colour(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Warning => 33,
            Self::Fault => 31,
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, found)
        }
    }

    pub fn fault(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fault,
            ..Self::warning(check, found, advice)
        }
    }

    fn line(&self, is_coloured: bool) -> String {
        let name = format!("{:LEVEL_WIDTH$}", self.level.name());
        let name = match is_coloured {
            true => format!("\x1b[{}m{name}\x1b[0m", self.level.colour()),
            false => name,
        };
        let mut line = format!("{name} {:CHECK_WIDTH$} {}\n", self.check, self.found);
        if let Some(advice) = &self.advice {
            line += &format!("{:1$} → {advice}\n", "", LEVEL_WIDTH + CHECK_WIDTH);
        }
        line
    }
}

pub(super) fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|it| it.level == level).count()
}

/// Prints the findings, one a line or as JSON.
pub(super) fn print(findings: &[Finding], as_json: bool) -> anyhow::Result<()> {
    let mut text = String::new();
    if as_json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "faults": count(findings, Level::Fault),
            "warnings": count(findings, Level::Warning),
            "checks": serde_json::to_value(findings)?,
        });
        text = format!("{report:#}\n");
    } else {
        let is_coloured = has_colours(&std::io::stdout());
        for finding in findings {
            text += &finding.line(is_coloured);
        }
    }
    // Whoever reads it may have enough (`head`).
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_found_and_the_next_what_to_do() {
        let fine = Finding::ok("disk", "12 GB free");
        assert_eq!(fine.line(false), "ok       disk       12 GB free\n");
        let full = Finding::warning("disk", "1 MB free", "remove something");
        assert_eq!(
            full.line(false),
            "warning  disk       1 MB free\n                   → remove something\n"
        );
        assert!(full.line(true).starts_with("\x1b[33mwarning \x1b[0m disk"));
        let findings = [fine, full, Finding::fault("port", "taken", "take another")];
        assert_eq!(count(&findings, Level::Fault), 1);
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(json[2]["level"], "fault");
        assert_eq!(json[0]["advice"], serde_json::Value::Null);
    }
}
