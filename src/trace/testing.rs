//! Small traces for tests.

use std::time::Duration;

use serde_json::json;

use super::{NodeRecord, SCHEMA, TraceRecord};

/// Processor time that the calling thread has used: what else the machine does is no part of it.
#[cfg(unix)]
pub fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Where there is no such clock, the time that has passed.
#[cfg(not(unix))]
pub fn thread_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// A node with one token.
pub fn node(parent: Option<usize>, text: &str, end: Option<&str>) -> NodeRecord {
    NodeRecord {
        parent,
        token_ids: vec![1],
        text: text.to_owned(),
        end: end.map(str::to_owned),
        ..NodeRecord::default()
    }
}

/// A chat's trace.
pub fn trace_of(nodes: Vec<NodeRecord>) -> TraceRecord {
    TraceRecord {
        adaptation: serde_json::Value::Null,
        schema: SCHEMA.to_owned(),
        id: "trace-1".to_owned(),
        revision: 1,
        model: "model".to_owned(),
        identity: Default::default(),
        created: 0,
        strategy: "best_of_n".to_owned(),
        seed: 0,
        tags: Vec::new(),
        search: json!({}),
        sampling: json!({}),
        request: json!({"messages": [{"role": "user", "content": "question"}]}),
        prompt_text: "<user>question<assistant>".to_owned(),
        prompt_token_ids: vec![0],
        nodes,
        chosen: Vec::new(),
        stopped: None,
        outcome: None,
        correction: None,
        usage: Default::default(),
        timings: Default::default(),
        is_redacted: false,
    }
}

/// A trace of one branch of so many steps with this text; the answer ends with the last.
pub fn chain(num_steps: usize, text: &str) -> TraceRecord {
    let step = |id: usize| node(Some(id), text, (id + 1 == num_steps).then_some("stop"));
    let nodes = std::iter::once(node(None, "", None)).chain((0..num_steps).map(step));
    trace_of(nodes.collect())
}
