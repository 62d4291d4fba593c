//! A searched tree as its record.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::run::SearchRun;
use crate::api::state::AppState;
use crate::api::traces::keep::{identity, new_id, rounded};
use crate::reward::Scorer;
use crate::search::{End, Inserted, Node, SearchOutcome};
use crate::trace::{InsertedRecord, NodeRecord, SCHEMA, Timings, TraceRecord, Usage};

impl SearchRun {
    /// The searched tree as data.
    pub(super) fn record(&self, state: &AppState, outcome: &SearchOutcome) -> TraceRecord {
        let is_outcome = self.scorer.as_ref().is_some_and(Scorer::is_decisive);
        let prompt_token_ids = self.policy.prompt_token_ids.clone();
        let decode = |skip_special| {
            let tokenizer = &self.policy.tokenizer;
            tokenizer.decode(&prompt_token_ids, skip_special)
        };
        let request = match &self.source {
            Value::Null => json!({"prompt": decode(true)}),
            source => source.clone(),
        };
        let stats = &outcome.stats;
        let chosen = self.returned(outcome).iter().map(|answer| answer.node);
        let nodes = outcome.tree.nodes.iter();
        let mut record = TraceRecord {
            schema: SCHEMA.to_owned(),
            id: new_id(),
            revision: 1,
            model: self.target.name.clone(),
            identity: state
                .served()
                .map(|served| identity(served, &self.target))
                .unwrap_or_default(),
            created: self.created,
            strategy: self.spec.strategy.name().to_owned(),
            seed: self.policy.params.seed,
            tags: self.tags.clone(),
            search: self.identity.0.clone(),
            sampling: self.identity.1.clone(),
            request,
            prompt_text: decode(false),
            nodes: nodes.map(|node| node_record(node, is_outcome)).collect(),
            chosen: chosen.collect(),
            adaptation: self.adapted.get().cloned().unwrap_or_default(),
            stopped: outcome.stopped.map(|stopped| stopped.name().to_owned()),
            outcome: None,
            correction: None,
            usage: Usage {
                prompt_tokens: prompt_token_ids.len() as u64,
                num_cached_tokens: self.num_cached_tokens() as u64,
                completion_tokens: stats.num_tokens,
                scorer_calls: stats.scorer_calls,
                scorer_tokens: stats.scorer_tokens,
            },
            timings: Timings {
                total_ms: self.started.elapsed().as_secs_f64() * 1e3,
                scorer_ms: stats.scorer_time.as_secs_f64() * 1e3,
            },
            prompt_token_ids,
            is_redacted: false,
        };
        if is_outcome {
            record.infer();
        }
        record
    }
}

/// `is_outcome`: scores of whole answers say whether they are right.
fn node_record(node: &Node, is_outcome: bool) -> NodeRecord {
    let end = node.end.map(end_name);
    let logprobs = node.logprobs.iter();
    NodeRecord {
        parent: node.parent,
        token_ids: node.token_ids.clone(),
        token_logprobs: logprobs.map(|token| rounded(token.logprob)).collect(),
        inserted: node
            .inserted
            .iter()
            .map(|it| inserted_record(node, it))
            .collect(),
        text: node.text.clone(),
        end: end.map(str::to_owned),
        logprob: node.logprob,
        score: node.score,
        reward_parts: named_parts(&node.reward_parts),
        outcome: node.score.filter(|_| is_outcome && end.is_some()),
        process: None,
        value: node.value,
        visit_count: node.visit_count,
        is_pruned: node.is_pruned,
        is_rollout: node.is_rollout,
        duplicate_paths: node.duplicate_paths.clone(),
        variant_paths: node.variant_paths.clone(),
        branch_path: node.branch_path.clone(),
        confidence: node.confidence,
    }
}

/// What of a node's text the policy did not write.
pub(in crate::api) fn inserted_record(node: &Node, it: &Inserted) -> InsertedRecord {
    let chars = |end: usize| node.text[..end].chars().count();
    InsertedRecord {
        tokens: [it.tokens.start, it.tokens.end],
        chars: [chars(it.text.start), chars(it.text.end)],
        code: it.call.code.clone(),
        output: it.call.output.clone(),
        status: it.call.status.name().to_owned(),
    }
}

/// Scores by the kinds of their rewards; the second of a kind is `KIND.2`.
fn named_parts(parts: &[(&'static str, f64)]) -> BTreeMap<String, f64> {
    let mut named = BTreeMap::new();
    for (index, (kind, score)) in parts.iter().enumerate() {
        let same = parts[..index].iter().filter(|(other, _)| other == kind);
        let name = match same.count() {
            0 => (*kind).to_owned(),
            n => format!("{kind}.{}", n + 1),
        };
        named.insert(name, *score);
    }
    named
}

/// How a node ended, in traces and answers.
pub(in crate::api) fn end_name(end: End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Length => "length",
        End::Cut | End::Step => "cut",
        End::Unsure => "unsure",
    }
}
