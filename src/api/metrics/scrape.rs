//! `/metrics`.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics::{Label, counter, gauge, with_local_recorder};

use super::encoders::refresh_encoders;
use super::recorder::{Metrics, PREFIXES};
use crate::api::admission::Reason;
use crate::api::state::AppState;
use crate::engine::Drafter;
use crate::reward::ReadingKind;

/// Takes what connections and requests hold as of now.
fn refresh_connections(metrics: &Metrics, state: &AppState) {
    let (places, admission) = (state.places(), state.admission());
    let own = &metrics.labels;
    with_local_recorder(&metrics.recorder, || {
        for (name, value) in [
            ("ponder_http_connections", places.num_open()),
            (
                "ponder_http_requests_in_progress",
                admission.requests.held(),
            ),
            ("ponder_http_body_bytes", admission.body_bytes.held()),
            ("ponder_work_waiting", state.work().num_waiting()),
        ] {
            gauge!(name, own.clone()).set(value as f64);
        }
        for (name, value) in [
            (
                "ponder_http_connections_evicted_total",
                places.num_evicted(),
            ),
            (
                "ponder_http_connections_timed_out_total",
                places.num_timed_out(),
            ),
        ] {
            counter!(name, own.clone()).absolute(value);
        }
        for reason in Reason::ALL {
            let mut labels = own.clone();
            labels.push(Label::new("reason", reason.name()));
            counter!("ponder_http_requests_refused_total", labels)
                .absolute(admission.num_refused(reason));
        }
    });
}

/// Takes the store's counters as of now; there are some while the model loads, too.
fn refresh_traces(metrics: &Metrics, state: &AppState) {
    let own = &metrics.labels;
    with_local_recorder(&metrics.recorder, || {
        gauge!("ponder_trace_readers", own.clone()).set(state.trace_readers_now() as f64);
        if let Some(traces) = state.traces() {
            let store = &traces.store;
            for (name, count) in [
                ("ponder_trace_damaged_total", store.num_damaged()),
                (
                    "ponder_trace_indexes_rebuilt_total",
                    store.num_rebuilt_indexes(),
                ),
            ] {
                counter!(name, own.clone()).absolute(count);
            }
        }
    });
}

/// Takes the engine's counters and gauges as of now.
fn refresh(metrics: &Metrics, state: &AppState) {
    let Some(served) = state.served() else {
        return;
    };
    let stats = served.engine.stats();
    let config = served.engine.config();
    let share = |used: usize, all: usize| used as f64 / all.max(1) as f64;
    // Either pool may be the one that is short.
    let local_usage = share(stats.num_used_local_blocks, stats.num_local_blocks);
    let usage = share(stats.num_used_blocks, stats.num_blocks).max(local_usage);
    let own = &metrics.labels;
    with_local_recorder(&metrics.recorder, || {
        gauge!("ponder_search_branches_running", own.clone())
            .set(stats.num_branches_running as f64);
        let kv_bytes = config.kv_cache_bytes(served.engine.model_info());
        gauge!("ponder_kv_cache_bytes", own.clone()).set(kv_bytes as f64);
        let is_stalled = served.engine.stalled_for().is_some();
        gauge!("ponder_engine_stalled", own.clone()).set(f64::from(u8::from(is_stalled)));
        counter!("ponder_invariant_violations_total", own.clone())
            .absolute(stats.num_invariant_violations);
        for kind in ReadingKind::ALL {
            let mut labels = own.clone();
            labels.push(Label::new("kind", kind.name()));
            counter!("ponder_scorer_tokens_total", labels).absolute(state.scorer_tokens().of(kind));
        }
        let load = served.engine.expert_load();
        for (layer, expert, tokens) in load.iter().flat_map(|load| load.counts()) {
            let mut labels = own.clone();
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
                gauge!(format!("{prefix}{name}"), own.clone()).set(value);
            }
            for (name, value) in [
                ("prefix_cache_queries_total", stats.prefix_cache_queries),
                ("prefix_cache_hits_total", stats.prefix_cache_hits),
                ("prompt_tokens_total", stats.prompt_tokens),
                ("generation_tokens_total", stats.generation_tokens),
                ("num_preemptions_total", stats.num_preemptions),
            ] {
                counter!(format!("{prefix}{name}"), own.clone()).absolute(value);
            }
            for (drafter, counts) in Drafter::ALL.iter().zip(stats.drafts) {
                let mut labels = own.clone();
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
            let mut labels = own.clone();
            labels.push(Label::new("block_size", config.block_size.to_string()));
            labels.push(Label::new("num_gpu_blocks", config.num_blocks.to_string()));
            gauge!(format!("{prefix}cache_config_info"), labels).set(1.0);
        }
    });
}

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "Prometheus text")))]
pub(in crate::api) async fn scrape(State(state): State<AppState>) -> Response {
    let metrics = state.metrics();
    refresh_connections(metrics, &state);
    refresh_traces(metrics, &state);
    refresh_encoders(metrics, &state);
    refresh(metrics, &state);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        metrics.handle.render(),
    )
        .into_response()
}
