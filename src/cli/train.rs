//! `ponder train value-head`: from searched traces to a file for `--value-head`; `ponder bench value-head`: how such a
//! file chooses.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::args::{BenchValueHeadArgs, TargetArg, TrainValueHeadArgs};
use super::progress::Counter;
use super::setup;
use crate::api::Served;
use crate::reward::ValueHead;
use crate::trace::Target;
use crate::train::{
    Choices, Examples, Report, TrainOptions, cross_validate, evaluate, load_examples, train,
};

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
    let examples = examples(&args.traces, &served, target)?;
    let options = TrainOptions {
        width: args.width,
        max_epochs: args.epochs,
        pairwise: args.pairwise,
        members: args.members,
        reads_likelihood: !args.no_likelihood,
        held_out: args.held_out,
        seed: args.seed,
        ..TrainOptions::default()
    };
    let epochs = Counter::new("epochs", (args.epochs * args.members) as u64);
    let report = train(&examples, &options, &args.out, |_, _, _| epochs.advance())?;
    drop(epochs);
    let unseen = match args.cross_validate {
        Some(folds) => {
            let bar = Counter::new("folds", folds);
            Some(cross_validate(&examples, &options, folds as usize, || {
                bar.advance()
            })?)
        }
        None => None,
    };
    if args.json {
        let mut result = json(&report);
        if let Some((auc, choices)) = &unseen {
            result["cross_validation"] = choices_json(choices);
            result["cross_validation"]["auc"] = (*auc).into();
        }
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    print(args, &report);
    if let (Some((auc, choices)), Some(folds)) = (unseen, args.cross_validate) {
        println!("\n{folds} heads, each on the prompts that it has not seen:");
        println!("AUC            {auc:.3}");
        print_choices(&choices);
    }
    Ok(())
}

/// Chooses among the answers of traces by a head that is already there.
pub(super) fn evaluate_head(args: &BenchValueHeadArgs) -> anyhow::Result<()> {
    let served = setup::start(&args.engine)?;
    let hidden_size = served.engine.model_info().hidden_size;
    let head = ValueHead::load(&args.value_head, hidden_size)
        .with_context(|| format!("--value-head {}", args.value_head.display()))?;
    let examples = examples(&args.traces, &served, Target::RestMcts)?;
    let (auc, choices) = evaluate(&examples, &head, args.seed);
    if args.json {
        let mut result = choices_json(&choices);
        result["auc"] = auc.into();
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!("AUC            {auc:.3}");
        print_choices(&choices);
    }
    Ok(())
}

fn examples(traces: &[PathBuf], served: &Served, target: Target) -> anyhow::Result<Examples> {
    let mut counter: Option<Counter> = None;
    let examples = load_examples(traces, served.engine.as_ref(), target, |_, total| {
        counter
            .get_or_insert_with(|| Counter::new("hidden states", total as u64))
            .advance();
    })?;
    Ok(examples)
}

fn json(report: &Report) -> Value {
    json!({
        "num_train": report.num_train, "num_held_out": report.num_held_out,
        "best_epoch": report.best_epoch, "mse": report.mse, "mse_of_mean": report.mse_of_mean,
        "auc": report.auc, "choices": choices_json(&report.choices),
    })
}

fn choices_json(choices: &Choices) -> Value {
    json!({
        "num_prompts": choices.num_prompts, "by_value": choices.by_value,
        "by_likelihood": choices.by_likelihood, "at_random": choices.at_random,
        "by_oracle": choices.by_oracle, "gain": [choices.gain.0, choices.gain.1],
        "auc_within": choices.auc_within,
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
    print_choices(&report.choices);
}

fn print_choices(choices: &Choices) {
    println!("AUC by prompt  {:.3}", choices.auc_within);
    println!(
        "right choices  {:.1} % by the head, {:.1} % by likelihood, {:.1} % at random, {:.1} % by an oracle \
         ({} prompts)",
        100.0 * choices.by_value,
        100.0 * choices.by_likelihood,
        100.0 * choices.at_random,
        100.0 * choices.by_oracle,
        choices.num_prompts
    );
    println!(
        "head - likelihood: {:+.1} to {:+.1} points (95 %)",
        100.0 * choices.gain.0,
        100.0 * choices.gain.1
    );
}
