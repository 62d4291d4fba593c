//! The HTTP room: routes, wire types, errors, auth, limits, metrics.

mod adapters;
mod auth;
mod body;
mod branches;
pub mod config;
pub mod error;
mod generation;
mod health;
pub mod metrics;
pub mod openai;
pub mod openapi;
mod pooling;
mod presets;
mod score;
mod searching;
mod state;
mod tokenize;
mod traces;

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method};
use axum::middleware;
use axum::routing::{delete, get, post};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How a server adapts requests that say nothing of it, from `--adaptation` and `--router-adaptation`.
pub fn default_adaptation(
    adaptation: Option<&str>,
    router_adaptation: Option<&str>,
    served: &Served,
) -> Result<Option<std::sync::Arc<crate::engine::AdaptationConfig>>, error::ApiError> {
    match (adaptation, router_adaptation) {
        (Some(text), _) => openai::adaptation::from_flag("adaptation", text, served),
        (None, Some(text)) => openai::adaptation::from_flag("router_adaptation", text, served),
        (None, None) => Ok(None),
    }
}

pub use config::ServerConfig;
pub use presets::strategy_names;
pub use state::{AppState, Served};

/// Every route. Authentication covers all but health, readiness and, by flag, metrics.
pub fn router(state: AppState) -> Router {
    let config = state.config().clone();
    let mut router = Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/score", post(score::score))
        .route("/pooling", post(pooling::pool))
        .route("/v1/branches", post(branches::open))
        .route("/v1/branches/{id}", delete(branches::delete))
        .route("/v1/branches/{id}/generate", post(branches::generate))
        .route("/v1/branches/{id}/score", post(branches::score))
        .route("/v1/branches/{id}/fork", post(branches::fork))
        .route("/v1/branches/{id}/commit", post(branches::commit))
        .route("/v1/traces", get(traces::list))
        .route("/v1/traces/stream", get(traces::stream))
        .route(
            "/v1/traces/{id}",
            get(traces::retrieve).delete(traces::delete),
        )
        .route("/v1/traces/{id}/outcome", post(traces::outcome))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{id}", get(openai::models::retrieve))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(metrics::scrape))
        .route("/openapi.json", get(openapi::document))
        .merge(openapi::docs_page())
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            auth::require_key,
        ))
        .layer(DefaultBodyLimit::max(config.max_body_bytes))
        .layer(CatchPanicLayer::custom(error::on_panic));
    if !config.cors_allow_origins.is_empty() {
        let origins = &config.cors_allow_origins;
        let allowed = if origins.iter().any(|origin| origin == "*") {
            AllowOrigin::any()
        } else {
            AllowOrigin::list(
                origins
                    .iter()
                    .filter_map(|origin| HeaderValue::from_str(origin).ok()),
            )
        };
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(tower_http::cors::Any);
        router = router.layer(layer);
    }
    router.with_state(state)
}

/// Serves until `shutdown` resolves, then stops accepting, lets requests finish for at most the
/// configured time, and aborts the rest.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let timeout = state.config().shutdown_timeout;
    let (started, mut draining) = tokio::sync::watch::channel(false);
    let draining_state = state.clone();
    let signal = async move {
        shutdown.await;
        draining_state.set_draining();
        let _ = started.send(true);
    };
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(signal);
    let limit = async move {
        if draining.wait_for(|is_draining| *is_draining).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(timeout).await;
        if let Some(served) = state.served() {
            served.engine.abort_all();
        }
        // Aborted requests still write their last bytes.
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        result = server => result,
        () = limit => Ok(()),
    }
}
