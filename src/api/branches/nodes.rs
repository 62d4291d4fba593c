//! Nodes of a session as requests name them and as answers show them.

use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::searching::record::{end_name, inserted_record};
use crate::search::{NodeId, Tree};

/// The nodes that a request names: at least one, each once, all of them there.
pub(super) fn check_nodes(tree: &Tree, param: &str, nodes: &[usize]) -> Result<(), ApiError> {
    if nodes.is_empty() {
        return Err(ApiError::invalid(param, "name at least one node"));
    }
    let mut seen = vec![false; tree.nodes.len()];
    for id in nodes {
        let message = match seen.get_mut(*id) {
            None => format!("there is no node {id}"),
            // Its samples would be the same ones twice.
            Some(is_seen) if *is_seen => {
                format!("node {id} is named twice: n says how many samples it gets")
            }
            Some(is_seen) => {
                *is_seen = true;
                continue;
            }
        };
        return Err(ApiError::invalid(param, message));
    }
    Ok(())
}

/// `is_new` is false when the sample repeated a sibling, which is then returned.
pub(super) fn node_json(tree: &Tree, id: NodeId, is_new: bool) -> Value {
    let node = tree.node(id);
    let mut json = json!({
        "node": id, "parent": node.parent, "text": node.text, "tokens": node.token_ids.len(),
        "depth": node.depth, "logprob": node.logprob, "end": node.end.map(end_name),
        "is_new": is_new,
    });
    if !node.inserted.is_empty() {
        let inserted = node.inserted.iter().map(|it| inserted_record(node, it));
        json["inserted"] = json!(inserted.collect::<Vec<_>>());
    }
    json
}
