//! What embeddings, rerankings and encoders did.

use std::time::Duration;

use metrics::{Label, counter, gauge, histogram, with_local_recorder};

use super::recorder::Metrics;
use crate::api::state::AppState;

impl Metrics {
    /// Counts a request of `route` that was answered.
    pub(in crate::api) fn encoded(
        &self,
        route: &'static str,
        num_texts: usize,
        num_tokens: usize,
        elapsed: Duration,
    ) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("route", route));
        with_local_recorder(&self.recorder, || {
            for (name, value) in [
                ("ponder_encoding_requests_total", 1),
                ("ponder_encoding_texts_total", num_texts as u64),
                ("ponder_encoding_tokens_total", num_tokens as u64),
            ] {
                counter!(name, labels.clone()).increment(value);
            }
            histogram!("ponder_encoding_request_seconds", labels.clone())
                .record(elapsed.as_secs_f64());
        });
        self.sampled(1);
    }
}

/// Takes the encoders' counters as of now.
pub(super) fn refresh_encoders(metrics: &Metrics, state: &AppState) {
    with_local_recorder(&metrics.recorder, || {
        for encoder in &state.encoders().all {
            let stats = encoder.handle.stats();
            let labels = vec![Label::new("model_name", encoder.name.clone())];
            gauge!("ponder_encoder_texts_waiting", labels.clone()).set(stats.num_waiting as f64);
            for (name, value) in [
                ("ponder_encoder_texts_total", stats.num_texts),
                ("ponder_encoder_tokens_total", stats.num_tokens),
                ("ponder_encoder_batches_total", stats.num_batches),
            ] {
                counter!(name, labels.clone()).absolute(value);
            }
        }
    });
}
