//! Spends what a prompt needs: one answer, and where that is not likely enough to be right, waves
//! of more with a weighted vote, as long as another wave can be expected to gain what it costs. How
//! likely the leading answer is right is a [`Calibration`]'s word, or, without one, the reward's
//! value and the votes' posterior. Answers that cannot be compared, programs among them, are chosen
//! by value alone.

use std::collections::BTreeSet;

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::improvement::{Scale, expected_improvement};
use super::outcome::{SearchError, Stopped, is_whole};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use crate::reward::{Calibration, Evidence, Sampled, Scorer, Votes, is_code, vote_key};

/// What one more answer may cost, in the probability of being right.
const COST: f64 = 0.005;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Auto;

impl Strategy for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            n: 16,
            threshold: Some(0.95),
            is_vote: true,
            needs_reward: true,
            takes_cost: true,
            cost: Some(COST),
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
    let (mut num_started, mut wave) = (0, 1);
    while num_started < n && !search.is_over() {
        let size = search.affordable(Tree::ROOT, wave.min(n - num_started));
        let size = size.max(1);
        num_started += size;
        sample(search, &mut votes, size).await?;
        wave *= 2;
        let next = wave.min(n - num_started);
        if next > 0 && !is_worth_more(search, &votes, next, n - num_started) {
            search.stopped.get_or_insert(Stopped::Decided);
        }
    }
    // Scores that compare answers are known now that all are there.
    search.settle().await?;
    votes.reweigh(|id| weight(search, id));
    let probability = Outlook::of(search, &votes).map(|outlook| outlook.probability());
    search.value_groups(&votes);
    // The best answer's value is how likely it is right; the others keep their distance.
    let nodes: BTreeSet<NodeId> = votes.nodes().collect();
    let values = nodes.iter().map(|id| search.tree.node(*id).value);
    let highest = values.fold(0.0, f64::max);
    if let Some(probability) = probability.filter(|_| highest > 0.0) {
        for id in nodes {
            let node = &mut search.tree.nodes[id];
            node.value = (node.value / highest).min(1.0) * probability;
        }
    }
    Ok(())
}

/// Samples a wave of answers and takes their votes; an answer that is known to be right ends it.
async fn sample(
    search: &mut Search<'_>,
    votes: &mut Votes,
    size: usize,
) -> Result<(), SearchError> {
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let is_decisive = search.scorer.is_some_and(Scorer::is_decisive);
    let mut samples = search.start(&[(Tree::ROOT, size)], Cut::Never).await?;
    while let Some(sample) = search.next(&mut samples).await? {
        if search.is_nothing(&sample.continuation) {
            continue;
        }
        let (id, is_new) = search.add(sample);
        if !is_whole(search.tree.node(id).end) {
            continue;
        }
        if is_new && !is_relative {
            search.score(&[id]).await?;
        }
        let answer = vote_key(&search.tree.text(id));
        search.vote(votes, answer, id, weight(search, id));
        if is_decisive && search.tree.node(id).score == Some(1.0) {
            search.stopped.get_or_insert(Stopped::Decided);
            samples.stop();
            break;
        }
    }
    Ok(())
}

/// What a vote counts: its score, and 1 as long as that depends on votes that are still to come.
fn weight(search: &Search<'_>, id: NodeId) -> f64 {
    match (search.scorer, search.tree.node(id).score) {
        (Some(_), Some(score)) => score,
        (Some(scorer), None) if !scorer.is_relative() => 0.0,
        _ => 1.0,
    }
}

/// What is known of the leading answer, and how it is read.
struct Outlook<'a> {
    evidence: Evidence,
    /// Whether answers can agree: programs never do.
    is_comparable: bool,
    /// Whether a value is a verifier's word.
    is_decisive: bool,
    calibration: Option<&'a Calibration>,
}

impl<'a> Outlook<'a> {
    fn of(search: &Search<'a>, votes: &Votes) -> Option<Self> {
        let sampled = |id: NodeId| {
            let node = search.tree.node(id);
            Sampled {
                value: node.score,
                logprob: node.logprob / node.num_tokens.max(1) as f64,
                num_tokens: node.num_tokens,
            }
        };
        let evidence = Evidence::of(votes, sampled)?;
        let kind = search.scorer.map(Scorer::kind);
        let fits = |calibration: &&Calibration| Some(calibration.reward.as_str()) == kind;
        let is_comparable =
            evidence.num_votes > 1 || votes.nodes().any(|id| !is_code(&search.tree.text(id)));
        Some(Self {
            evidence,
            is_comparable,
            is_decisive: search.scorer.is_some_and(Scorer::is_decisive),
            calibration: search.calibration.filter(fits),
        })
    }

    /// How likely the leading answer is right.
    fn probability(&self) -> f64 {
        self.probability_of(&self.evidence)
    }

    fn probability_of(&self, evidence: &Evidence) -> f64 {
        let value = evidence.value;
        if self.is_decisive {
            return value.unwrap_or(0.0);
        }
        match self.calibration {
            Some(calibration) => calibration.probability(evidence),
            None if self.is_comparable && evidence.num_samples > 1 => {
                value.unwrap_or(0.0).max(evidence.stays_ahead())
            }
            None => value.unwrap_or(0.0),
        }
    }

    /// At most how much a wave of this many answers raises the probability of being right: it must
    /// bring another answer to the lead, and that one cannot be surer than if the whole wave
    /// agreed.
    fn gain(&self, wave: usize) -> f64 {
        let best = self.probability_of(&self.evidence.with_agreeing(wave));
        let changes = 1.0 - self.evidence.stays_ahead();
        changes * (best - self.probability()).max(0.0)
    }
}

/// Whether a wave of `wave` answers, of `num_left` at most, is expected to gain what it costs.
fn is_worth_more(search: &Search<'_>, votes: &Votes, wave: usize, num_left: usize) -> bool {
    let Some(outlook) = Outlook::of(search, votes) else {
        return true;
    };
    let threshold = search.spec.threshold;
    if threshold.is_some_and(|threshold| outlook.probability() >= threshold) {
        return false;
    }
    let cost = search.spec.cost.unwrap_or(COST);
    if outlook.is_decisive || !outlook.is_comparable {
        let scale = match outlook.is_decisive {
            true => Scale::Decisive,
            false => Scale::Graded,
        };
        let values = votes.nodes().filter_map(|id| search.tree.node(id).score);
        return expected_improvement(&values.collect::<Vec<f64>>(), scale) > cost;
    }
    !votes.cannot_be_caught(num_left) && outlook.gain(wave) > cost * wave as f64
}
