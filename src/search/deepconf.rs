//! DeepConf, online (arXiv 2508.15260, section 3.3, and the released code): some whole answers say
//! how confident the model is of this prompt; later ones end as soon as a group of their tokens is
//! less so; what is left votes with its confidence, until one answer has almost all the weight.

use futures::future::{BoxFuture, FutureExt};

use super::confidence::{ConfidenceRule, ConfidenceSpec, quantile};
use super::context::Search;
use super::cut::Cut;
use super::outcome::{SearchError, Stopped, is_whole};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use crate::reward::{Scorer, Votes, answer_key};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DeepConf;

impl Strategy for DeepConf {
    fn name(&self) -> &'static str {
        "deepconf"
    }

    /// The paper's consensus of 0.95. Its budget of 512 answers is for offline use.
    fn defaults(&self) -> Defaults {
        Defaults {
            n: 32,
            threshold: Some(0.95),
            is_vote: true,
            confidence: Some(ConfidenceSpec::DEFAULT),
            ..Defaults::COMMON
        }
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        async move {
            match search.spec.confidence {
                Some(confidence) => run(search, confidence).await,
                None => Ok(()),
            }
        }
        .boxed()
    }
}

async fn run(search: &mut Search<'_>, confidence: ConfidenceSpec) -> Result<(), SearchError> {
    let ConfidenceSpec {
        warm_up, window, ..
    } = confidence;
    let mut rule = ConfidenceRule {
        window,
        limit: None,
    };
    let mut votes = Votes::default();
    sample(search, &mut votes, rule, warm_up).await?;
    let confidences = votes.nodes().map(|id| confidence_of(search, id));
    let confidences: Vec<f64> = confidences.collect();
    let Some(limit) = quantile(&confidences, 1.0 - confidence.keep) else {
        return Ok(());
    };
    // The warm-up's answers all count for its own consensus; below the limit they have no vote
    // later.
    if has_consensus(search, &votes) {
        search.stopped.get_or_insert(Stopped::Decided);
    }
    votes.retain(|id| confidence_of(search, id) >= limit);
    votes.reweigh(|id| weight(search, id));
    rule.limit = Some(limit);
    sample(search, &mut votes, rule, search.spec.n - warm_up).await?;
    // Scores that compare answers are known now that all are there.
    search.settle().await?;
    votes.reweigh(|id| weight(search, id));
    search.value_groups(&votes);
    Ok(())
}

/// Samples answers and takes the votes of those that are whole and not below the rule's limit; with
/// one, until the votes agree.
async fn sample(
    search: &mut Search<'_>,
    votes: &mut Votes,
    rule: ConfidenceRule,
    count: usize,
) -> Result<(), SearchError> {
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let mut num_started = 0;
    while num_started < count && !search.is_over() {
        let wave = search.affordable(Tree::ROOT, count - num_started).max(1);
        num_started += wave;
        let cut = Cut::Unsure(rule);
        let mut samples = search.start(&[(Tree::ROOT, wave)], cut).await?;
        while let Some(sample) = search.next(&mut samples).await? {
            if search.is_nothing(&sample.continuation) {
                continue;
            }
            let (id, is_new) = search.add(sample);
            let is_below = rule
                .limit
                .is_some_and(|limit| confidence_of(search, id) < limit);
            if !is_whole(search.tree.node(id).end) {
                if is_new && is_below {
                    search.prune(id);
                }
                continue;
            }
            if is_new && !is_relative {
                search.score(&[id]).await?;
            }
            if is_below {
                continue;
            }
            let answer = answer_key(&search.tree.text(id));
            search.vote(votes, answer, id, weight(search, id));
            if rule.limit.is_some() && has_consensus(search, votes) {
                search.stopped.get_or_insert(Stopped::Decided);
                samples.stop();
                break;
            }
        }
    }
    Ok(())
}

fn has_consensus(search: &Search<'_>, votes: &Votes) -> bool {
    // What a vote weighs may depend on those that are still to come.
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let threshold = search.spec.threshold.filter(|_| !is_relative);
    threshold.is_some_and(|threshold| votes.leading_share() >= threshold)
}

/// That of the answer's least confident group.
fn confidence_of(search: &Search<'_>, id: NodeId) -> f64 {
    search.tree.node(id).confidence.unwrap_or(0.0)
}

/// What a vote counts: its confidence, times its score where a reward is named.
fn weight(search: &Search<'_>, id: NodeId) -> f64 {
    let score = match search.scorer {
        Some(_) => search.tree.node(id).score.unwrap_or(0.0),
        None => 1.0,
    };
    confidence_of(search, id) * score
}
