//! Scores and values of a search's nodes.

use super::context::{Search, now};
use super::event::SearchEvent;
use super::outcome::{SearchError, Stopped, is_whole};
use super::samples::Sample;
use super::tree::{NodeId, ScoreKey};
use crate::reward::{Aggregate, Candidate, Scored, Scorer, ScorerError, Weighted};

impl Search<'_> {
    /// Scores an answer that has just ended if its score may end the search. True once it has: then the
    /// samples that still run beside it are worth nothing.
    pub(super) async fn decides(&mut self, id: NodeId) -> Result<bool, SearchError> {
        let may_decide = self.scorer.is_some_and(|scorer| self.may_decide(scorer));
        if may_decide && is_whole(self.tree.node(id).end) {
            self.score(&[id]).await?;
        }
        Ok(self.stopped == Some(Stopped::Decided))
    }

    fn may_decide(&self, scorer: &Weighted) -> bool {
        !scorer.is_relative() && (scorer.is_decisive() || self.spec.threshold.is_some())
    }

    /// [`Self::decides`] of an answer that is not in the tree yet. Where the scores of the steps
    /// before it count too, it does not decide before it is.
    pub(super) async fn would_decide(&mut self, sample: &Sample) -> Result<bool, SearchError> {
        let whole = &sample.continuation;
        let Some(scorer) = self.scorer.filter(|scorer| self.may_decide(scorer)) else {
            return Ok(false);
        };
        let is_its_own = !scorer.scores_steps() || self.spec.aggregate == Aggregate::Last;
        if !is_whole(Some(whole.end)) || !is_its_own {
            return Ok(false);
        }
        let (key, candidate) = self.tree.candidate_after(sample.parent, whole);
        if !self.scores.contains_key(&key) {
            self.learn_own_scores(scorer, vec![(key, candidate)])
                .await?;
        }
        let own = self.scores.get(&key);
        let value = own.map(|own| finite(scorer.combine(own, &[]).score));
        if let (Some(value), Some(enough)) = (value, self.enough(scorer))
            && value >= enough
        {
            self.stopped.get_or_insert(Stopped::Decided);
        }
        Ok(self.stopped == Some(Stopped::Decided))
    }

    /// Scores nodes and gives them their values; what cannot be scored before its end keeps 0. Scores that compare
    /// answers compare these alone, until [`Self::settle`].
    pub(super) async fn score(&mut self, nodes: &[NodeId]) -> Result<(), SearchError> {
        let Some(scorer) = self.scorer else {
            return Ok(());
        };
        let nodes: Vec<NodeId> = nodes
            .iter()
            .copied()
            .filter(|id| is_whole(self.tree.node(*id).end) || scorer.scores_steps())
            // What was scored when it ended has its value.
            .filter(|id| self.tree.node(*id).score.is_none() || scorer.is_relative())
            .collect();
        if nodes.is_empty() {
            return Ok(());
        }
        self.call_scorer(scorer, &nodes).await?;
        for id in nodes {
            let value = self.tree.aggregate(id, self.spec.aggregate);
            self.tree.nodes[id].value = value;
            self.send(SearchEvent::Score { node: id, value });
            let is_best = self.best.is_none_or(|(_, best)| value > best);
            if is_best && is_whole(self.tree.node(id).end) {
                self.best = Some((id, value));
                self.send(SearchEvent::Best { node: id, value });
            }
        }
        self.check_decided(scorer);
        Ok(())
    }

    /// Gives all whole answers the scores that they have beside each other, where the scorer compares answers.
    pub(super) async fn settle(&mut self) -> Result<(), SearchError> {
        let Some(scorer) = self.scorer.filter(|scorer| scorer.is_relative()) else {
            return Ok(());
        };
        let whole = (1..self.tree.nodes.len()).filter(|id| is_whole(self.tree.node(*id).end));
        let whole: Vec<NodeId> = whole.collect();
        self.call_scorer(scorer, &whole).await?;
        let mut best: Option<(NodeId, f64)> = None;
        for id in whole {
            let value = self.tree.aggregate(id, self.spec.aggregate);
            if best.is_none_or(|(_, highest)| value > highest) {
                best = Some((id, value));
            }
            if self.tree.node(id).value != value {
                self.tree.nodes[id].value = value;
                self.send(SearchEvent::Score { node: id, value });
            }
        }
        if let Some((node, value)) = best.filter(|best| self.best != Some(*best)) {
            self.best = best;
            self.send(SearchEvent::Best { node, value });
        }
        Ok(())
    }

    /// Sets the nodes' scores; what a text is worth by itself is asked once.
    async fn call_scorer(
        &mut self,
        scorer: &Weighted,
        nodes: &[NodeId],
    ) -> Result<(), SearchError> {
        let unknown = nodes.iter().map(|id| self.tree.score_key(*id)).zip(nodes);
        let unknown = unknown.filter(|(key, _)| !self.scores.contains_key(key));
        let unknown = unknown.map(|(key, id)| (key, self.tree.candidate(*id)));
        let unknown = unknown.collect();
        self.learn_own_scores(scorer, unknown).await?;
        let (mut known, mut candidates, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for id in nodes {
            if let Some(scores) = self.scores.get(&self.tree.score_key(*id)) {
                known.push(*id);
                own.push(scores.clone());
                if scorer.is_relative() {
                    candidates.push(self.tree.candidate(*id));
                }
            }
        }
        let scored: Vec<Scored> = match scorer.is_relative() {
            false => own.iter().map(|own| scorer.combine(own, &[])).collect(),
            true => {
                let scored = scorer.compare(&candidates, &own, self.deadline).await;
                self.in_time(scored)?.unwrap_or_default()
            }
        };
        for (id, mut scored) in known.into_iter().zip(scored) {
            scored.score = finite(scored.score);
            self.tree.nodes[id].take_score(scored);
        }
        Ok(())
    }

    /// Asks the scorer what answers are worth by themselves, as far as the budget allows.
    async fn learn_own_scores(
        &mut self,
        scorer: &Weighted,
        mut new: Vec<(ScoreKey, Candidate)>,
    ) -> Result<(), SearchError> {
        // What the budget has no call for keeps no score.
        let limit = self.spec.budget.scorer_calls.unwrap_or(u64::MAX);
        let left = limit.saturating_sub(self.stats.scorer_calls);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if new.len() > left {
            new.truncate(left);
            self.stopped = Some(Stopped::Budget);
        }
        if new.is_empty() {
            return Ok(());
        }
        let (keys, candidates): (Vec<ScoreKey>, Vec<Candidate>) = new.into_iter().unzip();
        let started = now();
        let scores = scorer.score_own(&candidates, self.deadline).await;
        let Some(scores) = self.in_time(scores)? else {
            return Ok(());
        };
        self.stats.scorer_time += now().saturating_duration_since(started);
        self.stats.scorer_calls += keys.len() as u64;
        self.scores.extend(keys.into_iter().zip(scores));
        Ok(())
    }

    /// A scorer's answer; `None`, and the search is over, when the deadline came first.
    fn in_time<T>(&mut self, result: Result<T, ScorerError>) -> Result<Option<T>, SearchError> {
        match result {
            Ok(answer) => Ok(Some(answer)),
            Err(ScorerError::Deadline { .. }) => {
                self.stopped = Some(Stopped::Budget);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the search when an answer is as good as one can be, or good enough for the client.
    fn check_decided(&mut self, scorer: &Weighted) {
        if self.spec.strategy.defaults().is_vote || scorer.is_relative() {
            return;
        }
        if let (Some((_, value)), Some(enough)) = (self.best, self.enough(scorer))
            && value >= enough
        {
            self.stopped.get_or_insert(Stopped::Decided);
        }
    }

    /// The value at which an answer is as good as one can be, or good enough for the client.
    fn enough(&self, scorer: &Weighted) -> Option<f64> {
        let perfect = scorer.is_decisive().then_some(1.0);
        self.spec.threshold.or(perfect)
    }
}

/// A score that counts: what is no number is worth nothing.
fn finite(score: f64) -> f64 {
    match score.is_finite() {
        true => score.clamp(0.0, 1.0),
        false => 0.0,
    }
}
