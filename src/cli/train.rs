//! `ponder train value-head`: from searched traces to a file for `--value-head`.

use anyhow::ensure;

use super::args::{TargetArg, TrainValueHeadArgs};
use super::progress::Counter;
use super::setup;
use crate::trace::Target;
use crate::train::{Report, TrainOptions, load_examples, train};

pub(super) fn value_head(args: &TrainValueHeadArgs) -> anyhow::Result<()> {
    ensure!(
        args.held_out > 0.0 && args.held_out < 1.0,
        "--held-out must be between 0 and 1"
    );
    let served = setup::start(&args.engine)?;
    let target = match args.target {
        TargetArg::RestMcts => Target::RestMcts,
        TargetArg::Mean => Target::Mean,
    };
    let mut counter: Option<Counter> = None;
    let examples = load_examples(&args.traces, &served.engine, target, |_, total| {
        counter
            .get_or_insert_with(|| Counter::new("hidden states", total as u64))
            .advance();
    })?;
    drop(counter);
    let options = TrainOptions {
        width: args.width,
        max_epochs: args.epochs,
        held_out: args.held_out,
        seed: args.seed,
        ..TrainOptions::default()
    };
    let epochs = Counter::new("epochs", args.epochs as u64);
    let report = train(&examples, &options, &args.out, |_, _, _| epochs.advance())?;
    drop(epochs);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&report))?);
    } else {
        print(args, &report);
    }
    Ok(())
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::json!({
        "num_train": report.num_train, "num_held_out": report.num_held_out,
        "best_epoch": report.best_epoch, "mse": report.mse, "mse_of_mean": report.mse_of_mean,
        "auc": report.auc, "num_choices": report.num_choices,
        "chosen_by_head": report.chosen_by_head,
        "chosen_by_likelihood": report.chosen_by_likelihood,
        "chosen_at_random": report.chosen_at_random,
    })
}

fn print(args: &TrainValueHeadArgs, report: &Report) {
    println!(
        "{}: best of epoch {}, trained on {} states, measured on {} of other prompts",
        args.out.display(),
        report.best_epoch,
        report.num_train,
        report.num_held_out
    );
    println!(
        "squared error  {:.4} (always the mean: {:.4})",
        report.mse, report.mse_of_mean
    );
    println!("AUC            {:.3}", report.auc);
    println!(
        "right choices  {:.1} % by the head, {:.1} % by likelihood, {:.1} % at random ({} prompts)",
        100.0 * report.chosen_by_head,
        100.0 * report.chosen_by_likelihood,
        100.0 * report.chosen_at_random,
        report.num_choices
    );
}
