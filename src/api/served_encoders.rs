//! The encoders that are served, beside a model or alone.

use crate::encoding::{EncoderKind, ServedEncoder};

/// The encoders of a server.
#[derive(Default)]
pub struct ServedEncoders {
    pub all: Vec<ServedEncoder>,
    /// Nothing else is served: there is no model that writes.
    pub are_alone: bool,
}

impl ServedEncoders {
    /// The first that makes vectors.
    pub(super) fn embedder(&self) -> Option<&ServedEncoder> {
        let is_one = |encoder: &&ServedEncoder| matches!(encoder.kind, EncoderKind::Embedder(_));
        self.all.iter().find(is_one)
    }

    /// The first that scores pairs.
    pub(super) fn cross_encoder(&self) -> Option<&ServedEncoder> {
        let is_one = |encoder: &&ServedEncoder| encoder.kind == EncoderKind::CrossEncoder;
        self.all.iter().find(is_one)
    }

    pub(super) fn named(&self, name: &str) -> Option<&ServedEncoder> {
        self.all.iter().find(|encoder| encoder.name == name)
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.all.iter().all(|encoder| encoder.handle.is_healthy())
    }
}
