//! `/v1/models`.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::api::adapters::registry::Adapter;
use crate::api::error::ApiError;
use crate::api::presets;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

fn model(state: &AppState, id: &str) -> Value {
    let engine = state.served().map(|served| &served.engine);
    let capabilities = engine.map(|engine| {
        let names = engine.capabilities().iter().map(|it| it.name());
        names.collect::<Vec<_>>()
    });
    json!({
        "id": id,
        "object": "model",
        "created": state.created(),
        "owned_by": "ponder",
        "root": state.model_name(),
        "parent": null,
        "max_model_len": engine.map(|engine| engine.config().max_model_len),
        "backend": engine.map(|engine| engine.name()),
        "capabilities": capabilities,
    })
}

fn adapter(state: &AppState, adapter: &Adapter) -> Value {
    let mut entry = model(state, &adapter.identity.name);
    entry["created"] = adapter.created.into();
    entry["root"] = adapter.folder.clone().into();
    entry["parent"] = state.model_name().into();
    entry
}

/// The names that requests may use: the model's, and with `:STRATEGY` the same model with a search.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, description = "Models")))]
pub async fn list(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
) -> Json<Value> {
    let names = &state.config().served_model_names;
    let searched = names.iter().take(1).flat_map(|name| presets::names(name));
    let all = names.iter().cloned().chain(searched);
    let mut data: Vec<Value> = all.map(|name| model(&state, &name)).collect();
    let adapters = state.adapters().all(tenant);
    data.extend(adapters.iter().map(|loaded| adapter(&state, loaded)));
    Json(json!({"object": "list", "data": data}))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai",
    params(("id" = String, Path)), responses((status = 200, description = "The model")))]
pub async fn retrieve(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    find(&state, tenant, &id)
}

/// One model whose name has a slash, as on the Hugging Face hub.
#[utoipa::path(get, path = "/v1/models/{id}/{name}", tag = "openai",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "The model")))]
pub async fn retrieve_of(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    find(&state, tenant, &format!("{id}/{name}"))
}

fn find(state: &AppState, tenant: Tenant, id: &str) -> Result<Json<Value>, ApiError> {
    if let Some(loaded) = state.adapters().find(tenant, id) {
        return Ok(Json(adapter(state, &loaded)));
    }
    state.check_model(Some(id))?;
    Ok(Json(model(state, id)))
}
