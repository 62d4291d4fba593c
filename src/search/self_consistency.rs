//! Self-consistency (arXiv 2203.11171): the answer that most samples agree on. Sampling stops when
//! the vote is decided (Adaptive-Consistency, arXiv 2305.11860).

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::outcome::{SearchError, Stopped, is_whole};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use crate::reward::{Scorer, Votes, answer_key, stays_ahead};

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
    let mut votes = Votes::default();
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
            let answer = answer_key(&search.tree.text(id));
            search.vote(&mut votes, answer, id, weight(search, id));
            if num_left > 0 && is_over(search, &votes, num_left) {
                search.stopped = Some(Stopped::Decided);
                samples.stop();
                break;
            }
        }
    }
    // Scores that compare answers are known now that all are there.
    search.settle().await?;
    votes.reweigh(|id| weight(search, id));
    search.value_groups(&votes);
    Ok(())
}

/// Whether the vote is decided. Votes that all count the same are once no other answer can catch
/// up, or once the posterior says that none will. Nothing is known of how the weights of votes to
/// come are distributed but that they lie in 0..=1: weighted votes are decided only for certain.
fn is_over(search: &Search<'_>, votes: &Votes, num_left: usize) -> bool {
    match search.scorer {
        None => {
            let (first, second) = votes.first_two();
            let confidence = search.spec.threshold;
            let is_sure = |confidence| stays_ahead(first, second) > confidence;
            votes.cannot_be_caught(num_left) || confidence.is_some_and(is_sure)
        }
        // What a vote weighs depends on those that are still to come.
        Some(scorer) if scorer.is_relative() => false,
        Some(_) => votes.cannot_be_caught(num_left),
    }
}

/// What a vote for a node's answer counts.
fn weight(search: &Search<'_>, id: NodeId) -> f64 {
    match search.scorer {
        Some(_) => search.tree.node(id).score.unwrap_or(0.0),
        None => 1.0,
    }
}
