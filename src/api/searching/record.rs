//! A searched tree as its record.

use super::{Job, end_name};
use crate::api::state::AppState;
use crate::reward::Scorer;
use crate::search::{Node, SearchOutcome};
use crate::trace::{NodeRecord, SCHEMA, TraceRecord};

impl Job {
    /// The searched tree as data.
    pub(super) fn record(&self, state: &AppState, outcome: &SearchOutcome) -> TraceRecord {
        let is_outcome = self.scorer.as_ref().is_some_and(Scorer::is_decisive);
        TraceRecord {
            schema: SCHEMA.to_owned(),
            id: self.trace_id.clone(),
            model: state.model_name().to_owned(),
            created: self.created,
            strategy: self.spec.strategy.name().to_owned(),
            seed: self.policy.params.seed,
            tags: self.spec.tags.clone(),
            prompt_token_ids: self.policy.prompt_token_ids.clone(),
            nodes: outcome
                .tree
                .nodes
                .iter()
                .map(|node| node_record(node, is_outcome))
                .collect(),
        }
    }
}

/// `is_outcome`: scores of whole answers say whether they are right.
fn node_record(node: &Node, is_outcome: bool) -> NodeRecord {
    let end = node.end.map(end_name);
    NodeRecord {
        parent: node.parent,
        token_ids: node.token_ids.clone(),
        text: node.text.clone(),
        end: end.map(str::to_owned),
        logprob: node.logprob,
        score: node.score,
        outcome: node.score.filter(|_| is_outcome && end.is_some()),
        value: node.value,
        visit_count: node.visit_count,
        is_pruned: node.is_pruned,
        is_rollout: node.is_rollout,
        num_duplicates: node.num_duplicates,
        branch_path: node.branch_path.clone(),
    }
}
