//! `cargo run --release -p ponder-simulation -- --seconds 600` prints the seeds that fail;
//! `--seed S` replays one.

use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ponder_simulation::{Report, run};

/// Runs random engines under random clients and prints the seeds of runs that went wrong.
#[derive(Debug, Parser)]
struct Args {
    /// Stop after so many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Replay this seed alone and say what it did
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many failures
    #[arg(long, default_value_t = 10)]
    max_failures: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        return match run(seed) {
            Ok(report) => {
                println!("seed {seed} is fine: {report:#?}");
                Ok(())
            }
            Err(wrong) => anyhow::bail!("seed {seed}: {wrong}"),
        };
    }
    let bar = ProgressBar::new(args.seconds);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} s, {msg}",
    )?);
    let (started, limit) = (Instant::now(), Duration::from_secs(args.seconds));
    let (mut total, mut failed, mut seed) = (Total::default(), Vec::new(), args.first);
    while started.elapsed() < limit && failed.len() < args.max_failures {
        match run(seed) {
            Ok(report) => total.add(&report),
            Err(wrong) => {
                bar.suspend(|| println!("seed {seed}: {wrong}"));
                failed.push(seed);
            }
        }
        seed += 1;
        bar.set_position(started.elapsed().as_secs().min(args.seconds));
        bar.set_message(format!(
            "{} runs, {} failed",
            seed - args.first,
            failed.len()
        ));
    }
    bar.finish_and_clear();
    println!(
        "{} runs in {:.0?}: {total:?}",
        seed - args.first,
        started.elapsed()
    );
    anyhow::ensure!(failed.is_empty(), "seeds that failed: {failed:?}");
    Ok(())
}

/// What all runs did.
#[derive(Debug, Default)]
struct Total {
    steps: u64,
    requests: u64,
    refused: u64,
    forks: u64,
    searches: u64,
    tokens: u64,
    preemptions: u64,
    prefix_cache_hits: u64,
    draft_tokens: u64,
    accepted_tokens: u64,
}

impl Total {
    fn add(&mut self, report: &Report) {
        let stats = &report.stats;
        self.steps += stats.num_steps;
        self.requests += report.num_requests as u64;
        self.refused += report.num_refused as u64;
        self.forks += report.num_forks as u64;
        self.searches += report.num_searches as u64;
        self.tokens += stats.generation_tokens;
        self.preemptions += stats.num_preemptions;
        self.prefix_cache_hits += stats.prefix_cache_hits;
        for drafts in &stats.drafts {
            self.draft_tokens += drafts.num_draft_tokens;
            self.accepted_tokens += drafts.num_accepted_tokens;
        }
    }
}
