//! Which nodes of a tree search may still be selected, and when one gets further children.

use std::collections::HashSet;

use super::context::Search;
use super::outcome::best_by;
use super::tree::{Node, NodeId, Tree};
use crate::reward::Scorer;

/// Progressive widening (Couëtoux et al. 2011, "Continuous Upper Confidence Trees", section 3): a
/// node has at most `C * N^alpha` children after N visits, so that a search is not bound to what it
/// sampled first.
const WIDENING_FACTOR: f64 = 1.0;
const WIDENING_EXPONENT: f64 = 0.5;

/// What a search knows of its tree beside values: the nodes from which nothing new can come.
pub(super) struct Frontier {
    closed: HashSet<NodeId>,
    max_depth: usize,
    /// A score of 0 means that an answer is wrong.
    is_decisive: bool,
}

impl Frontier {
    pub fn new(search: &Search<'_>) -> Self {
        Self {
            closed: HashSet::new(),
            max_depth: search.spec.max_depth,
            is_decisive: search.scorer.is_some_and(Scorer::is_decisive),
        }
    }

    pub fn is_open(&self, id: NodeId) -> bool {
        !self.closed.contains(&id)
    }

    /// Walks from the root to the node to expand: one without children, or one that gets more. At
    /// each node the open child of the highest `bound` (of parent and child) is next.
    pub fn select(&self, tree: &Tree, bound: impl Fn(&Node, &Node) -> f64) -> NodeId {
        let mut at = Tree::ROOT;
        while !may_widen(tree, at) {
            let parent = tree.node(at);
            let open = tree.selectable(at).filter(|child| self.is_open(*child));
            match best_by(tree, open, |child| bound(parent, child)) {
                Some(child) => at = child,
                // It has none yet, or it is the root and all that is known is closed.
                None => break,
            }
        }
        at
    }

    /// Closes what nothing new can come from, after `leaf` was expanded and valued.
    pub fn update(&mut self, tree: &Tree, leaf: NodeId) {
        for child in steps(tree, leaf) {
            let node = tree.node(child);
            if node.end.is_some() || node.depth >= self.max_depth {
                self.closed.insert(child);
            }
        }
        for id in tree.ancestors(leaf) {
            if id != Tree::ROOT && (self.is_explored(tree, id) || self.has_failed(tree, id)) {
                self.closed.insert(id);
            }
        }
    }

    /// All children are closed, and the node gets no more.
    fn is_explored(&self, tree: &Tree, id: NodeId) -> bool {
        let mut children = steps(tree, id);
        !may_widen(tree, id) && children.all(|child| !self.is_open(child))
    }

    /// All children were tried, and every answer was wrong.
    fn has_failed(&self, tree: &Tree, id: NodeId) -> bool {
        let mut children = steps(tree, id).peekable();
        self.is_decisive
            && children.peek().is_some()
            && children.all(|child| {
                let node = tree.node(child);
                node.visit_count > 0 && node.value == 0.0
            })
    }
}

/// A node's children but for roll-outs, those that are hidden too.
pub(super) fn steps(tree: &Tree, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    let children = tree.node(id).children.iter().copied();
    children.filter(|child| !tree.node(*child).is_rollout)
}

/// How many children a node may have after its visits.
pub(super) fn most_children(node: &Node) -> usize {
    let most = WIDENING_FACTOR * (node.visit_count as f64).powf(WIDENING_EXPONENT);
    most.ceil() as usize
}

/// How many more samples than it had a node's visits allow. Equal ones count: where a model says
/// one thing only, asking again is no use.
pub(super) fn num_missing(tree: &Tree, id: NodeId) -> usize {
    let samples = steps(tree, id).map(|child| 1 + tree.node(child).duplicate_paths.len());
    most_children(tree.node(id)).saturating_sub(samples.sum())
}

fn may_widen(tree: &Tree, id: NodeId) -> bool {
    steps(tree, id).next().is_some() && num_missing(tree, id) > 0
}
