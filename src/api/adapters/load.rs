//! Loading and unloading adapters, and finding the one that a request names.

use std::path::{Path, PathBuf};

use super::registry::{Adapter, TargetModel};
use crate::api::clock::unix_time;
use crate::api::error::ApiError;
use crate::api::presets::split_model;
use crate::api::state::AppState;
use crate::engine::Capability;
use crate::model::LoraAdapter;
use crate::trace::AdapterIdentity;

/// Adapters at once.
const MAX_ADAPTERS: usize = 32;

impl AppState {
    /// The model or adapter that a request names, with or without `:STRATEGY`.
    pub(in crate::api) fn target(&self, model: Option<&str>) -> Result<TargetModel, ApiError> {
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

    /// Reads an adapter's folder and makes it usable as a model of this name. Once begun it runs to
    /// its end, whether or not anybody still waits for it: the engine never holds an adapter that
    /// has no name here, which nobody could unload.
    pub async fn load_adapter(&self, name: &str, folder: &Path) -> Result<(), ApiError> {
        let loading = load(self.clone(), name.to_owned(), folder.to_owned());
        let done = tokio::spawn(loading).await;
        done.map_err(|error| ApiError::internal(error.to_string()))?
    }

    /// Requests that use the adapter run to their end. Nothing is waited for between the name's end
    /// and the adapter's.
    pub(in crate::api) async fn unload_adapter(&self, name: &str) -> Result<(), ApiError> {
        let served = self.ready()?;
        let _changing = self.adapters().changing.lock().await;
        let removed = self.adapters().lock().remove(name);
        let adapter = removed.ok_or_else(|| ApiError::no_adapter(name))?;
        served.engine.unload_adapter(adapter.id);
        Ok(())
    }
}

async fn load(state: AppState, name: String, folder: PathBuf) -> Result<(), ApiError> {
    let served = state.ready()?;
    let _changing = state.adapters().changing.lock().await;
    check_name(&state, &name)?;
    served.engine.demand(Capability::Adapters)?;
    let config = served.model_config.clone();
    let config = config.ok_or_else(|| ApiError::internal("the model's sizes are not known"))?;
    let path = folder.clone();
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
            name: name.clone(),
            hash: format!("xxh3-128:{hash:032x}"),
        },
        path: folder,
        created: unix_time(),
    };
    state.adapters().lock().insert(name, adapter);
    Ok(())
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
