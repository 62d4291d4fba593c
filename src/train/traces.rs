//! Reads traces for training.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;

use super::value_head::TrainError;
use crate::trace::TraceRecord;

/// Gives each trace of NDJSON files to `take`, with the number of its prompt: equal prompts have
/// the same. Returns how many prompts there are. An error of `take` is told with its file and line.
pub(super) fn read_traces(
    paths: &[PathBuf],
    mut take: impl FnMut(TraceRecord, usize) -> Result<(), String>,
) -> Result<usize, TrainError> {
    let mut groups = HashMap::new();
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
            take(trace, group).map_err(at)?;
        }
    }
    Ok(groups.len())
}
