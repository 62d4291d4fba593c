//! The OpenAPI document and the page that shows it.

use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::state::AppState;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ponder",
        description = "OpenAI-compatible inference with test-time compute"
    ),
    paths(
        super::openai::chat::create,
        super::openai::completions::create,
        super::score::score,
        super::pooling::pool,
        super::branches::open,
        super::branches::generate,
        super::branches::score,
        super::branches::fork,
        super::branches::commit,
        super::branches::delete,
        super::traces::list,
        super::traces::stream,
        super::traces::retrieve,
        super::traces::delete,
        super::traces::outcome,
        super::adapters::load,
        super::adapters::unload,
        super::openai::models::list,
        super::openai::models::retrieve,
        super::tokenize::tokenize,
        super::tokenize::detokenize,
        super::health::health,
        super::health::ready,
        super::health::version,
        super::metrics::scrape,
    )
)]
struct Document;

/// The document as pretty JSON with a final newline, as it is checked in.
pub fn document_json() -> String {
    let json = Document::openapi().to_pretty_json();
    format!(
        "{}\n",
        json.expect("the document serialises; this is a bug")
    )
}

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

pub(super) fn docs_page() -> Router<AppState> {
    SwaggerUi::new("/docs")
        .config(Config::from("/openapi.json"))
        .into()
}
