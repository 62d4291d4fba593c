//! Formats of answers, a file each. A format reads the typed events of [`super::answer::event`] and
//! writes JSON; it asks nobody anything.

mod chat;
mod completions;
pub(super) mod envelope;
pub(super) mod format;
mod offsets;
pub(super) mod responses;
#[cfg(test)]
mod tests;

use envelope::Head;
use format::Format;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Chat,
    Completions,
}

impl Wire {
    /// A new answer's id.
    pub fn new_id(self) -> String {
        self.id(&uuid::Uuid::new_v4().simple().to_string())
    }

    /// The id of an answer whose request has a name.
    pub fn id(self, name: &str) -> String {
        let prefix = match self {
            Self::Chat => chat::ID_PREFIX,
            Self::Completions => completions::ID_PREFIX,
        };
        format!("{prefix}-{name}")
    }

    /// The writer of one answer.
    pub fn format(self, head: Head) -> Box<dyn Format> {
        match self {
            Self::Chat => Box::new(chat::ChatFormat::new(head)),
            Self::Completions => Box::new(completions::CompletionsFormat::new(head)),
        }
    }
}
