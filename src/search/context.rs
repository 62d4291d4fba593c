//! What all strategies share: expanding, scoring, budgets, the best answer so far.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::event::SearchEvent;
use super::outcome::{SearchError, SearchOutcome, SearchStats, Stopped, is_whole, rank};
use super::policy::{Continuation, End, Finished, Policy, Running};
use super::recording::Recording;
use super::spec::{SearchSpec, Strategy};
use super::step::StepRule;
use super::tree::{NodeId, Tree};
use super::{beam, best_of_n, mcts, self_consistency, vm_mcts};
use crate::reward::{Candidate, Scored, Scorer, Weighted};

/// Where the samples of an expansion end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut<'s> {
    /// With the answer.
    Never,
    /// After one step.
    AfterStep(&'s StepRule),
    /// With the answer, but the end of the first step is noted.
    NoteFirst(&'s StepRule),
}

impl Cut<'_> {
    fn step(&self) -> Option<&StepRule> {
        match self {
            Self::AfterStep(rule) => Some(rule),
            Self::Never | Self::NoteFirst(_) => None,
        }
    }

    fn first_step(&self) -> Option<&StepRule> {
        match self {
            Self::NoteFirst(rule) => Some(rule),
            Self::Never | Self::AfterStep(_) => None,
        }
    }
}

/// One search while it runs.
pub struct Search<'a> {
    pub(super) policy: &'a dyn Policy,
    pub(super) scorer: Option<&'a Weighted>,
    pub(super) spec: &'a SearchSpec,
    pub(super) tree: Tree,
    pub(super) stopped: Option<Stopped>,
    deadline: Option<Instant>,
    stats: SearchStats,
    events: Option<UnboundedSender<SearchEvent>>,
    best: Option<(NodeId, f64)>,
    /// Known scores by text and whether it has ended.
    scores: HashMap<(String, bool), Scored>,
    /// Bytes of text that were announced as agreed.
    num_agreed: usize,
}

impl<'a> Search<'a> {
    /// `scorer` may only be absent for self-consistency.
    pub fn new(
        policy: &'a dyn Policy,
        scorer: Option<&'a Weighted>,
        spec: &'a SearchSpec,
        events: Option<UnboundedSender<SearchEvent>>,
    ) -> Self {
        let ms = spec.budget.ms.map(Duration::from_millis);
        Self {
            policy,
            scorer,
            spec,
            tree: Tree::new(),
            stopped: None,
            deadline: ms.and_then(|ms| Instant::now().checked_add(ms)),
            stats: SearchStats::default(),
            events,
            best: None,
            scores: HashMap::new(),
            num_agreed: 0,
        }
    }

    /// Knows the scores of an earlier run; its samples come from a [`super::ReplayPolicy`].
    pub fn with_recording(mut self, recording: &Recording) -> Self {
        self.scores = recording.scores();
        self
    }

    /// Runs the strategy to its end. Dropping the future aborts everything within one engine step.
    pub async fn run(mut self) -> Result<SearchOutcome, SearchError> {
        match self.spec.strategy {
            Strategy::None => {}
            Strategy::SelfConsistency => self_consistency::run(&mut self).await?,
            Strategy::BestOfN => best_of_n::run(&mut self).await?,
            Strategy::Beam | Strategy::Dvts => beam::run(&mut self).await?,
            Strategy::Mcts => mcts::run(&mut self).await?,
            Strategy::VmMcts => vm_mcts::run(&mut self).await?,
        }
        self.finish_one().await?;
        self.stats.num_nodes = self.tree.nodes.len() - 1;
        self.stats.num_tokens = self.policy.num_tokens();
        let answers = rank(&self.tree);
        if answers.is_empty() {
            return Err(SearchError::NoAnswer);
        }
        Ok(SearchOutcome {
            answers,
            tree: self.tree,
            stopped: self.stopped,
            stats: self.stats,
        })
    }

    pub(super) fn send(&self, event: SearchEvent) {
        if let Some(events) = &self.events {
            let _ = events.send(event);
        }
    }

    /// Whether nothing more may be spent, or nothing more is needed.
    pub(super) fn is_over(&mut self) -> bool {
        if self.stopped.is_some() {
            return true;
        }
        let is_late = self
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now());
        let tokens = self.spec.budget.tokens;
        let calls = self.spec.budget.scorer_calls;
        if is_late
            || tokens.is_some_and(|limit| self.policy.num_tokens() >= limit)
            || calls.is_some_and(|limit| self.stats.scorer_calls >= limit)
        {
            self.stopped = Some(Stopped::Budget);
        }
        self.stopped.is_some()
    }

    fn has_answer(&self) -> bool {
        self.tree.nodes.iter().any(|node| is_whole(node.end))
    }

    /// Whether a search by steps that has no answer yet must now finish one: half of its tokens are kept for
    /// that, since a search without an answer is worth nothing.
    pub(super) fn must_finish(&self) -> bool {
        let limit = self.spec.budget.tokens;
        !self.has_answer() && limit.is_some_and(|limit| self.policy.num_tokens() * 2 >= limit)
    }

    /// Starts samples of several nodes in one batch.
    pub(super) async fn start(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Box<dyn Running + 'a>, SearchError> {
        let step = |rule: Option<&StepRule>| rule.cloned();
        let expansions = requests
            .iter()
            .map(|(id, n)| {
                let (end, first) = (step(cut.step()), step(cut.first_step()));
                self.tree.expansion(*id, *n, end, first)
            })
            .collect();
        let policy = self.policy;
        policy.start(expansions).await
    }

    /// Samples `n` continuations of each node and adds them to the tree, those that repeat a sibling merged.
    /// Returns the new children of each node in the order of their samples.
    pub(super) async fn expand(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Vec<Vec<NodeId>>, SearchError> {
        let samples = self.sample(requests, cut).await?;
        let mut children = Vec::with_capacity(requests.len());
        for ((parent, _), samples) in requests.iter().zip(samples) {
            let mut new = Vec::new();
            for (index, continuation) in samples {
                // A sample that is cut before its first token says nothing.
                if continuation.token_ids.is_empty() && continuation.end == End::Cut {
                    continue;
                }
                let (id, is_new) = self.add(*parent, index, continuation);
                if is_new {
                    new.push(id);
                }
            }
            children.push(new);
        }
        Ok(children)
    }

    /// Samples without adding them to the tree; each with its index.
    pub(super) async fn sample(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Vec<Vec<(usize, Continuation)>>, SearchError> {
        let mut running = self.start(requests, cut).await?;
        let mut samples = vec![Vec::new(); requests.len()];
        while let Some(finished) = running.next().await {
            let Finished {
                expansion,
                index,
                continuation,
            } = finished?;
            self.is_nothing(&continuation);
            samples[expansion].push((index, continuation));
        }
        for samples in &mut samples {
            samples.sort_by_key(|(index, _)| *index);
        }
        Ok(samples)
    }

    /// How many of `n` whole answers from a node the tokens that are left can be expected to finish: samples that run
    /// side by side would otherwise all be cut before the end of any. Until a whole answer has shown how long answers
    /// are, they are taken to be as long as allowed.
    pub(super) fn affordable(&self, node: NodeId, n: usize) -> usize {
        let Some(limit) = self.spec.budget.tokens else {
            return n;
        };
        let whole = self.tree.nodes.iter().filter(|node| is_whole(node.end));
        let (count, sum) = whole.fold((0, 0), |(count, sum), node| {
            (count + 1, sum + node.num_tokens)
        });
        let expected = match count {
            0 => self.policy.max_tokens(),
            _ => sum / count,
        };
        let prefix = self.tree.node(node).num_tokens;
        let rest = expected.saturating_sub(prefix).max(expected / 4).max(1);
        let left = limit.saturating_sub(self.policy.num_tokens());
        usize::try_from(left / rest as u64).map_or(n, |fits| fits.min(n))
    }

    /// Whether a sample was cut before its first token. A cut means that a budget is spent.
    pub(super) fn is_nothing(&mut self, continuation: &Continuation) -> bool {
        let is_cut = continuation.end == End::Cut;
        if is_cut {
            self.stopped = Some(Stopped::Budget);
        }
        is_cut && continuation.token_ids.is_empty()
    }

    /// Scores an answer that has just ended if its score may end the search. True once it has: then the
    /// samples that still run beside it are worth nothing.
    pub(super) async fn decides(&mut self, id: NodeId) -> Result<bool, SearchError> {
        let may_decide = |scorer: &&Weighted| {
            !scorer.is_relative() && (scorer.is_decisive() || self.spec.threshold.is_some())
        };
        if self.scorer.as_ref().is_some_and(may_decide) && is_whole(self.tree.node(id).end) {
            self.score(&[id]).await?;
        }
        Ok(self.stopped == Some(Stopped::Decided))
    }

    /// Adds sample `index` of the node's latest expansion.
    pub(super) fn add(
        &mut self,
        parent: NodeId,
        index: usize,
        continuation: Continuation,
    ) -> (NodeId, bool) {
        let path = self.tree.child_path(parent, index);
        let text = continuation.text.clone();
        let (node, is_new) = self.tree.add(parent, path, continuation);
        if is_new {
            self.announce(node, parent, text);
        }
        (node, is_new)
    }

    /// Adds sample `index` of the node's latest expansion, see [`super::tree::Node::is_rollout`].
    pub(super) fn add_rollout(
        &mut self,
        parent: NodeId,
        index: usize,
        continuation: Continuation,
    ) -> NodeId {
        let path = self.tree.child_path(parent, index);
        self.add_rollout_at(parent, path, continuation)
    }

    pub(super) fn add_rollout_at(
        &mut self,
        parent: NodeId,
        branch_path: Vec<u32>,
        continuation: Continuation,
    ) -> NodeId {
        let text = continuation.text.clone();
        let node = self.tree.add_rollout(parent, branch_path, continuation);
        self.announce(node, parent, text);
        node
    }

    fn announce(&self, node: NodeId, parent: NodeId, text: String) {
        let tokens = self.policy.num_tokens();
        self.send(SearchEvent::Spawn {
            node,
            parent,
            text,
            tokens,
        });
    }

    /// Scores nodes and gives them their values; what cannot be scored before its end keeps 0.
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

    /// Sets the nodes' scores; the same text is scored once.
    async fn call_scorer(
        &mut self,
        scorer: &Weighted,
        nodes: &[NodeId],
    ) -> Result<(), SearchError> {
        let is_cached = !scorer.is_relative();
        let candidates: Vec<Candidate> = nodes.iter().map(|id| self.tree.candidate(*id)).collect();
        let key = |candidate: &Candidate| (candidate.text.clone(), candidate.is_complete);
        let (mut new, mut indices) = (Vec::new(), Vec::new());
        for (index, (id, candidate)) in nodes.iter().zip(candidates).enumerate() {
            match self.scores.get(&key(&candidate)).filter(|_| is_cached) {
                Some(scored) => self.tree.nodes[*id].take_score(scored.clone()),
                None => {
                    new.push(candidate);
                    indices.push(index);
                }
            }
        }
        // What the budget has no call for keeps no score.
        let limit = self.spec.budget.scorer_calls.unwrap_or(u64::MAX);
        let left = usize::try_from(limit - self.stats.scorer_calls).unwrap_or(usize::MAX);
        if new.len() > left {
            new.truncate(left);
            self.stopped = Some(Stopped::Budget);
        }
        if new.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let scores = match self.deadline {
            None => scorer.score_parts(&new).await?,
            Some(deadline) => {
                let scored =
                    tokio::time::timeout_at(deadline.into(), scorer.score_parts(&new)).await;
                let Ok(scores) = scored else {
                    self.stopped = Some(Stopped::Budget);
                    return Ok(());
                };
                scores?
            }
        };
        self.stats.scorer_time += started.elapsed();
        self.stats.scorer_calls += new.len() as u64;
        for ((index, candidate), mut scored) in indices.into_iter().zip(&new).zip(scores) {
            scored.score = match scored.score.is_finite() {
                true => scored.score.clamp(0.0, 1.0),
                false => 0.0,
            };
            self.tree.nodes[nodes[index]].take_score(scored.clone());
            self.scores.insert(key(candidate), scored);
        }
        Ok(())
    }

    /// Ends the search when an answer is as good as one can be, or good enough for the client.
    fn check_decided(&mut self, scorer: &Weighted) {
        if self.spec.strategy == Strategy::SelfConsistency || scorer.is_relative() {
            return;
        }
        let perfect = scorer.is_decisive().then_some(1.0);
        let enough = self.spec.threshold.or(perfect);
        if let (Some((_, value)), Some(enough)) = (self.best, enough)
            && value >= enough
        {
            self.stopped.get_or_insert(Stopped::Decided);
        }
    }

    pub(super) fn prune(&mut self, id: NodeId) {
        self.tree.nodes[id].is_pruned = true;
        self.send(SearchEvent::Prune { node: id });
    }

    /// Tells what all of the branches that are left have in common.
    pub(super) fn agree(&mut self, branches: &[NodeId]) {
        if self.has_answer() {
            return;
        }
        let text = self.tree.text(self.tree.common_ancestor(branches));
        if let Some(news) = text.get(self.num_agreed..)
            && !news.is_empty()
        {
            self.send(SearchEvent::Agreed {
                text: news.to_owned(),
            });
            self.num_agreed = text.len();
        }
    }

    /// When no answer ended by itself, lets the best branch run to its end on what is left.
    async fn finish_one(&mut self) -> Result<(), SearchError> {
        if self.has_answer() {
            return Ok(());
        }
        let open = (0..self.tree.nodes.len()).filter(|id| {
            let node = self.tree.node(*id);
            node.end.is_none() && !node.is_pruned && node.children.is_empty()
        });
        let best = open.max_by(|a, b| {
            let (a, b) = (self.tree.node(*a), self.tree.node(*b));
            a.value.total_cmp(&b.value).then(a.depth.cmp(&b.depth))
        });
        let Some(best) = best else {
            return Ok(());
        };
        let expansion = self.tree.last_expansion(best);
        let path = [expansion.branch_path.as_slice(), &[0]].concat();
        let policy = self.policy;
        let mut running = policy.start(vec![expansion]).await?;
        while let Some(finished) = running.next().await {
            let continuation = finished?.continuation;
            if !self.is_nothing(&continuation) {
                let text = continuation.text.clone();
                let (node, _) = self.tree.add(best, path.clone(), continuation);
                self.announce(node, best, text);
                self.score(&[node]).await?;
            }
        }
        Ok(())
    }
}
