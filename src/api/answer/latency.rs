//! How long clients wait for a request's tokens: the first one, and each one after another.

use std::time::{Duration, Instant};

/// What the time of a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Latency {
    /// The request's first token came so long after the request.
    First(Duration),
    /// The choice's token before came so long ago.
    Next(Duration),
}

/// Remembers each choice's newest token.
#[derive(Debug)]
pub(super) struct TokenTimes {
    started: Instant,
    is_first: bool,
    newest: Vec<Option<Instant>>,
}

impl TokenTimes {
    pub fn new(started: Instant, num_choices: usize) -> Self {
        Self {
            started,
            is_first: true,
            newest: vec![None; num_choices],
        }
    }

    /// A token of a choice came. The first tokens of choices beside the first say nothing: they
    /// come with it.
    pub fn token(&mut self, choice: usize, now: Instant) -> Option<Latency> {
        let before = self.newest[choice].replace(now);
        match before {
            Some(before) => Some(Latency::Next(now - before)),
            None if std::mem::replace(&mut self.is_first, false) => {
                Some(Latency::First(now - self.started))
            }
            None => None,
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight choices whose tokens come together every 30 ms: no gap is near 0.
    #[test]
    fn each_choice_has_its_own_gaps() {
        let started = Instant::now();
        let at = |ms: u64| started + Duration::from_millis(ms);
        let mut times = TokenTimes::new(started, 8);
        let mut seen = Vec::new();
        for step in 0..3 {
            for choice in 0..8 {
                seen.extend(times.token(choice, at(100 + 30 * step)));
            }
        }
        let first = Latency::First(Duration::from_millis(100));
        let next = Latency::Next(Duration::from_millis(30));
        assert_eq!(seen[0], first);
        assert_eq!(seen[1..], [next; 16]);
    }
}
