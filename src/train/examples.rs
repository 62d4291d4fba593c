//! Hidden states and their values, computed from traces with the engine that will be searched.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use super::traces::read_traces;
use super::value_head::TrainError;
use crate::engine::{Backend, GenerateRequest, PoolingParams, RequestStream, StreamEvent};
use crate::trace::{NodeRecord, Target, TraceRecord, infer_values};

/// Requests that are submitted ahead.
const IN_FLIGHT: usize = 64;

/// One state of one answer.
#[derive(Debug, Clone)]
pub struct Example {
    /// Which prompt it belongs to.
    pub group: usize,
    /// The policy's final hidden state that the step's last token was sampled from: what a search taps.
    pub state: Vec<f32>,
    pub value: f32,
    /// Of a whole answer: whether it is right.
    pub outcome: Option<f32>,
    /// Mean log-probability of the answer's tokens.
    pub likelihood: f32,
}

/// All examples; equal prompts are one group.
#[derive(Debug, Default)]
pub struct Examples {
    pub examples: Vec<Example>,
    pub num_groups: usize,
}

/// A state to compute. Its tokens stay in the trace: a deep tree has them once.
struct Task {
    group: usize,
    trace: Rc<Branches>,
    node: usize,
    value: f32,
    outcome: Option<f32>,
    likelihood: f32,
}

/// The tokens of a trace.
struct Branches {
    prompt_token_ids: Vec<u32>,
    /// Of each node: its parent and its own tokens.
    nodes: Vec<(Option<usize>, Vec<u32>)>,
    /// How many of a node's own tokens there are up to the last one that was sampled.
    num_sampled: Vec<usize>,
    /// Of the answer up to each node, as far as the model wrote them, and all.
    num_tokens: Vec<usize>,
    num_all: Vec<usize>,
}

impl Branches {
    fn new(trace: &TraceRecord) -> Self {
        let mut num_tokens: Vec<usize> = Vec::with_capacity(trace.nodes.len());
        let mut num_all: Vec<usize> = Vec::with_capacity(trace.nodes.len());
        for (id, node) in trace.nodes.iter().enumerate() {
            // The root has no part of the answer.
            let own = if id == 0 { 0 } else { node.num_own() };
            num_tokens.push(node.parent.map_or(0, |parent| num_tokens[parent]) + own);
            let all = if id == 0 { 0 } else { node.token_ids.len() };
            num_all.push(node.parent.map_or(0, |parent| num_all[parent]) + all);
        }
        // A step may end with what its code printed.
        let sampled = |node: &NodeRecord| match node.inserted.last() {
            Some(it) if it.tokens[1] == node.token_ids.len() => it.tokens[0],
            _ => node.token_ids.len(),
        };
        let nodes = trace.nodes.iter();
        Self {
            num_sampled: nodes.clone().map(sampled).collect(),
            prompt_token_ids: trace.prompt_token_ids.clone(),
            nodes: nodes.map(|n| (n.parent, n.token_ids.clone())).collect(),
            num_tokens,
            num_all,
        }
    }

    /// What the last token of the answer up to `id` was sampled after.
    fn prompt(&self, id: usize) -> Vec<u32> {
        let path = std::iter::successors(Some(id), |id| self.nodes[*id].0);
        let mut path: Vec<usize> = path.filter(|id| *id != 0).collect();
        path.reverse();
        let sampled = |at: usize| match at == id {
            true => self.num_sampled[at],
            false => self.nodes[at].1.len(),
        };
        let answer = path.iter();
        let answer = answer.flat_map(|at| self.nodes[*at].1.iter().take(sampled(*at)));
        let mut token_ids: Vec<u32> = self
            .prompt_token_ids
            .iter()
            .chain(answer)
            .copied()
            .collect();
        token_ids.pop();
        token_ids
    }
}

/// Reads traces (NDJSON) and runs each step's tokens through the engine once; steps share their prefixes'
/// KV blocks. `progress` gets the number of states done and their total.
pub fn load_examples(
    paths: &[PathBuf],
    engine: &dyn Backend,
    target: Target,
    mut progress: impl FnMut(usize, usize),
) -> Result<Examples, TrainError> {
    let max_model_len = engine.config().max_model_len;
    let (tasks, num_groups) = read_tasks(paths, target, max_model_len)?;
    let total = tasks.len();
    let mut examples = Vec::with_capacity(total);
    let mut waiting: VecDeque<(Task, RequestStream)> = VecDeque::new();
    let mut tasks = tasks.into_iter();
    loop {
        while waiting.len() < IN_FLIGHT
            && let Some(task) = tasks.next()
        {
            // The state that the last token was sampled from is that of the token before it.
            let prompt = task.trace.prompt(task.node);
            let pooling = PoolingParams {
                positions: vec![prompt.len() - 1],
                hidden_state: true,
                ..PoolingParams::default()
            };
            let stream = engine.submit(GenerateRequest::pooling(prompt, pooling))?;
            waiting.push_back((task, stream));
        }
        let Some((task, stream)) = waiting.pop_front() else {
            break;
        };
        examples.push(Example {
            group: task.group,
            state: state_of(stream)?,
            value: task.value,
            outcome: task.outcome,
            likelihood: task.likelihood,
        });
        progress(examples.len(), total);
    }
    Ok(Examples {
        examples,
        num_groups,
    })
}

fn state_of(mut stream: RequestStream) -> Result<Vec<f32>, TrainError> {
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Pooled {
                hidden_state: Some(state),
                ..
            } => return Ok(state),
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Err(TrainError::Data(
        "the model reports no hidden states".to_owned(),
    ))
}

fn read_tasks(
    paths: &[PathBuf],
    target: Target,
    max_model_len: usize,
) -> Result<(Vec<Task>, usize), TrainError> {
    let mut tasks = Vec::new();
    let num_groups = read_traces(paths, |trace, group| {
        add_tasks(&trace, group, target, max_model_len, &mut tasks);
        Ok(())
    })?;
    Ok((tasks, num_groups))
}

fn add_tasks(
    trace: &TraceRecord,
    group: usize,
    target: Target,
    max_model_len: usize,
    tasks: &mut Vec<Task>,
) {
    let values = infer_values(trace, target);
    let branches = Rc::new(Branches::new(trace));
    let num_prompt_tokens = trace.prompt_token_ids.len();
    for (id, (node, value)) in trace.nodes.iter().zip(values).enumerate().skip(1) {
        let Some(value) = value else { continue };
        let num_tokens = branches.num_tokens[id];
        // The state is that of the token before the last.
        let length = num_prompt_tokens + branches.num_all[id];
        if num_tokens == 0 || length < 2 || length > max_model_len {
            continue;
        }
        tasks.push(Task {
            group,
            value: value as f32,
            outcome: node.outcome.map(|outcome| outcome as f32),
            likelihood: (node.logprob / num_tokens as f64) as f32,
            trace: Rc::clone(&branches),
            node: id,
        });
    }
}
