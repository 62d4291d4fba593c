//! Where samples of a search end.

use super::confidence::ConfidenceRule;
use super::step::StepRule;

/// Where the samples of an expansion end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut<'s> {
    /// With the answer.
    Never,
    /// After one step.
    AfterStep(&'s StepRule),
    /// With the answer, but the ends of its steps are noted.
    NoteSteps(&'s StepRule),
    /// With the answer, or where its confidence falls below the rule's limit.
    Unsure(ConfidenceRule),
}

impl Cut<'_> {
    pub fn step(&self) -> Option<&StepRule> {
        match self {
            Self::AfterStep(rule) => Some(rule),
            Self::Never | Self::NoteSteps(_) | Self::Unsure(_) => None,
        }
    }

    pub fn noted_step(&self) -> Option<&StepRule> {
        match self {
            Self::NoteSteps(rule) => Some(rule),
            Self::Never | Self::AfterStep(_) | Self::Unsure(_) => None,
        }
    }

    pub fn confidence(&self) -> Option<ConfidenceRule> {
        match self {
            Self::Unsure(rule) => Some(*rule),
            Self::Never | Self::AfterStep(_) | Self::NoteSteps(_) => None,
        }
    }
}
