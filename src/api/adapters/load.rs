//! Loading and unloading adapters, and finding the one that a request names.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::folder::Folder;
use super::registry::{Adapter, Owner, TargetModel};
use crate::api::clock::unix_time;
use crate::api::error::ApiError;
use crate::api::presets::split_model;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::engine::Capability;
use crate::model::{LoraAdapter, ModelConfig};
use crate::trace::AdapterIdentity;

const MAX_NAME_BYTES: usize = 128;

impl AppState {
    /// The model or adapter that a key's request names, with or without `:STRATEGY`.
    pub(in crate::api) fn target(
        &self,
        tenant: Tenant,
        model: Option<&str>,
    ) -> Result<TargetModel, ApiError> {
        let found = model.and_then(|model| {
            let adapters = self.adapters();
            let adapter = adapters.find(tenant, model);
            adapter.or_else(|| adapters.find(tenant, split_model(model).0))
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

    /// Loads an adapter from any folder for everybody, as the operator.
    pub async fn load_adapter(&self, name: &str, folder: &Path) -> Result<(), ApiError> {
        let folder = Folder::of_operator(folder);
        self.load_for(Owner::Operator, name, folder).await
    }

    /// Loads an adapter that a request named, for the requests of its key.
    pub(in crate::api) async fn load_adapter_for(
        &self,
        tenant: Tenant,
        name: &str,
        path: &Path,
    ) -> Result<(), ApiError> {
        let folder = Folder::inside(&self.config().lora_roots, path);
        let folder = folder.map_err(|error| ApiError::invalid("lora_path", error.to_string()))?;
        self.load_for(Owner::Key(tenant), name, folder).await
    }

    /// Reads an adapter's folder and makes it usable as a model of this name. Once begun it runs to
    /// its end, whether or not anybody still waits for it: the engine never holds an adapter that
    /// has no name here, which nobody could unload.
    async fn load_for(&self, owner: Owner, name: &str, folder: Folder) -> Result<(), ApiError> {
        check_name(name)?;
        let loading = load(self.clone(), owner, name.to_owned(), folder);
        let done = tokio::spawn(loading).await;
        done.map_err(|error| ApiError::internal(error.to_string()))?
    }

    /// Unloads a key's adapter. Requests that use it run to their end. Nothing is waited for between
    /// the name's end and the adapter's.
    pub(in crate::api) async fn unload_adapter(
        &self,
        tenant: Tenant,
        name: &str,
    ) -> Result<(), ApiError> {
        check_name(name)?;
        let served = self.ready()?;
        let _changing = self.adapters().changing.lock().await;
        let Some(adapter) = self.adapters().remove(tenant, name) else {
            return Err(match self.adapters().is_operators(name) {
                true => ApiError::operators_adapter(name),
                false => ApiError::no_adapter(name),
            });
        };
        served.engine.unload_adapter(adapter.id);
        Ok(())
    }
}

async fn load(state: AppState, owner: Owner, name: String, folder: Folder) -> Result<(), ApiError> {
    let served = state.ready()?;
    let adapters = state.adapters();
    let has_keys = !state.api_keys().is_empty();
    let place = adapters.begin(owner, has_keys);
    let _loading = place.map_err(|error| ApiError::overloaded(error.to_string()))?;
    let _changing = adapters.changing.lock().await;
    check_free(&state, owner, &name)?;
    served.engine.demand(Capability::Adapters)?;
    let config = served.model_config.clone();
    let config = config.ok_or_else(|| ApiError::internal("the model's sizes are not known"))?;
    let max_bytes = adapters.bytes_left(owner, has_keys, state.config().max_lora_bytes);
    let shown = folder.shown.clone();
    let read = tokio::task::spawn_blocking(move || read(&folder, max_bytes, &config));
    let read = read
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let read = read.map_err(|message| ApiError::invalid("lora_path", message))?;
    let id = served.engine.load_adapter(read.adapter).await?;
    let adapter = Adapter {
        id,
        identity: AdapterIdentity {
            name,
            hash: format!("xxh3-128:{:032x}", read.hash),
        },
        folder: shown,
        num_bytes: read.num_bytes,
        created: unix_time(),
    };
    adapters.insert(owner, adapter);
    Ok(())
}

/// An adapter that was read, and what is remembered of its weights.
struct ReadAdapter {
    adapter: LoraAdapter,
    hash: u128,
    num_bytes: u64,
}

fn read(folder: &Folder, max_bytes: u64, config: &ModelConfig) -> Result<ReadAdapter, String> {
    let files = folder.read(max_bytes).map_err(|error| error.to_string())?;
    let adapter = LoraAdapter::parse(&files.config, &files.weights, config);
    Ok(ReadAdapter {
        adapter: adapter.map_err(|error| error.to_string())?,
        hash: xxh3_128(&files.weights),
        num_bytes: files.weights.len() as u64,
    })
}

/// A name of a model that can stand in an address, an answer and a log.
fn check_name(name: &str) -> Result<(), ApiError> {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    let is_fair = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_of_name);
    if is_fair {
        return Ok(());
    }
    Err(ApiError::invalid(
        "lora_name",
        format!(
            "lora_name must have 1 to {MAX_NAME_BYTES} characters, of letters, digits, \".\", \"_\", \"-\" and \"/\""
        ),
    ))
}

fn check_free(state: &AppState, owner: Owner, name: &str) -> Result<(), ApiError> {
    let is_model = state.config().served_model_names.iter().any(|n| n == name);
    if is_model || state.adapters().is_taken(owner, name) {
        return Err(ApiError::invalid(
            "lora_name",
            format!("{name} is loaded already: unload it first, or use another name"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for name in ["a", "org/My-adapter_v1.2", &longest] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let too_long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", " ", "a b", "a:best_of_n", "a\n", "ä", "\0", &too_long] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("lora_name"));
            assert!(error.message.len() < 200);
        }
    }
}
