//! The table of `ponder bench search`.

use serde_json::{Value, json};

use super::args::BenchSearchArgs;
use super::arms::Arm;
use super::ask::Answer;
use crate::cli::bench::statistics::{percentile, sorted};

/// The 97.5 % point of the normal distribution.
const Z95: f64 = 1.959_964;

/// An arm's answers to all problems, and how long they took together.
pub(super) struct Measured {
    pub arm: Arm,
    pub answers: Vec<Answer>,
    pub seconds: f64,
}

/// An arm's line.
struct Row<'m> {
    name: &'m str,
    num_problems: usize,
    num_right: usize,
    seconds: f64,
    num_tokens: u64,
    num_discarded: u64,
    /// Time to the final answer, sorted.
    latencies: Vec<f64>,
    /// Share of the time to the final answer that scoring took.
    scorer_share: f64,
    num_decided: usize,
    num_budget: usize,
    num_errors: usize,
}

impl<'m> Row<'m> {
    fn new(measured: &'m Measured) -> Self {
        let answers = &measured.answers;
        let count = |is: &dyn Fn(&Answer) -> bool| answers.iter().filter(|a| is(a)).count();
        let stopped = |why: &str| count(&|answer| answer.stopped.as_deref() == Some(why));
        let latency: f64 = answers.iter().map(|answer| answer.seconds).sum();
        let scoring: f64 = answers.iter().map(|answer| answer.scorer_seconds).sum();
        Self {
            name: &measured.arm.name,
            num_problems: answers.len(),
            num_right: count(&|answer| answer.is_right),
            seconds: measured.seconds,
            num_tokens: answers.iter().map(|answer| answer.num_tokens).sum(),
            num_discarded: answers.iter().map(|answer| answer.num_discarded).sum(),
            latencies: sorted(answers.iter().map(|answer| answer.seconds).collect()),
            scorer_share: scoring / latency.max(1e-9),
            num_decided: stopped("decided"),
            num_budget: stopped("budget"),
            num_errors: count(&|answer| answer.error.is_some()),
        }
    }

    fn right_per_second(&self) -> f64 {
        self.num_right as f64 / self.seconds
    }

    fn right_per_1000_tokens(&self) -> f64 {
        1e3 * self.num_right as f64 / self.num_tokens.max(1) as f64
    }

    fn discarded_share(&self) -> f64 {
        self.num_discarded as f64 / self.num_tokens.max(1) as f64
    }

    fn json(&self) -> Value {
        let (low, high) = wilson(self.num_right, self.num_problems);
        json!({
            "search": self.name, "problems": self.num_problems, "right": self.num_right,
            "right_share": self.num_right as f64 / self.num_problems as f64,
            "right_share_95": [low, high], "seconds": self.seconds,
            "right_per_second": self.right_per_second(),
            "right_per_1000_tokens": self.right_per_1000_tokens(),
            "seconds_to_answer": {
                "p50": percentile(&self.latencies, 0.5), "p90": percentile(&self.latencies, 0.9),
            },
            "tokens": self.num_tokens, "discarded_share": self.discarded_share(),
            "scorer_share": self.scorer_share, "stopped_decided": self.num_decided,
            "stopped_budget": self.num_budget, "errors": self.num_errors,
        })
    }

    fn line(&self) -> String {
        let share = 100.0 * self.num_right as f64 / self.num_problems as f64;
        let (low, high) = wilson(self.num_right, self.num_problems);
        let right = format!("{share:.1} ({:.1}-{:.1})", 100.0 * low, 100.0 * high);
        format!(
            "{:<24} {right:>18} {:>8.3} {:>8.2} {:>8.2} {:>8.2} {:>8.0} {:>6.0} % {:>6.1} % {:>8} {:>7} {:>6}",
            self.name,
            self.right_per_second(),
            self.right_per_1000_tokens(),
            percentile(&self.latencies, 0.5),
            percentile(&self.latencies, 0.9),
            self.num_tokens as f64 / self.num_problems as f64,
            100.0 * self.discarded_share(),
            100.0 * self.scorer_share,
            self.num_decided,
            self.num_budget,
            self.num_errors,
        )
    }
}

/// The 95 % Wilson interval of a share.
fn wilson(num_right: usize, num: usize) -> (f64, f64) {
    let (num, share) = (num as f64, num_right as f64 / num as f64);
    let square = Z95 * Z95;
    let centre = (share + square / (2.0 * num)) / (1.0 + square / num);
    let spread = (share * (1.0 - share) / num + square / (4.0 * num * num)).sqrt();
    let half = Z95 / (1.0 + square / num) * spread;
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

pub(super) fn print(
    args: &BenchSearchArgs,
    model: &str,
    measured: &[Measured],
) -> anyhow::Result<()> {
    let rows: Vec<Row<'_>> = measured.iter().map(Row::new).collect();
    if args.json {
        let result = json!({
            "model": model, "budget": args.budget, "concurrency": args.concurrency,
            "seed": args.seed, "arms": rows.iter().map(Row::json).collect::<Vec<Value>>(),
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    let budget = args.budget.map_or_else(String::new, |factor| {
        format!(", searches have {factor} times the greedy answer's tokens")
    });
    let num_problems = rows.first().map_or(0, |row| row.num_problems);
    println!(
        "{model}: {num_problems} problems, {} at once{budget}",
        args.concurrency
    );
    println!(
        "{:<24} {:>18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6}",
        "",
        "right, % (95 %)",
        "right/s",
        "right/1k",
        "p50 s",
        "p90 s",
        "tokens",
        "dropped",
        "scoring",
        "decided",
        "budget",
        "errors"
    );
    for row in &rows {
        println!("{}", row.line());
    }
    println!(
        "right/1k: right answers per 1,000 generated tokens; p50 s, p90 s: time to the final answer; dropped: share of the \
         tokens outside the answer; scoring: share of the time; decided, budget: searches that stopped for it."
    );
    let errors = measured.iter().flat_map(|arm| &arm.answers);
    if let Some(error) = errors.filter_map(|answer| answer.error.as_ref()).next() {
        println!("first error: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson")
        let (low, high) = wilson(8, 10);
        assert!((low - 0.490_162).abs() < 1e-5, "{low}");
        assert!((high - 0.943_318).abs() < 1e-5, "{high}");
        assert!(wilson(0, 5).0 < 1e-9);
    }
}
