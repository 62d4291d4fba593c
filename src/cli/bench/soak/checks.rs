//! What must hold at the end, and the lines that say whether it does.

use std::path::Path;

use serde_json::{Value, json};

use super::child::Log;
use super::ledger::{Ledger, Readings, Settled};
use super::reader::Reads;
use super::same::SameAnswers;
use super::sampler::{Metrics, Process, Seen};
use super::slope::growth;
use super::supervisor::Ends;
use super::tally::Tally;
use crate::cli::bench::statistics::{percentile, sorted};

/// Milliseconds below which 99 of 100 answers of `/health` lie. The machine is full of the soak's
/// own clients, so a good server is not far below it.
const HEALTH_P99_MS: f64 = 1000.0;
/// Nobody waits longer for it.
const HEALTH_MAX_MS: f64 = 5000.0;
/// Growth that may be noise: MiB a minute, or this share of the memory a minute.
const GROWTH_MIB: f64 = 2.0;
const GROWTH_SHARE: f64 = 0.02;
/// Descriptors and threads that a quiet server may have beyond those of its first second: pools that
/// grew and stay.
const MORE_DESCRIPTORS: u64 = 16;
const MORE_THREADS: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
    /// It could not be measured.
    Skipped,
}

impl Verdict {
    fn of(holds: bool) -> Self {
        match holds {
            true => Self::Passed,
            false => Self::Failed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Debug)]
pub(super) struct Check {
    pub name: String,
    pub measured: String,
    pub verdict: Verdict,
    /// What is wrong in detail.
    pub details: Vec<String>,
}

impl Check {
    fn new(name: &str, holds: bool, measured: String) -> Self {
        Self {
            name: name.to_owned(),
            measured,
            verdict: Verdict::of(holds),
            details: Vec::new(),
        }
    }

    fn skipped(name: &str, why: &str) -> Self {
        Self {
            verdict: Verdict::Skipped,
            ..Self::new(name, true, why.to_owned())
        }
    }

    fn with(self, details: Vec<String>) -> Self {
        Self { details, ..self }
    }

    pub fn line(&self) -> String {
        let Self { name, measured, .. } = self;
        format!("{:<8} {name:<32} {measured}", self.verdict.name())
    }

    pub fn json(&self) -> Value {
        json!({"check": self.name, "measured": self.measured, "verdict": self.verdict.name(),
            "details": self.details})
    }
}

/// The server when all traffic had ended.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// The last look, and how long it took until nothing was at work.
    pub metrics: Metrics,
    pub seconds: f64,
    pub process: Option<Process>,
    /// The same process in its first second.
    pub at_start: Option<Process>,
    /// Clients that had no answer in time.
    pub num_stuck: usize,
}

pub(super) fn traffic(tallies: &[Tally], quiet: &Quiet) -> Check {
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (failed, ok) = (sum(|tally| tally.num_failed), sum(|tally| tally.num_ok));
    let untried = tallies.iter().filter(|tally| tally.num_requests() == 0);
    let untried: Vec<&str> = untried.map(|tally| tally.name.as_str()).collect();
    let stuck = quiet.num_stuck;
    let mut measured = format!("{ok} ok, {failed} failed, {stuck} clients stuck");
    if !untried.is_empty() {
        measured = format!("{measured}, never tried: {}", untried.join(", "));
    }
    Check::new(
        "every answer is right",
        failed == 0 && ok > 0 && stuck == 0,
        measured,
    )
}

pub(super) fn delivery(
    ledger: &Ledger,
    reads: Reads,
    settled: &Settled,
    readings: &Readings,
) -> Check {
    let measured = format!(
        "{} owed of {} acknowledged and {} regraded, {} rows over {} connections, {} missing, \
         {} of other keys, {} not acknowledged, {} wrong",
        settled.num_owed,
        ledger.num_acknowledged(),
        ledger.num_revisions(),
        readings.num_rows(),
        readings.num_connections,
        settled.num_missing,
        settled.num_foreign,
        settled.num_unheard,
        settled.num_problems,
    );
    let holds = settled.num_problems == 0;
    if holds && settled.num_owed == 0 {
        return Check::skipped(reads.name(), "no answer named a trace");
    }
    Check::new(reads.name(), holds, measured).with(settled.problems.clone())
}

pub(super) fn seeds(same: &SameAnswers) -> Check {
    let (compared, wrong) = (same.num_compared, same.differences.len());
    let measured = format!("{compared} compared with an earlier answer, {wrong} differ");
    let check = Check::new("equal seeds, equal texts", wrong == 0, measured);
    check.with(same.differences.iter().take(3).cloned().collect())
}

pub(super) fn health(seen: &Seen) -> Check {
    let latencies = sorted(seen.samples.iter().map(|sample| sample.health_ms).collect());
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&latencies, share));
    let failed = seen.failures.len();
    let measured =
        format!("p50 {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms, {failed} probes failed");
    let holds =
        p99 <= HEALTH_P99_MS && max <= HEALTH_MAX_MS && failed == 0 && !latencies.is_empty();
    Check::new("/health answers", holds, measured)
        .with(seen.failures.iter().take(5).cloned().collect())
}

pub(super) fn engine(seen: &Seen) -> Check {
    let most = |of: fn(&Metrics) -> f64| {
        let values = seen.samples.iter().map(|sample| of(&sample.metrics));
        values.fold(0.0, f64::max)
    };
    let (violations, stalled) = (most(|m| m.num_violations), most(|m| m.is_stalled));
    let (damaged, lost) = (most(|m| m.num_damaged), most(|m| m.num_lost_traces));
    let measured = format!(
        "{violations} invariants violated, {} stalled, {damaged} traces damaged ({lost} not kept in one life)",
        if stalled > 0.0 { "once" } else { "never" }
    );
    let holds = violations + stalled + damaged == 0.0;
    Check::new("engine and store are sound", holds, measured)
}

pub(super) fn idle(quiet: &Quiet) -> Check {
    let left = quiet.metrics.at_work();
    let measured = match left.is_empty() {
        true => format!(
            "nothing runs, waits or holds blocks {:.1} s after the last request",
            quiet.seconds
        ),
        false => format!("after {:.1} s: {}", quiet.seconds, left.join(", ")),
    };
    Check::new("idle when nobody asks", left.is_empty(), measured)
}

pub(super) fn given_back(quiet: &Quiet) -> [Check; 3] {
    let names = [
        "descriptors are given back",
        "threads are given back",
        "programs have ended",
    ];
    let (Some(before), Some(after)) = (quiet.at_start, quiet.process) else {
        return names.map(|name| Check::skipped(name, "this system does not tell"));
    };
    let check = |name, before: u64, after: u64, more: u64| {
        let measured = format!("{before} in the first second of this life, {after} at the end");
        Check::new(name, after <= before + more, measured)
    };
    [
        check(
            names[0],
            before.num_descriptors,
            after.num_descriptors,
            MORE_DESCRIPTORS,
        ),
        check(
            names[1],
            before.num_threads,
            after.num_threads,
            MORE_THREADS,
        ),
        check(names[2], 0, after.num_children, 0),
    ]
}

/// Nothing lies in the folder for what is temporary once the server has ended.
pub(super) fn leftovers(folder: &Path) -> Check {
    let name = "no temporary files are left";
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>());
    let Ok(entries) = entries else {
        return Check::skipped(name, "the folder cannot be read");
    };
    let names = entries.iter().map(|entry| entry.file_name());
    let names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let measured = format!("{} files and folders", names.len());
    Check::new(name, names.is_empty(), measured).with(names.into_iter().take(5).collect())
}

pub(super) fn memory(seen: &Seen) -> Check {
    let name = "memory does not grow";
    let processes = seen.samples.iter().filter_map(|sample| sample.process);
    let most = processes
        .map(|process| process.rss_bytes)
        .max()
        .unwrap_or(0)
        >> 20;
    let Some(growth) = growth(&seen.samples) else {
        return Check::skipped(
            name,
            &format!("no life was long enough; at most {most} MiB"),
        );
    };
    let bound = (growth.mib * GROWTH_SHARE).max(GROWTH_MIB);
    let slope = growth.mib_per_minute;
    let measured = format!(
        "{slope:+.2} MiB a minute over {:.0} s at {:.0} MiB (bound {bound:.1}), at most {most} MiB",
        growth.seconds, growth.mib
    );
    Check::new(name, slope <= bound, measured)
}

pub(super) fn lives(ends: &Ends, expects_kills: bool) -> Check {
    let crashes = ends.crashes.len();
    let measured = format!(
        "{} SIGKILL, {} SIGTERM (at most {:.1} s), {crashes} ended by themselves, started in at most {:.1} s",
        ends.num_kills,
        ends.num_terminations,
        ends.slowest_termination.as_secs_f64(),
        ends.slowest_start.as_secs_f64(),
    );
    let is_tried = !expects_kills || ends.num_kills + ends.num_terminations > 1;
    let holds = crashes == 0 && ends.problems.is_empty() && is_tried;
    let details = ends.crashes.iter().chain(&ends.problems).take(5);
    Check::new("ends only when it is told", holds, measured).with(details.cloned().collect())
}

pub(super) fn log(log: &Log) -> Check {
    let (panics, errors) = (log.num_panics, log.num_errors);
    let measured = format!(
        "{panics} panics, {errors} errors, {} warnings",
        log.num_warnings
    );
    let holds = panics + errors == 0;
    Check::new("a quiet log", holds, measured)
        .with(log.complaints.iter().take(5).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_says_what_it_measured() {
        let quiet = Quiet {
            metrics: Metrics {
                num_requests: 2.0,
                num_trace_readers: 2.0,
                ..Metrics::default()
            },
            ..Quiet::default()
        };
        assert_eq!(idle(&quiet).verdict, Verdict::Passed);
        assert_eq!(given_back(&quiet)[0].verdict, Verdict::Skipped);
        let busy = Quiet {
            metrics: Metrics {
                blocks_in_use: 0.5,
                ..Metrics::default()
            },
            at_start: Some(Process::default()),
            process: Some(Process {
                num_descriptors: MORE_DESCRIPTORS + 1,
                num_threads: MORE_THREADS,
                num_children: 1,
                rss_bytes: 0,
            }),
            ..Quiet::default()
        };
        assert!(idle(&busy).line().starts_with("FAILED"));
        let [descriptors, threads, programs] = given_back(&busy);
        assert_eq!(programs.verdict, Verdict::Failed);
        assert_eq!(descriptors.verdict, Verdict::Failed);
        assert_eq!(threads.verdict, Verdict::Passed);
        assert_eq!(memory(&Seen::default()).verdict, Verdict::Skipped);
    }

    #[test]
    fn nothing_measured_is_nothing_passed() {
        let none = Settled::default();
        let check = delivery(&Ledger::default(), Reads::All, &none, &Readings::default());
        assert_eq!(check.verdict, Verdict::Skipped);
        assert_eq!(health(&Seen::default()).verdict, Verdict::Failed);
        assert_eq!(traffic(&[], &Quiet::default()).verdict, Verdict::Failed);
        assert_eq!(lives(&Ends::default(), true).verdict, Verdict::Failed);
        assert_eq!(lives(&Ends::default(), false).verdict, Verdict::Passed);
    }
}
