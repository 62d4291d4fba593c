//! Samples in flight, each with its place in the tree.

use std::time::{Duration, Instant};

use super::outcome::SearchError;
use super::policy::{Continuation, Expansion, Finished, Running};
use super::tree::NodeId;

/// How long after a deadline its cut samples are waited for: the engine ends them with its next step.
const GRACE: Duration = Duration::from_millis(500);

/// A sample that ended, with its place in the tree.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Index into the expansions that were started together.
    pub expansion: usize,
    pub parent: NodeId,
    /// Key of its randomness, no other sample's.
    pub branch_path: Vec<u32>,
    pub continuation: Continuation,
}

/// Samples of several expansions in flight.
pub(super) struct Samples<'a> {
    /// `None` when none could be started before the deadline.
    running: Option<Box<dyn Running + 'a>>,
    /// The node that each expansion continues, and its key.
    places: Vec<(NodeId, Vec<u32>)>,
    latest: Option<Instant>,
}

impl<'a> Samples<'a> {
    /// Nothing yet of `expansions`, which continue `parents`.
    pub fn new(parents: Vec<NodeId>, expansions: &[Expansion], deadline: Option<Instant>) -> Self {
        let paths = expansions.iter().map(|source| source.branch_path.clone());
        Self {
            running: None,
            places: parents.into_iter().zip(paths).collect(),
            latest: deadline.and_then(|deadline| deadline.checked_add(GRACE)),
        }
    }

    pub fn started(mut self, running: Box<dyn Running + 'a>) -> Self {
        self.running = Some(running);
        self
    }

    /// The next sample that ended; `None` after the last, and as an error when the deadline came first.
    pub async fn next(&mut self) -> Result<Option<Sample>, NoSample> {
        let Some(running) = &mut self.running else {
            return Ok(None);
        };
        let next = match self.latest {
            None => running.next().await,
            Some(latest) => match tokio::time::timeout_at(latest.into(), running.next()).await {
                Ok(next) => next,
                Err(_) => {
                    self.stop();
                    return Err(NoSample::Deadline);
                }
            },
        };
        let Some(finished) = next else {
            return Ok(None);
        };
        let Finished {
            expansion,
            index,
            continuation,
        } = finished.map_err(NoSample::Failed)?;
        let (parent, path) = &self.places[expansion];
        Ok(Some(Sample {
            expansion,
            parent: *parent,
            branch_path: [path.as_slice(), &[index as u32]].concat(),
            continuation,
        }))
    }

    /// Ends the rest before the engine's next step.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.stop();
        }
    }
}

/// Why no sample came.
pub(super) enum NoSample {
    Deadline,
    Failed(SearchError),
}
