//! Votes of a search's answers, and the values that they give.

use super::context::Search;
use super::event::SearchEvent;
use super::outcome::is_whole;
use super::tree::{Node, NodeId};
use crate::reward::{Votes, is_code, vote_key};

/// What orders answers of equal value: those of a group behind its best, and groups without weight.
const HAIR: f64 = 1e-9;

impl Search<'_> {
    /// Takes the vote of a whole answer, in its canonical form, and tells who leads.
    pub(super) fn vote(&self, votes: &mut Votes, answer: String, id: NodeId, weight: f64) {
        votes.add(answer, id, weight);
        if let Some(leader) = votes.leader() {
            self.send(SearchEvent::Vote {
                answer: leader.answer.clone(),
                votes: leader.num_votes(),
                total: votes.num_votes(),
            });
        }
    }

    /// An answer's value is its group's share of the weight. Where nothing has weight, the numbers
    /// of votes order the groups. Within a group the score decides who is best, then the
    /// likelihood, then the order.
    pub(super) fn value_groups(&mut self, votes: &Votes) {
        let total: f64 = votes.groups.iter().map(|group| group.weight).sum();
        let num_votes = votes.num_votes() as f64;
        let key = |node: &Node| {
            let likelihood = node.logprob / node.num_tokens.max(1) as f64;
            (node.score.unwrap_or(0.0), likelihood)
        };
        for group in &votes.groups {
            let value = match total > 0.0 {
                true => group.weight / total,
                false => HAIR * group.num_votes() as f64 / num_votes,
            };
            let best = group.nodes.iter().copied().max_by(|a, b| {
                let ((sa, la), (sb, lb)) = (key(self.tree.node(*a)), key(self.tree.node(*b)));
                sa.total_cmp(&sb).then(la.total_cmp(&lb)).then(b.cmp(a))
            });
            for id in &group.nodes {
                let is_best = Some(*id) == best;
                self.tree.nodes[*id].value = if is_best { value } else { value * (1.0 - HAIR) };
            }
        }
    }
}

/// Values the whole answers of a tree by a vote in which each counts what it is worth. Programs
/// agree word by word, as in every vote; where all answers are programs, the values stay as they
/// are.
pub(super) fn weighted_vote(search: &mut Search<'_>) {
    let whole = (1..search.tree.nodes.len()).filter(|id| is_whole(search.tree.node(*id).end));
    let whole: Vec<NodeId> = whole.collect();
    let mut votes = Votes::default();
    let mut is_all_code = true;
    for id in &whole {
        let text = search.tree.text(*id);
        let node = search.tree.node(*id);
        is_all_code &= is_code(&text);
        let answer = vote_key(&text);
        // Equal samples are one node.
        for _ in 0..=node.duplicate_paths.len() {
            votes.add(answer.clone(), *id, node.value);
        }
    }
    if is_all_code {
        return;
    }
    search.value_groups(&votes);
    announce(search, &whole, &votes);
}

/// Tells the new values, who leads the vote, and the best answer.
fn announce(search: &mut Search<'_>, whole: &[NodeId], votes: &Votes) {
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
    if let Some(leader) = votes
        .groups
        .iter()
        .find(|group| group.nodes.contains(&node))
    {
        search.send(SearchEvent::Vote {
            answer: leader.answer.clone(),
            votes: leader.num_votes(),
            total: votes.num_votes(),
        });
    }
    search.best = Some((node, value));
    search.send(SearchEvent::Best { node, value });
}
