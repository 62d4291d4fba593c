//! Examples as matrices.

use std::collections::HashMap;

use super::examples::Example;

/// States and values of some examples.
pub(super) struct Batch {
    /// `[rows, num_inputs]`
    pub states: Vec<f32>,
    pub num_inputs: usize,
    pub values: Vec<f32>,
    /// Rows of a right and of a wrong whole answer to one prompt.
    pub pairs: Vec<(usize, usize)>,
}

impl Batch {
    pub(super) fn new(examples: &[&Example], reads_likelihood: bool) -> Self {
        let mut states: Vec<f32> = Vec::new();
        for example in examples {
            states.extend(&example.state);
            states.extend(reads_likelihood.then_some(example.likelihood));
        }
        Self {
            num_inputs: states.len() / examples.len().max(1),
            states,
            values: examples.iter().map(|example| example.value).collect(),
            pairs: pairs(examples),
        }
    }
}

/// Rows of right and wrong whole answers to the same prompt.
fn pairs(examples: &[&Example]) -> Vec<(usize, usize)> {
    let mut groups: HashMap<usize, (Vec<usize>, Vec<usize>)> = HashMap::new();
    for (row, example) in examples.iter().enumerate() {
        if let Some(outcome) = example.outcome {
            let (right, wrong) = groups.entry(example.group).or_default();
            let side = if outcome > 0.5 { right } else { wrong };
            side.push(row);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_unstable_by_key(|(group, _)| *group);
    let mut pairs = Vec::new();
    for (_, (right, wrong)) in groups {
        for r in &right {
            pairs.extend(wrong.iter().map(|w| (*r, *w)));
        }
    }
    pairs
}

/// Batches of whole groups, of about `size` examples.
pub(super) fn batches<'e>(groups: &[Vec<&'e Example>], size: usize) -> Vec<Vec<&'e Example>> {
    let mut batches: Vec<Vec<&Example>> = vec![Vec::new()];
    for group in groups {
        if batches.last().is_some_and(|batch| batch.len() >= size) {
            batches.push(Vec::new());
        }
        if let Some(batch) = batches.last_mut() {
            batch.extend(group);
        }
    }
    batches
}
