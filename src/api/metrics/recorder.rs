//! What a server counts and measures.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Histogram, Label, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::engine::AdaptationReport;
use crate::search::SearchStats;
use crate::tool::CallStatus;

// Bucket boundaries are vLLM's (`vllm/v1/metrics/loggers.py`), in seconds.
const TTFT_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const ITL_BUCKETS: [f64; 17] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 20.0, 80.0,
];
const E2E_BUCKETS: [f64; 20] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 1920.0, 7680.0,
];
const TOKEN_BUCKETS: [f64; 15] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0,
];
const N_BUCKETS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

pub(super) const PREFIXES: [&str; 2] = ["ponder_", "vllm:"];

/// Samples that may wait for their buckets.
const MAX_PENDING_SAMPLES: usize = 1024;

/// What is measured under both prefixes.
#[derive(Debug, Clone, Copy)]
enum Measure {
    FirstToken,
    NextToken,
    Latency,
    PromptTokens,
    GenerationTokens,
    MaxTokens,
    N,
}

impl Measure {
    const ALL: [Self; 7] = [
        Self::FirstToken,
        Self::NextToken,
        Self::Latency,
        Self::PromptTokens,
        Self::GenerationTokens,
        Self::MaxTokens,
        Self::N,
    ];

    /// Its name without a prefix, and its buckets.
    fn describe(self) -> (&'static str, &'static [f64]) {
        match self {
            Self::FirstToken => ("time_to_first_token_seconds", &TTFT_BUCKETS),
            Self::NextToken => ("inter_token_latency_seconds", &ITL_BUCKETS),
            Self::Latency => ("e2e_request_latency_seconds", &E2E_BUCKETS),
            Self::PromptTokens => ("request_prompt_tokens", &TOKEN_BUCKETS),
            Self::GenerationTokens => ("request_generation_tokens", &TOKEN_BUCKETS),
            Self::MaxTokens => ("request_params_max_tokens", &TOKEN_BUCKETS),
            Self::N => ("request_params_n", &N_BUCKETS),
        }
    }
}

/// Says when samples must be put into their buckets. The exporter keeps every sample until a
/// scrape or its upkeep: a server that nobody scrapes would keep them all.
#[derive(Debug, Default)]
struct Upkeep {
    pending: AtomicUsize,
}

impl Upkeep {
    /// Counts new samples. True for the one caller who must do the upkeep now.
    fn is_due(&self, num_samples: usize) -> bool {
        let pending = self.pending.fetch_add(num_samples, Ordering::Relaxed) + num_samples;
        // Of callers side by side at least the last one sees its own sum.
        pending >= MAX_PENDING_SAMPLES
            && self
                .pending
                .compare_exchange(pending, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// The recorder of one server.
pub struct Metrics {
    pub(super) recorder: PrometheusRecorder,
    pub(super) handle: PrometheusHandle,
    pub(super) labels: Vec<Label>,
    /// By [`Measure`], each under both prefixes; there since the first sample.
    histograms: [OnceLock<[Histogram; 2]>; Measure::ALL.len()],
    upkeep: Upkeep,
}

impl Metrics {
    pub fn new(model_name: &str) -> Self {
        let mut builder = PrometheusBuilder::new();
        for prefix in PREFIXES {
            for (name, buckets) in Measure::ALL.map(Measure::describe) {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(format!("{prefix}{name}")), buckets)
                    .expect("the buckets are not empty; this is a bug");
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Self {
            recorder,
            handle,
            labels: vec![Label::new("model_name", model_name.to_owned())],
            histograms: Default::default(),
            upkeep: Upkeep::default(),
        }
    }

    fn observe(&self, measure: Measure, value: f64) {
        let both = self.histograms[measure as usize].get_or_init(|| {
            let (name, _) = measure.describe();
            with_local_recorder(&self.recorder, || {
                PREFIXES.map(|prefix| histogram!(format!("{prefix}{name}"), self.labels.clone()))
            })
        });
        for histogram in both {
            histogram.record(value);
        }
        self.sampled(both.len());
    }

    /// Keeps what waits for its buckets small.
    pub(super) fn sampled(&self, num_samples: usize) {
        if self.upkeep.is_due(num_samples) {
            self.handle.run_upkeep();
        }
    }

    /// The first token of a request.
    pub(in crate::api) fn first_token(&self, elapsed: Duration) {
        self.observe(Measure::FirstToken, elapsed.as_secs_f64());
    }

    /// A later token of a choice; `elapsed` since the choice's token before it.
    pub(in crate::api) fn next_token(&self, elapsed: Duration) {
        self.observe(Measure::NextToken, elapsed.as_secs_f64());
    }

    pub(in crate::api) fn started(&self, prompt_tokens: usize, n: usize, max_tokens: usize) {
        self.observe(Measure::PromptTokens, prompt_tokens as f64);
        self.observe(Measure::N, n as f64);
        self.observe(Measure::MaxTokens, max_tokens as f64);
    }

    /// A choice came to its end.
    pub(in crate::api) fn finished(&self, reason: &str, tokens: usize, elapsed: Duration) {
        self.observe(Measure::GenerationTokens, tokens as f64);
        self.observe(Measure::Latency, elapsed.as_secs_f64());
        self.cut_short(reason);
    }

    /// Counts what ended: a choice, or a request whose answer did not come to its end (`abort`,
    /// `error`, `timeout`).
    pub(in crate::api) fn cut_short(&self, reason: &str) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("finished_reason", reason.to_owned()));
        with_local_recorder(&self.recorder, || {
            for prefix in PREFIXES {
                counter!(format!("{prefix}request_success_total"), labels.clone()).increment(1);
            }
        });
    }

    /// Counts a block of code that an answer called.
    pub(in crate::api) fn code_called(&self, status: CallStatus) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("status", status.name()));
        with_local_recorder(&self.recorder, || {
            counter!("ponder_code_calls_total", labels).increment(1);
        });
    }

    /// Counts one search. `kept` tokens are in the returned answers.
    pub(in crate::api) fn searched(
        &self,
        strategy: &str,
        stopped: &str,
        kept: u64,
        stats: &SearchStats,
    ) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("strategy", strategy.to_owned()));
        with_local_recorder(&self.recorder, || {
            let mut ended = labels.clone();
            ended.push(Label::new("stopped", stopped.to_owned()));
            counter!("ponder_searches_total", ended).increment(1);
            for (name, value) in [
                ("ponder_search_tokens_kept_total", kept),
                (
                    "ponder_search_tokens_discarded_total",
                    stats.num_tokens.saturating_sub(kept),
                ),
                ("ponder_search_nodes_total", stats.num_nodes as u64),
                ("ponder_search_scorer_calls_total", stats.scorer_calls),
            ] {
                counter!(name, labels.clone()).increment(value);
            }
            histogram!("ponder_search_scorer_seconds", labels.clone())
                .record(stats.scorer_time.as_secs_f64());
        });
        self.sampled(1);
    }

    /// Counts one trace; `elapsed` is how long its answer waited for it.
    pub(in crate::api) fn traced(&self, result: &'static str, elapsed: Duration) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("result", result));
        with_local_recorder(&self.recorder, || {
            counter!("ponder_traces_total", labels).increment(1);
            histogram!("ponder_trace_commit_seconds", self.labels.clone())
                .record(elapsed.as_secs_f64());
        });
        self.sampled(1);
    }

    /// A phase of adaptation is over.
    pub(in crate::api) fn adapted(&self, report: &AdaptationReport) {
        with_local_recorder(&self.recorder, || {
            let labels = || self.labels.clone();
            counter!("ponder_adaptation_phases_total", labels()).increment(1);
            let tokens = report.num_tokens as u64;
            counter!("ponder_adaptation_tokens_total", labels()).increment(tokens);
            gauge!("ponder_adaptation_moved_ratio", labels()).set(f64::from(report.moved));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upkeep_comes_in_time_and_once() {
        let upkeep = Upkeep::default();
        let num_due = (0..10 * MAX_PENDING_SAMPLES)
            .filter(|_| upkeep.is_due(1))
            .count();
        assert_eq!(num_due, 10);
        assert!(upkeep.is_due(MAX_PENDING_SAMPLES), "many at once");
        // Side by side: never more than the limit and one sample a caller wait.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        upkeep.is_due(1);
                        let pending = upkeep.pending.load(Ordering::Relaxed);
                        assert!(pending < MAX_PENDING_SAMPLES + 8, "{pending}");
                    }
                });
            }
        });
    }

    #[test]
    fn samples_that_nobody_scrapes_are_in_their_buckets() {
        let metrics = Metrics::new("m");
        let num_samples = 3 * MAX_PENDING_SAMPLES + 5;
        for _ in 0..num_samples {
            metrics.next_token(Duration::from_millis(30));
            metrics.traced("kept", Duration::ZERO);
        }
        let pending = metrics.upkeep.pending.load(Ordering::Relaxed);
        assert!(pending < MAX_PENDING_SAMPLES, "{pending}");
        let text = metrics.handle.render();
        for line in [
            format!("ponder_inter_token_latency_seconds_count{{model_name=\"m\"}} {num_samples}"),
            format!("vllm:inter_token_latency_seconds_count{{model_name=\"m\"}} {num_samples}"),
            "vllm:inter_token_latency_seconds_bucket{model_name=\"m\",le=\"0.025\"} 0".to_owned(),
            format!("ponder_trace_commit_seconds_count{{model_name=\"m\"}} {num_samples}"),
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
