//! ReST-MCTS* (arXiv 2406.03816, section 3.3 and the released code): value-guided selection,
//! expansion by sampled steps, a greedy roll-out, back-propagation of visit-weighted means. Unlike
//! there, what has ended or failed is not selected again, and nodes get further children as their
//! visits grow ([`Frontier`]).

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::frontier::{Frontier, num_missing, steps};
use super::outcome::{SearchError, best_by, is_whole};
use super::strategy::{Defaults, Strategy};
use super::tree::{Node, NodeId, Tree};

/// What an unvisited child's bound adds: a constant, so that a high value wins among them.
const UNVISITED_BONUS: f64 = 1.0;
/// Share of the roll-out's best value in a child's new value.
const ROLL_OUT_SHARE: f64 = 0.5;
/// Steps of a greedy roll-out.
const ROLL_OUT_STEPS: usize = 3;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Mcts;

impl Strategy for Mcts {
    fn name(&self) -> &'static str {
        "mcts"
    }

    /// The released code's, but for rounds: its limit of 100 suits offline use.
    fn defaults(&self) -> Defaults {
        Defaults {
            branch: 3,
            exploration: 0.7,
            threshold: Some(0.9),
            iterations: 16,
            is_branch_within_n: false,
            ..Defaults::COMMON
        }
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let step = search.spec.step.clone();
    let exploration = search.spec.exploration;
    let mut frontier = Frontier::new(search);
    for _ in 0..search.spec.iterations {
        if search.is_over() || search.must_finish() {
            break;
        }
        let leaf = frontier.select(&search.tree, |parent, child| {
            bound(parent, child, exploration)
        });
        let num_samples = num_samples(search, leaf);
        let children = search
            .expand(&[(leaf, num_samples)], Cut::AfterStep(&step))
            .await?
            .concat();
        if steps(&search.tree, leaf).next().is_none() {
            search.tree.nodes[leaf].is_pruned = leaf != Tree::ROOT;
            continue;
        }
        search.score(&children).await?;
        // A scorer of whole answers says nothing of steps: whole roll-outs value them.
        if search.scorer.is_some_and(|scorer| scorer.is_value_model()) {
            roll_out(search, &children).await?;
        } else {
            complete(search, &children).await?;
        }
        back_propagate(&mut search.tree, leaf);
        frontier.update(&search.tree, leaf);
    }
    Ok(())
}

/// What a node's visits allow; `branch` at first, and where all that is known is closed.
fn num_samples(search: &Search<'_>, leaf: NodeId) -> usize {
    let branch = search.spec.branch;
    match num_missing(&search.tree, leaf) {
        missing if missing > 0 && steps(&search.tree, leaf).next().is_some() => missing.min(branch),
        _ => branch,
    }
}

/// `V + c * sqrt(2 * ln(N_parent) / N)`.
fn bound(parent: &Node, child: &Node, exploration: f64) -> f64 {
    let num_visits = parent.visit_count.max(1) as f64;
    let bonus = match child.visit_count {
        0 => UNVISITED_BONUS,
        visits => exploration * (2.0 * num_visits.ln() / visits as f64).sqrt(),
    };
    child.value + bonus
}

/// Follows the best child greedily for some steps; the best value seen moves the child's own.
async fn roll_out(search: &mut Search<'_>, children: &[NodeId]) -> Result<(), SearchError> {
    let step = search.spec.step.clone();
    let Some(child) = best_by(&search.tree, children.iter().copied(), |node| node.value) else {
        return Ok(());
    };
    let (mut at, mut highest) = (child, search.tree.node(child).value);
    for _ in 0..ROLL_OUT_STEPS {
        if search.tree.node(at).end.is_some() || search.is_over() || search.must_finish() {
            break;
        }
        let samples = search.sample(&[(at, 1)], Cut::AfterStep(&step)).await?;
        let Some(sample) = samples.into_iter().next() else {
            break;
        };
        at = search.add_rollout(sample);
        search.score(&[at]).await?;
        highest = highest.max(search.tree.node(at).value);
    }
    let node = &mut search.tree.nodes[child];
    node.value = (1.0 - ROLL_OUT_SHARE) * node.value + ROLL_OUT_SHARE * highest;
    node.visit_count += 1;
    Ok(())
}

/// Samples one whole answer from every child; its score is the child's value.
async fn complete(search: &mut Search<'_>, children: &[NodeId]) -> Result<(), SearchError> {
    let open: Vec<NodeId> = children
        .iter()
        .copied()
        .filter(|id| search.tree.node(*id).end.is_none())
        .collect();
    for id in children {
        let node = &mut search.tree.nodes[*id];
        node.visit_count += u64::from(is_whole(node.end));
    }
    if open.is_empty() || search.is_over() {
        return Ok(());
    }
    let wave = search.affordable(open[0], open.len()).max(1);
    let requests: Vec<(NodeId, usize)> = open.iter().take(wave).map(|id| (*id, 1)).collect();
    let mut samples = search.start(&requests, Cut::Never).await?;
    let mut rollouts = Vec::with_capacity(open.len());
    while let Some(sample) = search.next(&mut samples).await? {
        if search.is_nothing(&sample.continuation) {
            continue;
        }
        let id = sample.parent;
        let rollout = search.add_rollout(sample);
        rollouts.push((id, rollout));
        if search.decides(rollout).await? {
            samples.stop();
            break;
        }
    }
    let nodes: Vec<NodeId> = rollouts.iter().map(|(_, rollout)| *rollout).collect();
    search.score(&nodes).await?;
    for (id, rollout) in rollouts {
        let value = search.tree.node(rollout).value;
        let node = &mut search.tree.nodes[id];
        node.value = value;
        node.visit_count += 1;
    }
    Ok(())
}

/// Counts a visit from `leaf` to the root; an expanded node's value is the visit-weighted mean of its
/// children's.
fn back_propagate(tree: &mut Tree, leaf: NodeId) {
    let path: Vec<NodeId> = tree.ancestors(leaf).collect();
    for id in path {
        let (mut sum, mut visits) = (0.0, 0);
        for child in tree.selectable(id) {
            let child = tree.node(child);
            sum += child.value * child.visit_count as f64;
            visits += child.visit_count;
        }
        let node = &mut tree.nodes[id];
        node.visit_count += 1;
        if visits > 0 {
            node.value = sum / visits as f64;
        }
    }
}
