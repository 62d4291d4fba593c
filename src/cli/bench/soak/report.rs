//! What is printed at the end.

use anyhow::Context;
use serde_json::{Value, json};

use super::args::BenchSoakArgs;
use super::checks::{Check, Verdict};
use super::sampler::Sample;
use super::tally::{Tally, table};

pub(super) struct Report {
    pub model: String,
    pub tallies: Vec<Tally>,
    pub checks: Vec<Check>,
    pub samples: Vec<Sample>,
}

impl Report {
    pub fn num_failed(&self) -> usize {
        let failed = |check: &&Check| check.verdict == Verdict::Failed;
        self.checks.iter().filter(failed).count()
    }

    pub fn print(&self, args: &BenchSoakArgs) -> anyhow::Result<()> {
        let Self { model, .. } = self;
        println!(
            "{model}: {} clients for {} minutes, seed {}",
            args.clients, args.minutes, args.seed
        );
        for line in table(&self.tallies) {
            println!("{line}");
        }
        println!(
            "expired: by their own deadline; cut: by the end of the server; ms: of those that are ok\n"
        );
        for check in &self.checks {
            println!("{}", check.line());
            for detail in &check.details {
                println!("         {}", detail.replace('\n', "\n         "));
            }
        }
        for tally in &self.tallies {
            for failure in &tally.failures {
                println!("\n{}: {failure}", tally.name);
            }
        }
        if let Some(path) = &args.json {
            let written = std::fs::write(path, self.json(args).to_string());
            written.with_context(|| format!("--json {}", path.display()))?;
        }
        Ok(())
    }

    fn json(&self, args: &BenchSoakArgs) -> Value {
        json!({
            "model": self.model, "minutes": args.minutes, "clients": args.clients, "seed": args.seed,
            "kill_every": args.kill_every, "failed": self.num_failed(),
            "kinds": self.tallies.iter().map(Tally::json).collect::<Vec<_>>(),
            "checks": self.checks.iter().map(Check::json).collect::<Vec<_>>(),
            "samples": self.samples,
        })
    }
}
