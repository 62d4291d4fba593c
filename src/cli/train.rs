//! `ponder train`: from searched traces to a file for `--value-head` or `--calibration`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::engine_args::EngineArgs;
use super::progress::Counter;
use super::setup;
use crate::api::Served;
use crate::trace::Target;
use crate::train::{
    CalibrationReport, Choices, Examples, Quality, Report, TrainOptions, calibrate, cross_validate,
    load_examples, train,
};

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Train a head that scores answers by the model's own hidden states, for serve --value-head
    ValueHead(Box<TrainValueHeadArgs>),
    /// Fit how likely answers are right, for serve --calibration and the strategy auto
    Calibration(TrainCalibrationArgs),
}

#[derive(Debug, Clone, Args)]
pub struct TrainCalibrationArgs {
    /// NDJSON files of searches whose answers have an outcome (best_of_n, self_consistency, auto)
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    /// JSON file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Reward whose values to use, if the traces have several
    #[arg(long, value_name = "KIND")]
    pub reward: Option<String>,
    /// Share of the prompts that are held out and measured on
    #[arg(long, default_value_t = 0.2)]
    pub held_out: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print the measurements as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct TrainValueHeadArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// NDJSON files of trees whose answers have an outcome
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub traces: Vec<PathBuf>,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What the head learns as the value of a step
    #[arg(long, value_enum, default_value_t = TargetArg::RestMcts)]
    pub target: TargetArg,
    /// Hidden units of each member
    #[arg(long, default_value_t = 16)]
    pub width: usize,
    /// Number of heads that are trained and averaged
    #[arg(long, default_value_t = 8)]
    pub members: usize,
    /// Leave the answer's likelihood out of the input, as heads for --prm must
    #[arg(long)]
    pub no_likelihood: bool,
    /// Weight of ranking right above wrong answers to one prompt, beside the squared error
    #[arg(long, default_value_t = 1.0)]
    pub pairwise: f64,
    /// Cross-validate: also train this many heads, each without a share of the prompts, and measure
    /// each on its share
    #[arg(long, value_name = "FOLDS", value_parser = clap::value_parser!(u64).range(2..=20))]
    pub cross_validate: Option<u64>,
    /// Most epochs; training stops earlier once the held-out loss no longer falls
    #[arg(long, default_value_t = 60)]
    pub epochs: usize,
    /// Share of the prompts that are held out and measured on
    #[arg(long, default_value_t = 0.2)]
    pub held_out: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print the measurements as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetArg {
    /// Distance to a right answer (ReST-MCTS*)
    RestMcts,
    /// Mean outcome of the answers below (VM-MCTS)
    Mean,
}

pub(super) fn run(command: &TrainCommand) -> anyhow::Result<()> {
    match command {
        TrainCommand::ValueHead(args) => value_head(args),
        TrainCommand::Calibration(args) => calibration(args),
    }
}

fn calibration(args: &TrainCalibrationArgs) -> anyhow::Result<()> {
    check_share(args.held_out)?;
    let reward = args.reward.as_deref();
    let report = calibrate(&args.traces, reward, args.held_out, args.seed)?;
    let measured = calibration_json(&report);
    let mut file = json!(report.calibration);
    file["report"] = measured.clone();
    let text = serde_json::to_string_pretty(&file)? + "\n";
    std::fs::write(&args.out, text).with_context(|| format!("--out {}", args.out.display()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
        return Ok(());
    }
    println!(
        "{}: values of the reward {}, fitted to {} prompts, measured on {} of them without those",
        args.out.display(),
        report.calibration.reward,
        report.num_prompts,
        report.num_held_out
    );
    for (name, quality) in [("all waves", &report.all), ("first answer", &report.first)] {
        println!(
            "{name:<13} Brier {:.4} (always the mean: {:.4}), ECE {:.4}, AUC {:.3}",
            quality.brier, quality.brier_of_mean, quality.ece, quality.auc
        );
    }
    Ok(())
}

fn calibration_json(report: &CalibrationReport) -> Value {
    let quality = |quality: &Quality| {
        json!({"brier": quality.brier, "brier_of_mean": quality.brier_of_mean,
            "ece": quality.ece, "auc": quality.auc})
    };
    json!({"num_prompts": report.num_prompts, "num_held_out": report.num_held_out,
        "all": quality(&report.all), "first": quality(&report.first)})
}

fn check_share(held_out: f64) -> anyhow::Result<()> {
    ensure!(
        held_out > 0.0 && held_out < 1.0,
        "--held-out must be between 0 and 1"
    );
    Ok(())
}

fn value_head(args: &TrainValueHeadArgs) -> anyhow::Result<()> {
    check_share(args.held_out)?;
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

pub(super) fn examples(
    traces: &[PathBuf],
    served: &Served,
    target: Target,
) -> anyhow::Result<Examples> {
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

pub(super) fn choices_json(choices: &Choices) -> Value {
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

pub(super) fn print_choices(choices: &Choices) {
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
