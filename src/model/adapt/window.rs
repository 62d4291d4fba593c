//! The forward pass over a window, with what going back through it needs.

use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::moe::LayerRouting;
use crate::model::ops::RowSet;
use crate::model::ops::cpu::KeptUnits;
use crate::model::profile::Stopwatch;
use crate::model::skip::SubLayer;

/// Values of gated units from which on no more are kept (256 MB): what is not there is computed
/// again.
const KEPT_VALUES: usize = 64 << 20;

/// The residual stream between sub-layers, `[rows, hidden_size]`, and queries, of layers from some
/// layer on.
#[derive(Debug, Clone, Default)]
pub(super) struct Tape {
    /// Before a layer's attention.
    pub input: Vec<Vec<f32>>,
    /// Its queries as they were rotated, `[rows, num_heads * head_dim]`.
    pub queries: Vec<Vec<f32>>,
    /// Between a layer's attention and its feed-forward part.
    pub mid: Vec<Vec<f32>>,
    /// What its gated units were made of; empty where there was no room.
    pub units: Vec<KeptUnits>,
    /// After the last layer.
    pub last: Vec<f32>,
}

/// Which part of the tape is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded {
    /// The first layer whose middle is.
    pub lowest: usize,
    /// The inputs and queries of those above it too.
    pub inputs: bool,
    /// The units of all of these layers, as far as there is room.
    pub units: bool,
}

impl Recorded {
    /// Of a model of so many layers.
    pub(super) fn nothing(num_layers: usize) -> Self {
        Self {
            lowest: num_layers,
            inputs: false,
            units: false,
        }
    }
}

impl Decoder {
    /// Runs the rows of `batch`, all of them through all layers, and writes their keys and values. `from` starts at a layer's
    /// feed-forward part, from the tape: what lies below does not change.
    pub(super) fn run_window(
        &mut self,
        batch: &ForwardBatch<'_>,
        tape: &mut Tape,
        from: Option<usize>,
        recorded: Recorded,
    ) -> Result<Vec<LayerRouting>, ForwardError> {
        let num_layers = self.layers.len();
        tape.input.resize(num_layers, Vec::new());
        tape.queries.resize(num_layers, Vec::new());
        tape.mid.resize(num_layers, Vec::new());
        tape.units.resize(num_layers, KeptUnits::default());
        self.prepare(batch)?;
        match from {
            Some(layer) => self.put_rows(&tape.mid[layer]),
            None => self.embed(batch)?,
        }
        self.routing = Some(Vec::new());
        let result = self.run_layers(batch, tape, from, recorded);
        // Whatever came of it: later steps are counted again instead of being noted.
        self.ops.kept = None;
        let routing = self.routing.take().unwrap_or_default();
        result.map(|()| routing)
    }

    fn run_layers(
        &mut self,
        batch: &ForwardBatch<'_>,
        tape: &mut Tape,
        from: Option<usize>,
        recorded: Recorded,
    ) -> Result<(), ForwardError> {
        let mut stopwatch = Stopwatch::start(None);
        let (first, mut num_kept) = (from.unwrap_or(0), 0);
        // No later step goes back to those below.
        tape.units[..first].fill_with(KeptUnits::default);
        for index in first..self.layers.len() {
            if from != Some(index) {
                let is_kept = recorded.inputs && index > recorded.lowest;
                if is_kept {
                    tape.input[index].clone_from(&self.scratch.x.values);
                }
                let attention = SubLayer::Attention(index);
                self.run_sub_layer(attention, batch, RowSet::All, &mut stopwatch)?;
                if is_kept {
                    tape.queries[index].clone_from(&self.scratch.q.values);
                }
                if index >= recorded.lowest {
                    tape.mid[index].clone_from(&self.scratch.x.values);
                }
            }
            if recorded.units && index >= recorded.lowest && num_kept < KEPT_VALUES {
                self.ops.kept = Some(std::mem::take(&mut tape.units[index]));
            }
            self.run_sub_layer(SubLayer::Mlp(index), batch, RowSet::All, &mut stopwatch)?;
            tape.units[index] = self.ops.kept.take().unwrap_or_default();
            num_kept += tape.units[index].len();
        }
        tape.last.clone_from(&self.scratch.x.values);
        Ok(())
    }

    /// Makes `values` (`[rows, hidden_size]`) the residual stream.
    pub(super) fn put_rows(&mut self, values: &[f32]) {
        let x = &mut self.scratch.x;
        x.width = self.config.hidden_size;
        x.values.clear();
        x.values.extend_from_slice(values);
    }
}
