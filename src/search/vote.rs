//! Votes for final answers.

use super::context::Search;
use super::event::SearchEvent;
use super::outcome::is_whole;
use super::tree::NodeId;
use crate::reward::{answer_key, is_comparable};

/// Samples that agree on an answer.
pub(super) struct Group {
    pub answer: String,
    /// One a vote: equal samples are one node.
    pub nodes: Vec<NodeId>,
    /// Sum of scores, or of votes when there is no reward.
    pub weight: f64,
}

impl Group {
    pub fn votes(&self) -> usize {
        self.nodes.len()
    }
}

/// An answer's value is its group's share of the weight; within a group the value that each had,
/// then the order, decides.
pub(super) fn value_groups(search: &mut Search<'_>, groups: &[Group]) {
    let total: f64 = groups.iter().map(|group| group.weight).sum();
    for group in groups {
        let value = if total > 0.0 {
            group.weight / total
        } else {
            0.0
        };
        let best = group.nodes.iter().copied().max_by(|a, b| {
            let key = |id: NodeId| search.tree.node(id).value;
            key(*a).total_cmp(&key(*b)).then(b.cmp(a))
        });
        for id in &group.nodes {
            let is_best = Some(*id) == best;
            // Others of the group rank right behind its best.
            search.tree.nodes[*id].value = if is_best { value } else { value * (1.0 - 1e-9) };
        }
    }
}

/// Values the whole answers of a tree by a vote in which each counts what it is worth. An answer
/// that cannot be compared, such as code, votes for itself once; where none can be, the values stay
/// as they are.
pub(super) fn weighted_vote(search: &mut Search<'_>) {
    let whole = (1..search.tree.nodes.len()).filter(|id| is_whole(search.tree.node(*id).end));
    let whole: Vec<NodeId> = whole.collect();
    let mut groups: Vec<Group> = Vec::new();
    let mut num_comparable = 0;
    for id in &whole {
        let text = search.tree.text(*id);
        let node = search.tree.node(*id);
        if !is_comparable(&text) {
            // No key: other answers never join.
            groups.push(Group {
                answer: String::new(),
                nodes: vec![*id],
                weight: node.value,
            });
            continue;
        }
        num_comparable += 1;
        let votes = 1 + node.duplicate_paths.len();
        let (answer, weight) = (answer_key(&text), node.value * votes as f64);
        let known = groups.iter_mut().find(|group| group.answer == answer);
        match known.filter(|_| !answer.is_empty()) {
            Some(group) => {
                group.nodes.extend(std::iter::repeat_n(*id, votes));
                group.weight += weight;
            }
            None => groups.push(Group {
                answer,
                nodes: vec![*id; votes],
                weight,
            }),
        }
    }
    if num_comparable == 0 {
        return;
    }
    value_groups(search, &groups);
    announce(search, &whole, &groups);
}

/// Tells the new values, who leads the vote, and the best answer.
fn announce(search: &mut Search<'_>, whole: &[NodeId], groups: &[Group]) {
    let mut best: Option<(NodeId, f64)> = None;
    for node in whole {
        let value = search.tree.node(*node).value;
        search.send(SearchEvent::Score { node: *node, value });
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((*node, value));
        }
    }
    let Some((node, value)) = best else {
        return;
    };
    if let Some(leader) = groups.iter().find(|group| group.nodes.contains(&node)) {
        search.send(SearchEvent::Vote {
            answer: leader.answer.clone(),
            votes: leader.votes(),
            total: groups.iter().map(Group::votes).sum(),
        });
    }
    search.best = Some((node, value));
    search.send(SearchEvent::Best { node, value });
}
