//! Prometheus metrics: our own `ponder_*` names and the `vllm:` names that gateways and dashboards
//! read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics::{Label, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::state::AppState;
use crate::engine::{AdaptationReport, Drafter};
use crate::search::SearchStats;

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

const PREFIXES: [&str; 2] = ["ponder_", "vllm:"];

/// The recorder of one server.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    labels: Vec<Label>,
}

impl Metrics {
    pub fn new(model_name: &str) -> Self {
        let mut builder = PrometheusBuilder::new();
        for prefix in PREFIXES {
            for (name, buckets) in [
                ("time_to_first_token_seconds", TTFT_BUCKETS.as_slice()),
                ("inter_token_latency_seconds", &ITL_BUCKETS),
                ("e2e_request_latency_seconds", &E2E_BUCKETS),
                ("request_prompt_tokens", &TOKEN_BUCKETS),
                ("request_generation_tokens", &TOKEN_BUCKETS),
                ("request_params_max_tokens", &TOKEN_BUCKETS),
                ("request_params_n", &N_BUCKETS),
            ] {
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
        }
    }

    fn observe(&self, name: &str, value: f64) {
        with_local_recorder(&self.recorder, || {
            for prefix in PREFIXES {
                histogram!(format!("{prefix}{name}"), self.labels.clone()).record(value);
            }
        });
    }

    pub(super) fn first_token(&self, elapsed: Duration) {
        self.observe("time_to_first_token_seconds", elapsed.as_secs_f64());
    }

    pub(super) fn next_token(&self, elapsed: Duration) {
        self.observe("inter_token_latency_seconds", elapsed.as_secs_f64());
    }

    pub(super) fn started(&self, prompt_tokens: usize, n: usize, max_tokens: usize) {
        self.observe("request_prompt_tokens", prompt_tokens as f64);
        self.observe("request_params_n", n as f64);
        self.observe("request_params_max_tokens", max_tokens as f64);
    }

    pub(super) fn finished(&self, reason: &str, tokens: usize, elapsed: Duration) {
        self.observe("request_generation_tokens", tokens as f64);
        self.observe("e2e_request_latency_seconds", elapsed.as_secs_f64());
        let mut labels = self.labels.clone();
        labels.push(Label::new("finished_reason", reason.to_owned()));
        with_local_recorder(&self.recorder, || {
            for prefix in PREFIXES {
                counter!(format!("{prefix}request_success_total"), labels.clone()).increment(1);
            }
        });
    }

    /// Counts one search. `kept` tokens are in the returned answers.
    pub(super) fn searched(&self, strategy: &str, stopped: &str, kept: u64, stats: &SearchStats) {
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
    }

    /// Counts one trace; `elapsed` is how long its answer waited for it.
    pub(super) fn traced(&self, result: &'static str, elapsed: Duration) {
        let mut labels = self.labels.clone();
        labels.push(Label::new("result", result));
        with_local_recorder(&self.recorder, || {
            counter!("ponder_traces_total", labels).increment(1);
            histogram!("ponder_trace_commit_seconds", self.labels.clone())
                .record(elapsed.as_secs_f64());
        });
    }

    /// A phase of adaptation is over.
    pub(super) fn adapted(&self, report: &AdaptationReport) {
        with_local_recorder(&self.recorder, || {
            let labels = || self.labels.clone();
            counter!("ponder_adaptation_phases_total", labels()).increment(1);
            let tokens = report.num_tokens as u64;
            counter!("ponder_adaptation_tokens_total", labels()).increment(tokens);
            gauge!("ponder_adaptation_moved_ratio", labels()).set(f64::from(report.moved));
        });
    }

    /// Takes the engine's counters and gauges as of now.
    fn refresh(&self, state: &AppState) {
        let Some(served) = state.served() else {
            return;
        };
        let stats = served.engine.stats();
        let config = served.engine.config();
        let usage = stats.num_used_blocks as f64 / stats.num_blocks.max(1) as f64;
        with_local_recorder(&self.recorder, || {
            gauge!("ponder_trace_readers", self.labels.clone())
                .set(state.trace_readers().load(Ordering::Relaxed) as f64);
            gauge!("ponder_search_branches_running", self.labels.clone())
                .set(stats.num_branches_running as f64);
            let load = served.engine.expert_load();
            for (layer, expert, tokens) in load.iter().flat_map(|load| load.counts()) {
                let mut labels = self.labels.clone();
                labels.push(Label::new("layer", layer.to_string()));
                labels.push(Label::new("expert", expert.to_string()));
                counter!("ponder_expert_tokens_total", labels).absolute(tokens);
            }
            for prefix in PREFIXES {
                for (name, value) in [
                    ("num_requests_running", stats.num_requests_running as f64),
                    ("num_requests_waiting", stats.num_requests_waiting as f64),
                    ("kv_cache_usage_perc", usage),
                ] {
                    gauge!(format!("{prefix}{name}"), self.labels.clone()).set(value);
                }
                for (name, value) in [
                    ("prefix_cache_queries_total", stats.prefix_cache_queries),
                    ("prefix_cache_hits_total", stats.prefix_cache_hits),
                    ("prompt_tokens_total", stats.prompt_tokens),
                    ("generation_tokens_total", stats.generation_tokens),
                    ("num_preemptions_total", stats.num_preemptions),
                ] {
                    counter!(format!("{prefix}{name}"), self.labels.clone()).absolute(value);
                }
                for (drafter, counts) in Drafter::ALL.iter().zip(stats.drafts) {
                    let mut labels = self.labels.clone();
                    labels.push(Label::new("drafter", drafter.name()));
                    for (name, value) in [
                        ("num_drafts", counts.num_drafts),
                        ("num_draft_tokens", counts.num_draft_tokens),
                        ("num_accepted_tokens", counts.num_accepted_tokens),
                    ] {
                        let name = format!("{prefix}spec_decode_{name}_total");
                        counter!(name, labels.clone()).absolute(value);
                    }
                }
                let mut labels = self.labels.clone();
                labels.push(Label::new("block_size", config.block_size.to_string()));
                labels.push(Label::new("num_gpu_blocks", config.num_blocks.to_string()));
                gauge!(format!("{prefix}cache_config_info"), labels).set(1.0);
            }
        });
    }
}

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Prometheus text")))]
pub(super) async fn scrape(State(state): State<AppState>) -> Response {
    let metrics = state.metrics();
    metrics.refresh(&state);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        metrics.handle.render(),
    )
        .into_response()
}
