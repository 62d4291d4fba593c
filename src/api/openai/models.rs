//! `/v1/models`.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::api::adapters::registry::Adapter;
use crate::api::error::ApiError;
use crate::api::presets;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::encoding::{EncoderKind, ServedEncoder};

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

/// An encoder beside the model.
fn encoder(state: &AppState, encoder: &ServedEncoder) -> Value {
    let task = match encoder.kind {
        EncoderKind::Embedder(_) => "embedding",
        EncoderKind::CrossEncoder => "rerank",
    };
    json!({
        "id": encoder.name,
        "object": "model",
        "created": state.created(),
        "owned_by": "ponder",
        "root": encoder.name,
        "max_model_len": encoder.max_len,
        "backend": "encoder",
        "capabilities": [task],
    })
}

/// What an encoder of this name is, under whatever name it is asked for.
fn encoder_named(state: &AppState, id: &str) -> Option<Value> {
    let encoders = state.encoders();
    let is_alone =
        encoders.are_alone && state.config().served_model_names.iter().any(|it| it == id);
    let own = || encoders.all.first().filter(|_| is_alone);
    let found = encoders.named(id).or_else(own)?;
    let mut entry = encoder(state, found);
    entry["id"] = id.into();
    Some(entry)
}

/// The names that requests may use: the model's, and with `:STRATEGY` the same model with a search.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, description = "Models")))]
pub async fn list(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
) -> Json<Value> {
    let names = &state.config().served_model_names;
    let encoders = state.encoders();
    if encoders.are_alone {
        let others = encoders.all.iter().skip(1).map(|it| it.name.clone());
        let all = names.iter().cloned().chain(others);
        let data: Vec<Value> = all
            .filter_map(|name| encoder_named(&state, &name))
            .collect();
        return Json(json!({"object": "list", "data": data}));
    }
    let searched = names.iter().take(1).flat_map(|name| presets::names(name));
    let all = names.iter().cloned().chain(searched);
    let mut data: Vec<Value> = all.map(|name| model(&state, &name)).collect();
    data.extend(encoders.all.iter().map(|it| encoder(&state, it)));
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
    if let Some(found) = encoder_named(state, id) {
        return Ok(Json(found));
    }
    state.check_model(Some(id))?;
    Ok(Json(model(state, id)))
}
