//! Every route, each with its place in the OpenAPI document: none is served that is not described.

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, header};
use axum::middleware;
use serde_json::Value;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::adapters::routes as adapters;
use super::admission::layer as admission;
use super::branches::open;
use super::branches::routes as branches;
use super::config::ServerConfig;
use super::document;
use super::embeddings::route as embeddings;
use super::metrics::scrape;
use super::openai::{chat, completions, models};
use super::rerank::{routes as rerank, score as text_score};
use super::responses::{count as input_tokens, create as responses, routes as stored_responses};
use super::state::AppState;
use super::traces::{routes as traces, stream};
use super::{aliases, auth, body, error, health, page, pooling, request_id, score, tokenize};

/// How long a browser may remember what a preflight request allowed.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

#[derive(OpenApi)]
#[openapi(info(
    title = "Ponder",
    description = "OpenAI-compatible inference with test-time compute"
))]
struct Document;

fn described() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(chat::create))
        .routes(routes!(completions::create))
        .routes(routes!(responses::create))
        .routes(routes!(input_tokens::count))
        .routes(routes!(
            stored_responses::retrieve,
            stored_responses::delete
        ))
        .routes(routes!(stored_responses::cancel))
        .routes(routes!(stored_responses::input_items))
        .routes(routes!(embeddings::create))
        .routes(routes!(rerank::rerank))
        .routes(routes!(rerank::rerank_unversioned))
        .routes(routes!(rerank::rerank_v2))
        .routes(routes!(text_score::score_texts))
        .routes(routes!(score::score))
        .routes(routes!(pooling::pool))
        .routes(routes!(open::open))
        .routes(routes!(branches::generate))
        .routes(routes!(branches::score))
        .routes(routes!(branches::fork))
        .routes(routes!(branches::commit))
        .routes(routes!(branches::delete))
        .routes(routes!(traces::list))
        .routes(routes!(stream::stream))
        .routes(routes!(traces::retrieve, traces::delete))
        .routes(routes!(traces::outcome))
        .routes(routes!(adapters::load))
        .routes(routes!(adapters::unload))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .routes(routes!(models::retrieve_of))
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(scrape::scrape))
}

/// The OpenAPI document.
pub fn document() -> Value {
    document::complete(&described().into_openapi())
}

/// The document as pretty JSON with a final newline, as it is checked in.
pub fn document_json() -> String {
    format!("{:#}\n", document())
}

/// Every route. Authentication covers all but health, readiness, the page and, by flag, metrics. The
/// document itself, the page that shows it and the one at `/` are not part of the document.
pub fn router(state: AppState) -> Router {
    let config = state.config().clone();
    let (routes, described) = described().split_for_parts();
    let routes = match config.ui {
        true => routes.merge(page::routes()),
        false => routes,
    };
    let mut router = routes
        .merge(document::page::routes(&document::complete(&described)))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(middleware::from_fn(body::check_request))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            admission::admit,
        ))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            auth::require_key,
        ))
        .layer(DefaultBodyLimit::max(config.max_body_bytes))
        .layer(CatchPanicLayer::custom(error::on_panic));
    if let Some(layer) = cors(&config) {
        router = router.layer(layer);
    }
    let router = router
        .layer(middleware::from_fn(request_id::tell))
        .with_state(state);
    // A layer runs behind the choice of the route: paths are rewritten around the whole router.
    Router::new()
        .fallback_service(router)
        .layer(middleware::map_request(async |request| {
            aliases::rewrite(request)
        }))
}

/// `None` when no other origin is allowed.
fn cors(config: &ServerConfig) -> Option<CorsLayer> {
    let origins = &config.cors_allow_origins;
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = origins.iter();
        AllowOrigin::list(origins.filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    // `*` would not cover Authorization: what a browser asks for is allowed by name.
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([request_id::HEADER, header::RETRY_AFTER])
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}
