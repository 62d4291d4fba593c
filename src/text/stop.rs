//! Stop strings over a stream of text pieces.

/// Text that may be shown, and the stop string that ended it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    pub text: String,
    pub stopped: Option<String>,
}

/// Holds back only what could still become a stop string.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Whether the stop string itself is part of the answer.
    include_stop: bool,
    held: String,
}

impl StopMatcher {
    /// Empty stop strings are ignored.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            include_stop,
            held: String::new(),
        }
    }

    /// Adds a piece. After a stop nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, stop.len()));
        if let Some((at, stop)) = first {
            let end = if self.include_stop {
                at + stop.len()
            } else {
                at
            };
            return StopOutcome {
                text: self.held[..end].to_owned(),
                stopped: Some(stop.clone()),
            };
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let text = self.held.drain(..self.held.len() - keep).collect();
        StopOutcome {
            text,
            stopped: None,
        }
    }

    /// The text still held back when the answer ends.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a proper prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|len| stop.is_char_boundary(*len) && text.ends_with(&stop[..*len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[String], pieces: &[String]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec(), false);
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text.push_str(&outcome.text);
            if outcome.stopped.is_some() {
                return (text, outcome.stopped);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    proptest! {
        /// Cutting the text into pieces never changes where it stops.
        #[test]
        fn equals_a_search_in_the_whole_text(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let whole = pieces.concat();
            // The stop that is complete first wins, then the one that begins first.
            let first = stops.iter()
                .filter_map(|stop| whole.find(stop.as_str()).map(|at| (at, stop)))
                .map(|(at, stop)| (at + stop.len(), at))
                .min();
            let (text, stopped) = run(&stops, &pieces);
            match first {
                None => prop_assert_eq!((text, stopped), (whole, None)),
                Some((end, _)) => {
                    let stop = stopped.unwrap();
                    prop_assert!(text.len() <= end);
                    let seen = format!("{text}{stop}");
                    prop_assert!(whole.starts_with(&seen));
                    let earlier = stops.iter().any(|other| text.contains(other.as_str()));
                    prop_assert!(!earlier);
                }
            }
        }
    }

    #[test]
    fn holds_back_only_possible_prefixes() {
        let mut matcher = StopMatcher::new(vec!["<end>".to_owned()], true);
        assert_eq!(matcher.push("a <e").text, "a ");
        assert_eq!(matcher.push("x").text, "<ex");
        let outcome = matcher.push("<end> more");
        assert_eq!(
            (outcome.text.as_str(), outcome.stopped.as_deref()),
            ("<end>", Some("<end>"))
        );
    }
}
