//! What became of the requests, by kind, and its table.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::bench::statistics::{percentile, sorted};

/// Why a request did not get the answer it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// Turned away for now (429, 503).
    Refused,
    /// Its own deadline was over, and the server said so.
    Expired,
    /// The client left.
    HungUp,
    /// The server was killed.
    Cut,
    /// There was nothing to do: it does not count.
    NotNow,
    /// Anything that must not be.
    Failed(String),
}

/// A failure unless it holds.
pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Ended> {
    match holds {
        true => Ok(()),
        false => Err(Ended::Failed(what())),
    }
}

/// What became of the requests of a kind.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub name: String,
    pub num_ok: u64,
    pub num_refused: u64,
    pub num_expired: u64,
    pub num_hung_up: u64,
    pub num_cut: u64,
    pub num_failed: u64,
    pub failures: Vec<String>,
    /// Of those that went well, in milliseconds.
    latencies: Vec<f64>,
}

/// Failures of a kind that are kept in full.
const KEPT_FAILURES: usize = 3;

impl Tally {
    pub fn new(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    pub fn count(&mut self, result: Result<(), Ended>, elapsed: Duration) {
        match result {
            Ok(()) => {
                self.num_ok += 1;
                self.latencies.push(elapsed.as_secs_f64() * 1e3);
            }
            Err(Ended::Refused) => self.num_refused += 1,
            Err(Ended::Expired) => self.num_expired += 1,
            Err(Ended::HungUp) => self.num_hung_up += 1,
            Err(Ended::Cut) => self.num_cut += 1,
            Err(Ended::NotNow) => {}
            Err(Ended::Failed(text)) => {
                self.num_failed += 1;
                if self.failures.len() < KEPT_FAILURES {
                    self.failures.push(text);
                }
            }
        }
    }

    pub fn num_requests(&self) -> u64 {
        let ended = self.num_refused + self.num_expired + self.num_hung_up;
        self.num_ok + ended + self.num_cut + self.num_failed
    }

    fn percentiles(&self) -> [f64; 2] {
        let sorted = sorted(self.latencies.clone());
        [0.5, 0.99].map(|share| percentile(&sorted, share))
    }

    pub fn json(&self) -> Value {
        let [p50, p99] = self.percentiles();
        json!({
            "kind": self.name, "requests": self.num_requests(), "ok": self.num_ok,
            "refused": self.num_refused, "expired": self.num_expired, "hung_up": self.num_hung_up,
            "cut": self.num_cut, "failed": self.num_failed, "p50_ms": p50, "p99_ms": p99,
            "failures": self.failures,
        })
    }
}

/// The lines of the table, with the sum of all kinds at its end.
pub(super) fn table(tallies: &[Tally]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<25} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "kind",
        "requests",
        "ok",
        "refused",
        "expired",
        "hung up",
        "cut",
        "failed",
        "p50 ms",
        "p99 ms"
    )];
    let mut all = Tally::new("all".to_owned());
    for tally in tallies {
        lines.push(line(tally));
        all.num_ok += tally.num_ok;
        all.num_refused += tally.num_refused;
        all.num_expired += tally.num_expired;
        all.num_hung_up += tally.num_hung_up;
        all.num_cut += tally.num_cut;
        all.num_failed += tally.num_failed;
        all.latencies.extend(&tally.latencies);
    }
    lines.push(line(&all));
    lines
}

fn line(tally: &Tally) -> String {
    let [p50, p99] = tally.percentiles();
    format!(
        "{:<25} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {p50:>9.1} {p99:>9.1}",
        tally.name,
        tally.num_requests(),
        tally.num_ok,
        tally.num_refused,
        tally.num_expired,
        tally.num_hung_up,
        tally.num_cut,
        tally.num_failed,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_column() {
        let mut tally = Tally::new("chat".to_owned());
        let ms = Duration::from_millis;
        tally.count(Ok(()), ms(10));
        tally.count(Ok(()), ms(30));
        for (index, ended) in [Ended::Refused, Ended::Expired, Ended::HungUp, Ended::Cut]
            .into_iter()
            .enumerate()
        {
            for _ in 0..=index {
                tally.count(Err(ended.clone()), ms(99));
            }
        }
        tally.count(Err(Ended::NotNow), ms(99));
        for index in 0..5 {
            let why = format!("failure {index}");
            tally.count(Err(Ended::Failed(why)), ms(99));
        }
        tally.count(Ok(()), ms(20));
        assert_eq!(tally.num_requests(), 18);
        assert_eq!(tally.failures.len(), KEPT_FAILURES);
        let lines = table(&[tally, Tally::new("score".to_owned())]);
        let columns = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
        assert_eq!(
            columns(1),
            ["chat", "18", "3", "1", "2", "3", "4", "5", "20.0", "30.0"]
        );
        let none = ["score", "0", "0", "0", "0", "0", "0", "0", "0.0", "0.0"];
        assert_eq!(columns(2), none);
        assert_eq!(columns(3)[1..], columns(1)[1..]);
        let width = lines[0].len();
        assert!(lines.iter().all(|line| line.len() == width), "{lines:#?}");
    }
}
