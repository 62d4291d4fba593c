//! Which adapters are loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::AdapterId;
use crate::trace::AdapterIdentity;

/// A loaded adapter.
#[derive(Debug, Clone)]
pub(in crate::api) struct Adapter {
    pub id: AdapterId,
    pub identity: AdapterIdentity,
    pub path: PathBuf,
    pub created: u64,
}

/// The loaded adapters by their names.
#[derive(Default)]
pub(in crate::api) struct AdapterRegistry {
    adapters: Mutex<BTreeMap<String, Adapter>>,
    /// Held by whoever loads or unloads: one at a time.
    pub changing: tokio::sync::Mutex<()>,
}

impl AdapterRegistry {
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Adapter>> {
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
pub(in crate::api) struct TargetModel {
    /// As answers carry it.
    pub name: String,
    pub adapter: Option<Adapter>,
}

impl TargetModel {
    pub fn adapter_id(&self) -> Option<AdapterId> {
        self.adapter.as_ref().map(|adapter| adapter.id)
    }
}
