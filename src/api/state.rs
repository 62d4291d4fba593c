//! What every handler reaches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::branches::Branches;
use super::config::ServerConfig;
use super::error::ApiError;
use super::metrics::Metrics;
use super::presets::split_model;
use crate::engine::EngineHandle;
use crate::reward::RewardResources;
use crate::text::{ChatTemplate, Tokenizer};

/// A loaded model.
pub struct Served {
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    pub rewards: RewardResources,
}

struct Inner {
    config: ServerConfig,
    served: OnceLock<Served>,
    metrics: Metrics,
    branches: Branches,
    created: u64,
    is_draining: AtomicBool,
}

/// Shared by all handlers; the model arrives after the listener is up.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

impl AppState {
    pub fn new(config: ServerConfig) -> Self {
        let model_name = config
            .served_model_names
            .first()
            .cloned()
            .unwrap_or_default();
        Self {
            inner: Arc::new(Inner {
                metrics: Metrics::new(&model_name),
                branches: Branches::default(),
                config,
                served: OnceLock::new(),
                created: unix_time(),
                is_draining: AtomicBool::new(false),
            }),
        }
    }

    /// Makes the server ready: the model is loaded and warm.
    pub fn set_served(&self, served: Served) {
        let _ = self.inner.served.set(served);
    }

    pub fn served(&self) -> Option<&Served> {
        self.inner.served.get()
    }

    /// The model, or 503 while it loads, while the server drains, or after the engine died.
    pub(super) fn ready(&self) -> Result<&Served, ApiError> {
        let unavailable = |message| Err(ApiError::unavailable(message));
        if self.inner.is_draining.load(Ordering::Acquire) {
            return unavailable("the server is shutting down");
        }
        match self.served() {
            None => unavailable("the model is still loading"),
            Some(served) if !served.engine.is_healthy() => unavailable("the engine has failed"),
            Some(served) => Ok(served),
        }
    }

    pub fn set_draining(&self) {
        self.inner.is_draining.store(true, Ordering::Release);
    }

    pub fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(super) fn branches(&self) -> &Branches {
        &self.inner.branches
    }

    /// When the server started, in Unix seconds.
    pub(super) fn created(&self) -> u64 {
        self.inner.created
    }

    pub(super) fn model_name(&self) -> &str {
        self.config()
            .served_model_names
            .first()
            .map_or("", String::as_str)
    }

    /// Answers 404 unless `model` is served here.
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        let names = &self.config().served_model_names;
        match model {
            Some(model) if !names.iter().any(|name| name == model) => {
                // `NAME:STRATEGY` serves the same model with a search.
                match split_model(model) {
                    (name, Some(_)) if names.iter().any(|known| known == name) => Ok(()),
                    _ => Err(ApiError::model_not_found(model, names)),
                }
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs())
}
