//! Finding marks in a text that comes in pieces.

/// Looks for marks, none of which may be the beginning of another one. Holds back only what may
/// still become one.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    held: String,
}

impl Marks {
    /// Takes a character. `plain` gets what is certainly no mark; the answer is the place in
    /// `marks` of the one that is whole.
    pub fn push(&mut self, marks: &[&str], c: char, plain: &mut String) -> Option<usize> {
        if self.held.is_empty() && !marks.iter().any(|mark| mark.starts_with(c)) {
            plain.push(c);
            return None;
        }
        self.held.push(c);
        while !self.held.is_empty() {
            if let Some(found) = marks.iter().position(|mark| *mark == self.held) {
                self.held.clear();
                return Some(found);
            }
            if marks.iter().any(|mark| mark.starts_with(&self.held)) {
                return None;
            }
            plain.push(self.held.remove(0));
        }
        None
    }

    /// What was held back.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// What has been read of one of several marks that must stand here.
#[derive(Debug, Clone, Default)]
pub(super) struct Tag {
    held: String,
}

/// Whether a text is one of the marks.
pub(super) enum Read {
    Whole(usize),
    Part,
    No,
}

impl Tag {
    /// Takes a character. After [`Read::No`] the character is part of what [`Self::take`] gives.
    pub fn push(&mut self, marks: &[&str], c: char) -> Read {
        self.held.push(c);
        match marks.iter().position(|mark| *mark == self.held) {
            Some(found) => {
                self.held.clear();
                Read::Whole(found)
            }
            None if marks.iter().any(|mark| mark.starts_with(&self.held)) => Read::Part,
            None => Read::No,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
