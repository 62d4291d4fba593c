//! The state that every handler reaches.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::adapters::registry::AdapterRegistry;
use super::admission::Admission;
use super::branches::ledger::ledger;
use super::branches::session::Branches;
use super::clock::unix_time;
use super::config::ServerConfig;
use super::connections::places::Places;
use super::error::ApiError;
use super::keys::KeyRing;
use super::metrics::recorder::Metrics;
use super::presets::split_model;
use super::responses::background::Background;
use super::served::Served;
use super::served_encoders::ServedEncoders;
use super::tenant::Tenant;
use super::traces::seats::Seats;
use super::traces::store::Traces;
use crate::model::Pooling;
use crate::reward::{RewardContext, ScorerTokens};
use crate::trace::TraceStore;
use crate::work::{PoolOptions, WorkPool};

struct Inner {
    config: ServerConfig,
    api_keys: KeyRing,
    trace_keys: KeyRing,
    served: OnceLock<Served>,
    encoders: OnceLock<ServedEncoders>,
    decoder_pooling: OnceLock<Pooling>,
    metrics: Metrics,
    branches: Branches,
    adapters: AdapterRegistry,
    admission: Admission,
    places: Arc<Places>,
    created: u64,
    draining: CancellationToken,
    traces: Option<Traces>,
    work: WorkPool,
    trace_readers: Arc<Seats>,
    background: Arc<Background>,
    scorer_tokens: Arc<ScorerTokens>,
}

/// Shared by all handlers; the model arrives after the listener is up.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

impl AppState {
    pub fn new(config: ServerConfig) -> Self {
        Self::with_store(config, None)
    }

    /// A server that keeps traces.
    pub fn with_store(config: ServerConfig, store: Option<TraceStore>) -> Self {
        let model_name = config
            .served_model_names
            .first()
            .cloned()
            .unwrap_or_default();
        Self {
            inner: Arc::new(Inner {
                metrics: Metrics::new(&model_name),
                branches: Branches::new(ledger(config.max_branch_bytes, config.is_shared())),
                adapters: AdapterRegistry::default(),
                work: WorkPool::new(PoolOptions {
                    num_threads: config.work_threads,
                    max_queued: config.max_queued_work,
                    max_cpu: config.max_work_time,
                    is_shared: config.is_shared(),
                    ..PoolOptions::default()
                }),
                background: Arc::new(Background::new(config.is_shared())),
                admission: Admission::new(&config),
                places: Arc::new(Places::new(config.connections.max_connections)),
                api_keys: KeyRing::new(&config.api_keys),
                trace_keys: KeyRing::new(&config.trace_keys),
                config,
                served: OnceLock::new(),
                encoders: OnceLock::new(),
                decoder_pooling: OnceLock::new(),
                created: unix_time(),
                draining: CancellationToken::new(),
                traces: store.map(Traces::new),
                trace_readers: Arc::default(),
                scorer_tokens: Arc::default(),
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

    /// Serves encoders too, or alone. They come before the model.
    pub fn set_encoders(&self, encoders: ServedEncoders) {
        let _ = self.inner.encoders.set(encoders);
    }

    pub(super) fn encoders(&self) -> &ServedEncoders {
        static NONE: ServedEncoders = ServedEncoders {
            all: Vec::new(),
            are_alone: false,
        };
        self.inner.encoders.get().unwrap_or(&NONE)
    }

    /// How the model's states become vectors, when not by the last token's.
    pub fn set_decoder_pooling(&self, pooling: Pooling) {
        let _ = self.inner.decoder_pooling.set(pooling);
    }

    pub(super) fn decoder_pooling(&self) -> Pooling {
        let pooling = self.inner.decoder_pooling.get();
        pooling.copied().unwrap_or(Pooling::Last)
    }

    /// 503 while the server drains, or when an encoder has failed.
    pub(super) fn check_serving(&self) -> Result<(), ApiError> {
        if self.inner.draining.is_cancelled() {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        match self.encoders().is_healthy() {
            true => Ok(()),
            false => Err(ApiError::unavailable("the encoder has failed")),
        }
    }

    /// The model, or 503 while it loads, while the server drains, or after the engine died; 400
    /// where encoders are all that is served.
    pub(super) fn ready(&self) -> Result<&Served, ApiError> {
        let unavailable = |message| Err(ApiError::unavailable(message));
        if self.inner.draining.is_cancelled() {
            return unavailable("the server is shutting down");
        }
        match self.served() {
            None if self.encoders().are_alone => Err(ApiError::unsupported_by(
                self.model_name(),
                "it is an encoder and writes no text: ask for /v1/embeddings, /v1/rerank or /score",
            )),
            None => unavailable("the model is still loading"),
            Some(served) if !served.engine.is_healthy() => unavailable("the engine has failed"),
            Some(served) => Ok(served),
        }
    }

    pub fn set_draining(&self) {
        self.inner.draining.cancel();
    }

    /// Until the server drains.
    pub(super) async fn drained(&self) {
        self.inner.draining.cancelled().await;
    }

    pub(super) fn traces(&self) -> Option<&Traces> {
        self.inner.traces.as_ref()
    }

    /// How many streams of traces are open.
    pub fn trace_readers_now(&self) -> usize {
        self.inner.trace_readers.num_taken()
    }

    /// Streams of traces that are open.
    pub(super) fn trace_readers(&self) -> &Arc<Seats> {
        &self.inner.trace_readers
    }

    /// Where work of a size that clients choose is done.
    pub(super) fn work(&self) -> &WorkPool {
        &self.inner.work
    }

    pub(super) fn scorer_tokens(&self) -> &ScorerTokens {
        &self.inner.scorer_tokens
    }

    /// What a key's request tells its rewards, but for question and prompt.
    pub(super) fn reward_context(&self, tenant: Tenant, salt: Option<&str>) -> RewardContext {
        RewardContext {
            cache_salt: tenant.cache_salt(salt),
            tenant: tenant.0,
            pool: self.inner.work.clone(),
            tokens: Arc::new(ScorerTokens::within(&self.inner.scorer_tokens)),
            ..RewardContext::default()
        }
    }

    pub fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    /// Keys that may ask for everything; none means that nobody needs one.
    pub(super) fn api_keys(&self) -> &KeyRing {
        &self.inner.api_keys
    }

    /// Keys that read traces and do nothing else.
    pub(super) fn trace_keys(&self) -> &KeyRing {
        &self.inner.trace_keys
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(super) fn branches(&self) -> &Branches {
        &self.inner.branches
    }

    pub(super) fn adapters(&self) -> &AdapterRegistry {
        &self.inner.adapters
    }

    /// What requests hold at once.
    pub(super) fn admission(&self) -> &Admission {
        &self.inner.admission
    }

    /// Responses that are made without a connection.
    pub(super) fn background(&self) -> &Arc<Background> {
        &self.inner.background
    }

    /// Connections.
    pub(super) fn places(&self) -> &Arc<Places> {
        &self.inner.places
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
