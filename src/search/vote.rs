//! Votes of a search's answers, and the values that they give.

use super::context::Search;
use super::event::SearchEvent;
use super::tree::{Node, NodeId};
use crate::reward::Votes;

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
