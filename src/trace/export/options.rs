//! What is exported, and how.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The shape of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The records themselves.
    #[default]
    Tree,
    /// Right answers, for supervised fine-tuning.
    Sft,
    /// Steps with their values and labels, for value models and process reward models.
    StepValues,
    /// A better and a worse continuation of the same prompt.
    Preferences,
    /// A search as one chain of thought that turns back from wrong branches.
    Linearised,
    /// All answers of a prompt with their rewards.
    Groups,
}

impl Format {
    pub const ALL: [Self; 6] = [
        Self::Tree,
        Self::Sft,
        Self::StepValues,
        Self::Preferences,
        Self::Linearised,
        Self::Groups,
    ];

    /// As it is written on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Sft => "sft",
            Self::StepValues => "step_values",
            Self::Preferences => "preferences",
            Self::Linearised => "linearised",
            Self::Groups => "groups",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("the format must be one of {names}")
        })
    }
}

/// What a preference is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Whole answers.
    #[default]
    Answer,
    /// Steps that continue the same text.
    Step,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// The least gap between the scores of a pair.
    pub min_margin: f64,
    /// Most rows of one prompt over the whole export.
    pub max_per_prompt: Option<usize>,
    /// A row whose content was exported before is left out.
    pub deduplicate: bool,
    pub level: Level,
    /// Wrong branches that a linearised walk visits before the right answer.
    pub max_wrong_branches: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            min_margin: 0.3,
            max_per_prompt: None,
            deduplicate: true,
            level: Level::Answer,
            max_wrong_branches: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(serde_json::json!(format), format.name());
        }
        assert_eq!(
            "Tree".parse::<Format>(),
            Err(
                "the format must be one of tree, sft, step_values, preferences, linearised, groups"
                    .to_owned()
            )
        );
    }
}
