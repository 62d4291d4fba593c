//! Hidden states and their values, computed from traces with the engine that will be searched.

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::PathBuf;

use super::value_head::TrainError;
use crate::engine::{Backend, GenerateRequest, PoolingParams, RequestStream, StreamEvent};
use crate::trace::{Target, TraceRecord, infer_values};

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

/// A state to compute.
struct Task {
    group: usize,
    token_ids: Vec<u32>,
    value: f32,
    outcome: Option<f32>,
    likelihood: f32,
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
            let prompt = task.token_ids[..task.token_ids.len() - 1].to_vec();
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
    let mut groups = std::collections::HashMap::new();
    let mut tasks = Vec::new();
    for path in paths {
        let data = |message: String| TrainError::Data(format!("{}: {message}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| data(error.to_string()))?;
        for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|error| data(error.to_string()))?;
            if line.trim().is_empty() {
                continue;
            }
            let at = |message: String| data(format!("line {}: {message}", number + 1));
            let trace: TraceRecord =
                serde_json::from_str(&line).map_err(|error| at(error.to_string()))?;
            if !trace.is_tree() {
                return Err(at("nodes do not form a tree".to_owned()));
            }
            let next = groups.len();
            let group = *groups.entry(trace.prompt_token_ids.clone()).or_insert(next);
            add_tasks(&trace, group, target, max_model_len, &mut tasks);
        }
    }
    Ok((tasks, groups.len()))
}

fn add_tasks(
    trace: &TraceRecord,
    group: usize,
    target: Target,
    max_model_len: usize,
    tasks: &mut Vec<Task>,
) {
    let values = infer_values(trace, target);
    for (id, (node, value)) in trace.nodes.iter().zip(values).enumerate().skip(1) {
        let Some(value) = value else { continue };
        let answer = trace.answer_token_ids(id);
        let token_ids = [trace.prompt_token_ids.as_slice(), &answer].concat();
        if answer.is_empty() || token_ids.len() > max_model_len {
            continue;
        }
        tasks.push(Task {
            group,
            value: value as f32,
            outcome: node.outcome.map(|outcome| outcome as f32),
            likelihood: (node.logprob / answer.len() as f64) as f32,
            token_ids,
        });
    }
}
