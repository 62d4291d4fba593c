//! Adapters at run time, with vLLM's routes: `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`. A loaded adapter
//! is a model's name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::Body;
use super::error::ApiError;
use super::presets::split_model;
use super::state::{AppState, unix_time};
use crate::engine::{AdapterId, Capability};
use crate::model::LoraAdapter;
use crate::trace::AdapterIdentity;

/// Adapters at once.
const MAX_ADAPTERS: usize = 32;

/// A loaded adapter.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    pub id: AdapterId,
    pub identity: AdapterIdentity,
    pub path: PathBuf,
    pub created: u64,
}

/// The loaded adapters by their names.
#[derive(Default)]
pub(super) struct AdapterRegistry {
    adapters: Mutex<BTreeMap<String, Adapter>>,
    /// One load or unload at a time.
    changing: tokio::sync::Mutex<()>,
}

impl AdapterRegistry {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Adapter>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, name: &str) -> Option<Adapter> {
        self.lock().get(name).cloned()
    }

    pub fn all(&self) -> Vec<Adapter> {
        self.lock().values().cloned().collect()
    }
}

/// What a request's `model` names.
#[derive(Debug, Clone)]
pub(super) struct TargetModel {
    /// As answers carry it.
    pub name: String,
    pub adapter: Option<Adapter>,
}

impl TargetModel {
    pub fn adapter_id(&self) -> Option<AdapterId> {
        self.adapter.as_ref().map(|adapter| adapter.id)
    }
}

impl AppState {
    /// The model or adapter that a request names, with or without `:STRATEGY`.
    pub(super) fn target(&self, model: Option<&str>) -> Result<TargetModel, ApiError> {
        let found = model.and_then(|model| {
            let adapters = self.adapters();
            let adapter = adapters.find(model);
            adapter.or_else(|| adapters.find(split_model(model).0))
        });
        if let Some(adapter) = found {
            return Ok(TargetModel {
                name: adapter.identity.name.clone(),
                adapter: Some(adapter),
            });
        }
        self.check_model(model)?;
        Ok(TargetModel {
            name: self.model_name().to_owned(),
            adapter: None,
        })
    }

    /// Reads an adapter's folder and makes it usable as a model of this name.
    pub async fn load_adapter(&self, name: &str, folder: &Path) -> Result<(), ApiError> {
        let served = self.ready()?;
        let _changing = self.adapters().changing.lock().await;
        check_name(self, name)?;
        served.engine.demand(Capability::Adapters)?;
        let config = served.model_config.clone();
        let config = config.ok_or_else(|| ApiError::internal("the model's sizes are not known"))?;
        let path = folder.to_owned();
        let read = tokio::task::spawn_blocking(move || LoraAdapter::read_hashed(&path, &config));
        let read = read
            .await
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let (adapter, hash) =
            read.map_err(|error| ApiError::invalid("lora_path", error.to_string()))?;
        let id = served.engine.load_adapter(adapter).await?;
        let adapter = Adapter {
            id,
            identity: AdapterIdentity {
                name: name.to_owned(),
                hash: format!("xxh3-128:{hash:032x}"),
            },
            path: folder.to_owned(),
            created: unix_time(),
        };
        self.adapters().lock().insert(name.to_owned(), adapter);
        Ok(())
    }
}

fn check_name(state: &AppState, name: &str) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("lora_name", message));
    if name.is_empty() {
        return invalid("lora_name must not be empty".to_owned());
    }
    if split_model(name).1.is_some() {
        return invalid(format!("lora_name {name:?} ends like a search preset"));
    }
    let is_model = state.config().served_model_names.iter().any(|n| n == name);
    let adapters = state.adapters().lock();
    if is_model || adapters.contains_key(name) {
        return invalid(format!(
            "{name} is loaded already: unload it first, or use another name"
        ));
    }
    if adapters.len() >= MAX_ADAPTERS {
        return Err(ApiError::overloaded(format!(
            "{MAX_ADAPTERS} adapters are loaded: unload some"
        )));
    }
    Ok(())
}

/// An adapter in PEFT's format.
#[derive(Debug, Deserialize, ToSchema)]
pub struct LoadAdapter {
    /// The model's name in requests.
    pub lora_name: String,
    /// A folder on the server with adapter_config.json and adapter_model.safetensors.
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
    responses((status = 200, description = "Loaded"), (status = 400, description = "Not an adapter for this model"),
        (status = 403, description = "The server was started without --enable-lora")))]
pub(super) async fn load(
    State(state): State<AppState>,
    Body(request): Body<LoadAdapter>,
) -> Result<String, ApiError> {
    check_enabled(&state)?;
    let LoadAdapter {
        lora_name,
        lora_path,
    } = request;
    state
        .load_adapter(&lora_name, Path::new(&lora_path))
        .await?;
    Ok(format!(
        "Success: LoRA adapter '{lora_name}' added successfully."
    ))
}

/// Unloads an adapter; requests that use it run to their end.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "adapters", request_body = UnloadAdapter,
    responses((status = 200, description = "Unloaded"), (status = 404, description = "No such adapter")))]
pub(super) async fn unload(
    State(state): State<AppState>,
    Body(request): Body<UnloadAdapter>,
) -> Result<(StatusCode, String), ApiError> {
    check_enabled(&state)?;
    let served = state.ready()?;
    let _changing = state.adapters().changing.lock().await;
    let name = request.lora_name;
    let removed = state.adapters().lock().remove(&name);
    let adapter = removed.ok_or_else(|| ApiError::no_adapter(&name))?;
    served.engine.unload_adapter(adapter.id);
    let message = format!("Success: LoRA adapter '{name}' removed successfully.");
    Ok((StatusCode::OK, message))
}
