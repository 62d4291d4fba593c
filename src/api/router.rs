//! Every route, each with its place in the OpenAPI document: none is served that is not described.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method};
use axum::middleware;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::adapters::routes as adapters;
use super::admission::layer as admission;
use super::branches::open;
use super::branches::routes as branches;
use super::config::ServerConfig;
use super::embeddings::route as embeddings;
use super::metrics::scrape;
use super::openai::{chat, completions, models};
use super::rerank::{routes as rerank, score as text_score};
use super::state::AppState;
use super::traces::{routes as traces, stream};
use super::{auth, error, health, pooling, score, tokenize};

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
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(scrape::scrape))
}

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// The document as pretty JSON with a final newline, as it is checked in.
pub fn document_json() -> String {
    let json = document().to_pretty_json();
    format!(
        "{}\n",
        json.expect("the document serialises; this is a bug")
    )
}

/// Every route. Authentication covers all but health, readiness and, by flag, metrics. The document
/// itself and the page that shows it are not part of the document.
pub fn router(state: AppState) -> Router {
    let config = state.config().clone();
    let (routes, document) = described().split_for_parts();
    // Serves `/openapi.json` too.
    let page: Router<AppState> = SwaggerUi::new("/docs")
        .config(Config::from("/openapi.json"))
        .url("/openapi.json", document)
        .into();
    let mut router = routes
        .merge(page)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
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
    router.with_state(state)
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
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(tower_http::cors::Any);
    Some(layer)
}
