//! Self-consistency (arXiv 2203.11171): the answer that most samples agree on. Sampling stops when the vote
//! is decided (Adaptive-Consistency, arXiv 2305.11860).

use futures::future::{BoxFuture, FutureExt};

use super::context::{Cut, Search};
use super::event::SearchEvent;
use super::outcome::{SearchError, Stopped, is_whole};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use super::vote::{Group, value_groups};
use crate::reward::{Scorer, answer_key};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct SelfConsistency;

impl Strategy for SelfConsistency {
    fn name(&self) -> &'static str {
        "self_consistency"
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            threshold: Some(0.95),
            is_vote: true,
            ..Defaults::COMMON
        }
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let mut groups: Vec<Group> = Vec::new();
    let mut num_started = 0;
    let mut num_left = n;
    while num_started < n && !search.is_over() {
        let wave = search.affordable(Tree::ROOT, n - num_started).max(1);
        num_started += wave;
        let mut samples = search.start(&[(Tree::ROOT, wave)], Cut::Never).await?;
        while let Some(sample) = search.next(&mut samples).await? {
            num_left -= 1;
            if search.is_nothing(&sample.continuation) {
                continue;
            }
            let (id, is_new) = search.add(sample);
            if !is_whole(search.tree.node(id).end) {
                continue;
            }
            if is_new && !search.scorer.is_some_and(Scorer::is_relative) {
                search.score(&[id]).await?;
            }
            vote(search, &mut groups, id);
            if num_left > 0 && is_over(search, &groups, num_left) {
                search.stopped = Some(Stopped::Decided);
                samples.stop();
                break;
            }
        }
    }
    // Scores that compare answers are known now that all are there.
    search.settle().await?;
    for group in &mut groups {
        group.weight = group.nodes.iter().map(|id| weight(search, *id)).sum();
    }
    value_groups(search, &groups);
    Ok(())
}

fn is_over(search: &Search<'_>, groups: &[Group], num_left: usize) -> bool {
    match search.scorer {
        None => is_decided(groups, num_left, search.spec.threshold),
        // What a vote weighs depends on those that are still to come.
        Some(scorer) if scorer.is_relative() => false,
        Some(_) => cannot_be_caught(groups, num_left),
    }
}

/// What a vote for a node's answer counts.
fn weight(search: &Search<'_>, id: NodeId) -> f64 {
    match search.scorer {
        Some(_) => search.tree.node(id).score.unwrap_or(0.0),
        None => 1.0,
    }
}

fn vote(search: &Search<'_>, groups: &mut Vec<Group>, id: NodeId) {
    let answer = answer_key(&search.tree.text(id));
    let weight = weight(search, id);
    match groups.iter_mut().find(|group| group.answer == answer) {
        Some(group) => {
            group.nodes.push(id);
            group.weight += weight;
        }
        None => groups.push(Group {
            answer,
            nodes: vec![id],
            weight,
        }),
    }
    // The first of equals leads.
    let leader = groups.iter().rev().max_by_key(|group| group.votes());
    if let Some(leader) = leader {
        search.send(SearchEvent::Vote {
            answer: leader.answer.clone(),
            votes: leader.votes(),
            total: groups.iter().map(Group::votes).sum(),
        });
    }
}

/// Whether the leader's weight stays ahead when every sample that is left has the highest score.
fn cannot_be_caught(groups: &[Group], num_left: usize) -> bool {
    let mut weights: Vec<f64> = groups.iter().map(|group| group.weight).collect();
    weights.sort_unstable_by(|a, b| b.total_cmp(a));
    let second = weights.get(1).copied().unwrap_or(0.0);
    weights
        .first()
        .is_some_and(|first| *first > second + num_left as f64)
}

/// Whether the leader stays ahead: the others cannot catch up, or more sampling would not change it with
/// probability `confidence`.
fn is_decided(groups: &[Group], num_left: usize, confidence: Option<f64>) -> bool {
    let mut votes: Vec<usize> = groups.iter().map(Group::votes).collect();
    votes.sort_unstable_by(|a, b| b.cmp(a));
    let Some(&first) = votes.first() else {
        return false;
    };
    let second = votes.get(1).copied().unwrap_or(0);
    first > second + num_left
        || confidence.is_some_and(|confidence| stays_ahead(first, second) > confidence)
}

/// The probability that a share with the posterior Beta(first + 1, second + 1) is above one half: the
/// regularised incomplete beta function, which for whole numbers is a sum of binomial terms.
fn stays_ahead(first: usize, second: usize) -> f64 {
    let trials = first + second + 1;
    let mut term = 0.5_f64.powi(trials as i32);
    let mut sum = term;
    for k in 1..=first {
        term *= (trials - k + 1) as f64 / k as f64;
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_posterior_equals_the_beta_distribution() {
        // Values of scipy.stats.beta.sf(0.5, a + 1, b + 1).
        for (first, second, expected) in [
            (0, 0, 0.5),
            (1, 0, 0.75),
            (4, 0, 0.96875),
            (5, 1, 0.9375),
            (7, 2, 0.9453125),
        ] {
            assert!((stays_ahead(first, second) - expected).abs() < 1e-12);
        }
    }
}
