//! What all strategies share: expanding, budgets, the end. Scores are in [`super::scoring`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::cut::Cut;
use super::event::SearchEvent;
use super::inserted::pieces;
use super::outcome::{SearchError, SearchOutcome, SearchStats, Stopped, is_whole, rank};
use super::policy::{Continuation, End, Expansion, Policy};
use super::recording::Recording;
use super::samples::{NoSample, Sample, Samples};
use super::spec::SearchSpec;
use super::step::StepRule;
use super::tree::{NodeId, ScoreKey, Tree};
use crate::engine::EngineError;
use crate::reward::{Calibration, OwnScores, Scorer, Weighted};

/// The time that budgets count: a runtime's own, which tests may hold still.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One search while it runs.
pub struct Search<'a> {
    pub(super) policy: &'a dyn Policy,
    pub(super) scorer: Option<&'a Weighted>,
    pub(super) calibration: Option<&'a Calibration>,
    pub(super) spec: &'a SearchSpec,
    pub(super) tree: Tree,
    pub(super) stopped: Option<Stopped>,
    /// The earlier of the budget's and the policy's: nothing is waited for beyond it.
    pub(super) deadline: Option<Instant>,
    pub(super) stats: SearchStats,
    pub(super) best: Option<(NodeId, f64)>,
    /// What is known of answers by themselves.
    pub(super) scores: HashMap<ScoreKey, OwnScores>,
    events: Option<UnboundedSender<SearchEvent>>,
    /// Bytes of text that were announced as agreed.
    num_agreed: usize,
}

impl<'a> Search<'a> {
    /// `scorer` may only be absent where the spec names no reward.
    pub fn new(
        policy: &'a dyn Policy,
        scorer: Option<&'a Weighted>,
        spec: &'a SearchSpec,
        events: Option<UnboundedSender<SearchEvent>>,
    ) -> Self {
        let ms = spec.budget.ms.map(Duration::from_millis);
        let budget = ms.and_then(|ms| now().checked_add(ms));
        Self {
            policy,
            scorer,
            calibration: None,
            spec,
            tree: Tree::new(),
            stopped: None,
            deadline: budget.into_iter().chain(policy.deadline()).min(),
            stats: SearchStats::default(),
            best: None,
            scores: HashMap::new(),
            events,
            num_agreed: 0,
        }
    }

    /// Knows what values and votes of this server's answers have meant so far.
    pub fn with_calibration(mut self, calibration: Option<&'a Calibration>) -> Self {
        self.calibration = calibration;
        self
    }

    /// Knows the scores of an earlier run; its samples come from a [`super::ReplayPolicy`].
    pub fn with_recording(mut self, recording: &Recording) -> Self {
        // Scores that compare answers are of the answers that there were.
        if self.scorer.is_some_and(|scorer| !scorer.is_relative()) {
            self.scores = recording.scores();
        }
        self
    }

    /// Runs the strategy to its end. Dropping the future aborts everything within one engine step.
    pub async fn run(mut self) -> Result<SearchOutcome, SearchError> {
        let strategy = self.spec.strategy;
        strategy.run(&mut self).await?;
        if !strategy.defaults().is_vote {
            self.settle().await?;
            if self.stopped != Some(Stopped::Decided) {
                strategy.choose(&mut self);
            }
        }
        self.finish_one().await?;
        self.stats.num_nodes = self.tree.nodes.len() - 1;
        self.stats.num_tokens = self.policy.num_tokens();
        let answers = rank(&self.tree, self.spec.n.max(self.spec.branch));
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

    pub(super) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now())
    }

    /// Whether nothing more may be spent, or nothing more is needed.
    pub(super) fn is_over(&mut self) -> bool {
        if self.stopped.is_some() {
            return true;
        }
        let tokens = self.spec.budget.tokens;
        let calls = self.spec.budget.scorer_calls;
        if self.is_late()
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

    /// Starts samples of several nodes in one batch; none when the deadline comes before they have a place.
    pub(super) async fn start(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Samples<'a>, SearchError> {
        let step = |rule: Option<&StepRule>| rule.cloned();
        let expansions = requests.iter().map(|(id, n)| {
            let (end, noted) = (step(cut.step()), step(cut.noted_step()));
            Expansion {
                confidence: cut.confidence(),
                ..self.tree.expansion(*id, *n, end, noted)
            }
        });
        let expansions = expansions.collect();
        let parents = requests.iter().map(|(id, _)| *id).collect();
        self.start_all(parents, expansions).await
    }

    async fn start_all(
        &mut self,
        parents: Vec<NodeId>,
        expansions: Vec<Expansion>,
    ) -> Result<Samples<'a>, SearchError> {
        let samples = Samples::new(parents, &expansions, self.deadline);
        let policy = self.policy;
        let started = match self.deadline {
            None => policy.start(expansions).await,
            Some(deadline) => {
                let start = policy.start(expansions);
                match tokio::time::timeout_at(deadline.into(), start).await {
                    Ok(started) => started,
                    Err(_) => return Ok(self.over(samples)),
                }
            }
        };
        match started {
            Ok(running) => Ok(samples.started(running)),
            // It gave up waiting for a place.
            Err(SearchError::Engine(EngineError::Overloaded { .. })) if self.is_late() => {
                Ok(self.over(samples))
            }
            Err(error) => Err(error),
        }
    }

    fn over<T>(&mut self, value: T) -> T {
        self.stopped = Some(Stopped::Budget);
        value
    }

    /// The next sample that ended, until there is none or the deadline has passed.
    pub(super) async fn next(
        &mut self,
        samples: &mut Samples<'a>,
    ) -> Result<Option<Sample>, SearchError> {
        match samples.next().await {
            Ok(sample) => Ok(sample),
            Err(NoSample::Deadline) => Ok(self.over(None)),
            Err(NoSample::Failed(error)) => Err(error),
        }
    }

    /// Samples `n` continuations of each node and adds them to the tree, those that repeat a sibling merged.
    /// Returns the new children of each node in the order of their samples.
    pub(super) async fn expand(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Vec<Vec<NodeId>>, SearchError> {
        let mut children = vec![Vec::new(); requests.len()];
        for sample in self.sample(requests, cut).await? {
            // A sample that is cut before its first token says nothing.
            let continuation = &sample.continuation;
            if continuation.token_ids.is_empty() && continuation.end == End::Cut {
                continue;
            }
            let expansion = sample.expansion;
            let (id, is_new) = self.add(sample);
            if is_new {
                children[expansion].push(id);
            }
        }
        Ok(children)
    }

    /// Samples without adding them to the tree, in the order of the requests and of their samples.
    pub(super) async fn sample(
        &mut self,
        requests: &[(NodeId, usize)],
        cut: Cut<'_>,
    ) -> Result<Vec<Sample>, SearchError> {
        let mut samples = self.start(requests, cut).await?;
        let mut ended = Vec::new();
        while let Some(sample) = self.next(&mut samples).await? {
            self.is_nothing(&sample.continuation);
            ended.push(sample);
        }
        // Paths of one expansion differ in their last part, the sample's index.
        ended.sort_by_key(|sample| (sample.expansion, sample.branch_path.last().copied()));
        Ok(ended)
    }

    /// How many of `n` whole answers from a node the tokens that are left can be expected to finish: samples that run
    /// side by side would otherwise all be cut before the end of any. Until a whole answer has shown how long answers
    /// are, they are taken to be as long as allowed.
    pub(super) fn affordable(&self, node: NodeId, n: usize) -> usize {
        self.affordable_beside(node, n, &[])
    }

    /// [`Self::affordable`] when samples of the node have ended that are not in the tree yet.
    pub(super) fn affordable_beside(&self, node: NodeId, n: usize, ended: &[Sample]) -> usize {
        let Some(limit) = self.spec.budget.tokens else {
            return n;
        };
        let prefix = self.tree.node(node).num_tokens;
        let known = self.tree.nodes.iter().filter(|node| is_whole(node.end));
        let new = ended.iter().map(|sample| &sample.continuation);
        let new = new.filter(|sample| is_whole(Some(sample.end)));
        let lengths = known
            .map(|node| node.num_tokens)
            .chain(new.map(|sample| prefix + sample.num_own()));
        let (count, sum) = lengths.fold((0, 0), |(count, sum), len| (count + 1, sum + len));
        let expected = match count {
            0 => self.policy.max_tokens(),
            _ => sum / count,
        };
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

    /// Adds a sample, or merges it into a sibling that it repeats.
    pub(super) fn add(&mut self, sample: Sample) -> (NodeId, bool) {
        let (parent, text) = (sample.parent, sample.continuation.text.clone());
        let (node, is_new) = self
            .tree
            .add(parent, sample.branch_path, sample.continuation);
        if is_new {
            self.announce(node, parent, text);
        }
        (node, is_new)
    }

    /// Adds a sample that values its parent, see [`super::tree::Node::is_rollout`].
    pub(super) fn add_rollout(&mut self, sample: Sample) -> NodeId {
        let (parent, text) = (sample.parent, sample.continuation.text.clone());
        let node = self
            .tree
            .add_rollout(parent, sample.branch_path, sample.continuation);
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

    pub(super) fn prune(&mut self, id: NodeId) {
        self.tree.nodes[id].is_pruned = true;
        self.send(SearchEvent::Prune { node: id });
    }

    /// Tells what all of the branches that are left have in common.
    pub(super) fn agree(&mut self, branches: &[NodeId]) {
        if self.has_answer() {
            return;
        }
        let common = self.tree.common_ancestor(branches);
        let text = self.tree.text(common);
        if let Some(news) = text.get(self.num_agreed..)
            && !news.is_empty()
        {
            self.send(SearchEvent::Agreed {
                text: news.to_owned(),
                pieces: pieces(&text, &self.tree.inserted(common), self.num_agreed),
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
        let mut samples = self.start_all(vec![best], vec![expansion]).await?;
        while let Some(sample) = self.next(&mut samples).await? {
            if !self.is_nothing(&sample.continuation) {
                let (node, _) = self.add(sample);
                self.score(&[node]).await?;
            }
        }
        Ok(())
    }
}
