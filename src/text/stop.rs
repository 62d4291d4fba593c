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
    /// Pieces that are still to come in which no stop string counts.
    num_waiting: usize,
    /// Bytes at the beginning of `held` in which no stop string may end.
    num_exempt: usize,
}

impl StopMatcher {
    /// Empty stop strings are ignored.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            include_stop,
            held: String::new(),
            num_waiting: 0,
            num_exempt: 0,
        }
    }

    /// A stop string counts only where it ends behind the first `num_pieces` pieces: `min_tokens`.
    pub fn after(self, num_pieces: usize) -> Self {
        Self {
            num_waiting: num_pieces,
            ..self
        }
    }

    /// Adds text in which no stop string counts; one may begin in it.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.num_exempt = self.held.len();
        self.release()
    }

    /// Adds a piece. After a stop nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.num_waiting > 0 {
            self.num_waiting -= 1;
            return StopOutcome {
                text: self.pass(piece),
                stopped: None,
            };
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.find(stop).map(|at| (at, stop)))
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
        StopOutcome {
            text: self.release(),
            stopped: None,
        }
    }

    /// The first place of a stop string that ends where one may.
    fn find(&self, stop: &str) -> Option<usize> {
        let mut first = (self.num_exempt + 1).saturating_sub(stop.len());
        while !self.held.is_char_boundary(first) {
            first += 1;
        }
        Some(first + self.held[first..].find(stop)?)
    }

    /// What can become no stop string any more.
    fn release(&mut self) -> String {
        let overlaps = self.stops.iter().map(|stop| overlap(&self.held, stop));
        let num_released = self.held.len() - overlaps.max().unwrap_or(0);
        self.num_exempt = self.num_exempt.saturating_sub(num_released);
        self.held.drain(..num_released).collect()
    }

    /// The text still held back: no stop string begins in it.
    pub fn flush(&mut self) -> String {
        self.num_exempt = 0;
        std::mem::take(&mut self.held)
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

    proptest! {
        /// A stop string counts only where it ends behind the first pieces.
        #[test]
        fn waits_for_the_first_pieces(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            num_waiting in 0_usize..8,
        ) {
            let whole = pieces.concat();
            let exempt = pieces.iter().take(num_waiting).map(String::len).sum::<usize>();
            let ends = stops.iter().flat_map(|stop| {
                let at = |at: &usize| whole[*at..].starts_with(stop.as_str());
                let places = (0..whole.len()).filter(|at| whole.is_char_boundary(*at)).filter(at);
                places.map(|at| at + stop.len()).collect::<Vec<_>>()
            });
            let first = ends.filter(|end| *end > exempt).min();
            let mut matcher = StopMatcher::new(stops.clone(), true).after(num_waiting);
            let mut text = String::new();
            let mut stopped = None;
            for piece in &pieces {
                let outcome = matcher.push(piece);
                text.push_str(&outcome.text);
                stopped = outcome.stopped;
                if stopped.is_some() {
                    break;
                }
            }
            prop_assert_eq!(stopped.is_some(), first.is_some());
            if stopped.is_none() {
                text.push_str(&matcher.finish());
                prop_assert_eq!(&text, &pieces.concat());
            } else {
                prop_assert!(text.len() > exempt);
                prop_assert!(pieces.concat().starts_with(&text));
            }
        }
    }

    #[test]
    fn a_stop_string_may_begin_in_what_is_exempt() {
        let stops = vec!["ab".to_owned(), "xabz".to_owned()];
        let mut matcher = StopMatcher::new(stops, false).after(1);
        assert_eq!(matcher.push("ab xab").text, "ab ");
        assert_eq!(matcher.push("y").text, "xaby");
        assert_eq!(matcher.pass("ab a"), "ab ");
        let outcome = matcher.push("b");
        assert_eq!(
            (outcome.text.as_str(), outcome.stopped.as_deref()),
            ("", Some("ab"))
        );
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
