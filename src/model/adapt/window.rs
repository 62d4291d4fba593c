//! The forward pass over a window, with what going back through it needs.

use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::moe::LayerRouting;
use crate::model::profile::Stopwatch;
use crate::model::skip::SubLayer;

/// The residual stream between sub-layers, `[rows, hidden_size]`, of layers from some layer on.
#[derive(Debug, Clone, Default)]
pub(super) struct Tape {
    /// Before a layer's attention.
    pub input: Vec<Vec<f32>>,
    /// Between a layer's attention and its feed-forward part.
    pub mid: Vec<Vec<f32>>,
    /// After the last layer.
    pub last: Vec<f32>,
}

/// Which part of the tape is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded {
    /// The first layer whose middle is.
    pub lowest: usize,
    /// The inputs of those above it too.
    pub inputs: bool,
}

impl Recorded {
    /// Of a model of so many layers.
    pub(super) fn nothing(num_layers: usize) -> Self {
        Self {
            lowest: num_layers,
            inputs: false,
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
        let mut stopwatch = Stopwatch::start(None);
        let num_layers = self.layers.len();
        tape.input.resize(num_layers, Vec::new());
        tape.mid.resize(num_layers, Vec::new());
        self.plan_window(batch)?;
        match from {
            Some(layer) => self.scratch.x.clone_from(&tape.mid[layer]),
            None => self.embed(batch.token_ids)?,
        }
        self.routing = Some(Vec::new());
        for index in from.unwrap_or(0)..num_layers {
            if from != Some(index) {
                if recorded.inputs && index > recorded.lowest {
                    tape.input[index].clone_from(&self.scratch.x);
                }
                let attention = SubLayer::Attention(index);
                self.run_sub_layer(attention, batch, None, &mut stopwatch)?;
                if index >= recorded.lowest {
                    tape.mid[index].clone_from(&self.scratch.x);
                }
            }
            self.run_sub_layer(SubLayer::Mlp(index), batch, None, &mut stopwatch)?;
        }
        tape.last.clone_from(&self.scratch.x);
        Ok(self.routing.take().unwrap_or_default())
    }

    /// Finds which rows attend to what, and use which adapter.
    pub(super) fn plan_window(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        self.adapters.plan(batch)?;
        let num_kv_heads = self.config.num_kv_heads;
        let num_threads = self.pool.num_threads();
        let plan = &mut self.scratch.attention;
        plan.plan(batch.sequences, num_kv_heads, num_threads);
        Ok(())
    }
}
