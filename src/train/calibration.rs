//! Fits a [`Calibration`] to traces whose answers are known to be right or wrong: `auto`'s waves
//! are played again with their samples, and each shows what was known of the leading answer then.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::logistic::{Logistic, Quality, Row};
use super::random::Random;
use super::traces::read_traces;
use super::value_head::TrainError;
use crate::reward::{Calibration, Evidence, FEATURES, Sampled, Votes, vote_key};
use crate::trace::{NodeRecord, TraceRecord};

/// Prompts below which nothing is left to measure on.
const MIN_PROMPTS: usize = 5;
/// The reward that every trace has.
const LIKELIHOOD: &str = "likelihood";
const VERIFIER: &str = "verifier";

/// What was fitted, and how well it tells on prompts that it was not fitted to.
#[derive(Debug, Clone)]
pub struct CalibrationReport {
    /// Fitted to all prompts.
    pub calibration: Calibration,
    pub num_prompts: usize,
    pub num_held_out: usize,
    /// Of a model of the other prompts: over all waves, and after the first answer alone.
    pub all: Quality,
    pub first: Quality,
}

/// What was known after a wave.
struct Moment {
    group: usize,
    num_samples: usize,
    row: Row<{ FEATURES.len() }>,
}

/// Reads traces (NDJSON) and fits. `reward` chooses among the rewards that they were sampled with.
pub fn calibrate(
    paths: &[PathBuf],
    reward: Option<&str>,
    held_out: f64,
    seed: u64,
) -> Result<CalibrationReport, TrainError> {
    let mut kinds = BTreeSet::new();
    let mut moments = Vec::new();
    read_traces(paths, |trace, group| {
        let kind = value_kind(&trace)?;
        if reward.is_none_or(|reward| reward == kind) {
            let found = replay(&trace, group, &kind);
            if !found.is_empty() {
                kinds.insert(kind);
            }
            moments.extend(found);
        }
        Ok(())
    })?;
    let kinds: Vec<String> = kinds.into_iter().collect();
    let kind = match kinds.as_slice() {
        [kind] => kind,
        [] => return data("no trace has whole answers with an outcome and the reward's values"),
        _ => {
            let kinds = kinds.join(", ");
            return data(&format!(
                "the traces have several rewards ({kinds}): choose with --reward"
            ));
        }
    };
    let mut prompts: Vec<usize> = moments.iter().map(|moment| moment.group).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let num_prompts = prompts.len();
    if num_prompts < MIN_PROMPTS {
        let message = format!("{num_prompts} prompts have outcomes; it takes {MIN_PROMPTS}");
        return data(&message);
    }
    Random(seed).shuffle(&mut prompts);
    let num_held_out = ((num_prompts as f64 * held_out).round() as usize).clamp(1, num_prompts - 1);
    let unseen: BTreeSet<usize> = prompts.into_iter().take(num_held_out).collect();
    let rows = |is_unseen: Option<bool>| -> Vec<&Moment> {
        let fits = |moment: &&Moment| {
            is_unseen.is_none_or(|unseen_wanted| unseen.contains(&moment.group) == unseen_wanted)
        };
        moments.iter().filter(fits).collect()
    };
    let measured = fit(kind, &rows(Some(false)));
    let said = rows(Some(true));
    Ok(CalibrationReport {
        calibration: fit(kind, &rows(None)),
        num_prompts,
        num_held_out,
        all: quality(&measured, said.iter().copied()),
        first: quality(
            &measured,
            said.iter().copied().filter(|it| it.num_samples == 1),
        ),
    })
}

fn data<T>(message: &str) -> Result<T, TrainError> {
    Err(TrainError::Data(message.to_owned()))
}

fn fit(kind: &str, moments: &[&Moment]) -> Calibration {
    let rows: Vec<_> = moments.iter().map(|moment| moment.row.clone()).collect();
    let model = Logistic::fit(&rows);
    Calibration::new(kind, model.intercept, model.weights)
}

fn quality<'m>(calibration: &Calibration, moments: impl Iterator<Item = &'m Moment>) -> Quality {
    let said = moments.map(|moment| {
        let row = &moment.row;
        let probability = calibration.probability_of(row.features);
        (probability, row.outcome, row.weight)
    });
    Quality::of(&said.collect::<Vec<_>>())
}

/// The reward whose values a trace's answers have: the one that was named, a verifier aside, whose
/// word is the outcome.
fn value_kind(trace: &TraceRecord) -> Result<String, String> {
    let rewards: &[Value] = match &trace.search["reward"] {
        Value::Null => &[],
        Value::Array(rewards) => rewards.as_slice(),
        one => std::slice::from_ref(one),
    };
    let kinds = rewards.iter().filter_map(|reward| reward["kind"].as_str());
    let kinds: Vec<&str> = kinds.filter(|kind| *kind != VERIFIER).collect();
    match kinds.as_slice() {
        [] => Ok(LIKELIHOOD.to_owned()),
        ["majority"] => Err("majority values no answer by itself".to_owned()),
        [kind] => Ok((*kind).to_owned()),
        _ => Err("several rewards were weighed: name one, or one beside a verifier".to_owned()),
    }
}

/// A value of that kind; `None` where the answer has none.
fn value(node: &NodeRecord, kind: &str) -> Option<f64> {
    match node.reward_parts.get(kind) {
        Some(part) => Some(*part),
        None if kind == LIKELIHOOD => Some(mean_logprob(node).exp()),
        None => node.score,
    }
}

fn mean_logprob(node: &NodeRecord) -> f64 {
    node.logprob / node.token_ids.len().max(1) as f64
}

/// What was known after waves of 1, 2, 4, … whole answers from the prompt, with each sample in one
/// wave's place of each size. Together those of a size count as one.
fn replay(trace: &TraceRecord, group: usize, kind: &str) -> Vec<Moment> {
    let nodes = trace
        .nodes
        .iter()
        .filter(|node| node.parent == Some(0) && node.is_whole() && value(node, kind).is_some());
    let samples = nodes.flat_map(|node| {
        let paths = std::iter::once(&node.branch_path).chain(&node.duplicate_paths);
        paths.map(move |path| (path, node))
    });
    let mut samples: Vec<(&Vec<u32>, &NodeRecord)> = samples.collect();
    samples.sort_unstable_by_key(|(path, _)| *path);
    let sizes = (1..).map(|wave: u32| (1_usize << wave) - 1);
    let mut moments = Vec::new();
    for size in sizes.take_while(|size| *size <= samples.len()) {
        let chunks = samples.chunks_exact(size);
        let weight = 1.0 / chunks.len() as f64;
        for chunk in chunks {
            let nodes: Vec<&NodeRecord> = chunk.iter().map(|(_, node)| *node).collect();
            let known = moment(&nodes, kind);
            moments.extend(known.map(|(features, outcome)| Moment {
                group,
                num_samples: size,
                row: Row {
                    features,
                    outcome,
                    weight,
                },
            }));
        }
    }
    moments
}

/// What speaks for the answer that leads among these, and whether it is right, as far as is known.
fn moment(nodes: &[&NodeRecord], kind: &str) -> Option<([f64; FEATURES.len()], f64)> {
    let mut votes = Votes::default();
    for (at, node) in nodes.iter().enumerate() {
        let weight = value(node, kind).unwrap_or(0.0);
        votes.add(vote_key(&node.text), at, weight);
    }
    let sampled = |at: usize| Sampled {
        value: value(nodes[at], kind),
        logprob: mean_logprob(nodes[at]),
        num_tokens: nodes[at].token_ids.len(),
    };
    let evidence = Evidence::of(&votes, sampled)?;
    let leader = votes.leader()?;
    let outcome = |node: &NodeRecord| {
        let said = node.reward_parts.get(VERIFIER).copied();
        node.outcome.or(said)
    };
    let outcomes = leader.nodes.iter().filter_map(|at| outcome(nodes[*at]));
    let outcomes: Vec<f64> = outcomes.collect();
    let count = outcomes.len() as f64;
    (count > 0.0).then(|| (evidence.features(), outcomes.iter().sum::<f64>() / count))
}

#[cfg(test)]
mod tests;
