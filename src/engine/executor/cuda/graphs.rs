//! Recorded steps: a decode step is hundreds of launches, and one when it is replayed.

use std::collections::HashMap;
use std::sync::Arc;

use ponder_kernels_cuda::{CudaError, Gpu, Graph};

use crate::model::{SkipSet, StepKey};

/// Rows of the largest step that is recorded: larger ones hide the launches' time behind their own.
const MAX_ROWS: usize = 256;
/// Recordings kept at once. Past it all go: what is used is recorded anew.
const MAX_GRAPHS: usize = 160;

/// What a recording depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    step: StepKey,
    /// Where the skip set lies: it is shared, not copied.
    skip: usize,
}

/// Of a key. Without a recording it ran once: kernels are loaded, and buffers have their sizes.
struct Entry {
    graph: Option<Graph>,
    /// Lives as long as its address is part of the key.
    _skip: Option<Arc<SkipSet>>,
}

/// Recordings by key.
#[derive(Default)]
pub(super) struct Graphs {
    entries: HashMap<Key, Entry>,
    /// Recordings hold addresses of buffers as they were then.
    num_growths: u64,
}

impl Graphs {
    /// Runs a step: as it is the first time, recorded the second time, replayed from then on. `None` for steps that no other is like.
    /// Tells whether `launch` was left out.
    pub(super) fn run<E: From<CudaError>>(
        &mut self,
        gpu: &Gpu,
        step: Option<StepKey>,
        skip: Option<&Arc<SkipSet>>,
        mut launch: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let is_small = |step: &StepKey| step.num_rows <= MAX_ROWS && step.num_logits_rows > 0;
        let Some(step) = step.filter(is_small).filter(|_| !gpu.is_timing()) else {
            launch()?;
            return Ok(false);
        };
        if self.num_growths != gpu.num_growths() || self.entries.len() >= MAX_GRAPHS {
            self.entries.clear();
            self.num_growths = gpu.num_growths();
        }
        let address = skip.map_or(0, |skip| Arc::as_ptr(skip) as usize);
        let key = Key {
            step,
            skip: address,
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            launch()?;
            let entry = Entry {
                graph: None,
                _skip: skip.cloned(),
            };
            self.entries.insert(key, entry);
            return Ok(false);
        };
        if let Some(graph) = &entry.graph {
            gpu.replay(graph)?;
            return Ok(true);
        }
        let mut failed = None;
        let graph = gpu.capture(|| {
            failed = launch().err();
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if gpu.num_growths() != self.num_growths {
            // The recording would use a buffer that is gone. The first run should have sized all of them.
            self.entries.remove(&key);
            launch()?;
            return Ok(false);
        }
        gpu.replay(&graph)?;
        entry.graph = Some(graph);
        Ok(false)
    }
}
