//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`.

use std::path::Path;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::body::Body;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

/// An adapter in PEFT's format. Only requests with the same key see it.
#[derive(Debug, Deserialize, ToSchema)]
pub struct LoadAdapter {
    /// The model's name in requests.
    pub lora_name: String,
    /// A folder with adapter_config.json and adapter_model.safetensors inside one of the server's
    /// --lora-root folders, from there or in full.
    pub lora_path: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct UnloadAdapter {
    pub lora_name: String,
}

fn check_enabled(state: &AppState) -> Result<(), ApiError> {
    match state.config().enable_lora {
        true => Ok(()),
        false => Err(ApiError::no_adapters()),
    }
}

/// Loads an adapter.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "adapters", request_body = LoadAdapter,
    responses((status = 200, description = "Loaded"),
        (status = 400, description = "Not an adapter for this model"),
        (status = 403, description = "The server was started without --enable-lora")))]
pub(in crate::api) async fn load(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Body(request): Body<LoadAdapter>,
) -> Result<String, ApiError> {
    check_enabled(&state)?;
    let LoadAdapter {
        lora_name,
        lora_path,
    } = request;
    let loading = state.load_adapter_for(tenant, &lora_name, Path::new(&lora_path));
    deadline.limit(loading).await??;
    Ok(format!(
        "Success: LoRA adapter '{lora_name}' added successfully."
    ))
}

/// Unloads an adapter of the same key; requests that use it run to their end.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "adapters",
    request_body = UnloadAdapter,
    responses((status = 200, description = "Unloaded"),
        (status = 403, description = "Loaded by the operator, or started without --enable-lora"),
        (status = 404, description = "This key has no such adapter")))]
pub(in crate::api) async fn unload(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Body(request): Body<UnloadAdapter>,
) -> Result<(StatusCode, String), ApiError> {
    check_enabled(&state)?;
    let name = request.lora_name;
    let unloading = state.unload_adapter(tenant, &name);
    deadline.limit(unloading).await??;
    let message = format!("Success: LoRA adapter '{name}' removed successfully.");
    Ok((StatusCode::OK, message))
}
