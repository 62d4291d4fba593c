//! A server without a download: the fake model, a tokenizer of single bytes, and a backend whose
//! moods a test sets.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use ponder::api::{Served, ServerConfig};
use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    Backend, Capability, Engine, EngineConfig, EngineError, EngineHandle, EngineOptions,
    EngineStats, GenerateRequest, GroupId, RequestId, RequestStream,
};
use ponder::grammar::Grammars;
use ponder::model::{AdapterId, CausalLm, LoraAdapter, ModelInfo};
use ponder::reward::prm::{Prm, PrmFormat, PrmParts};
use ponder::reward::{Judge, Programs, RewardResources, SchemaChecker};
use ponder::text::{ChatTemplate, OutputFormat, Tokenizer};
use ponder_sandbox::{Confined, Limits};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::server::{Server, start_served, start_stored};
pub use crate::tiny::adapter_folder;
use crate::tiny::{TEMPLATE, model_files};

/// Tokens of prompt and answer.
pub const CONTEXT: usize = 512;

/// The native engine, but for what a test needs to happen at its own time.
pub struct MoodyBackend {
    inner: EngineHandle,
    /// Refuses what only reads the model, as if the queue were full: judges wait then.
    pub refuses_pooling: AtomicBool,
    /// Says that nothing has moved for a minute.
    pub is_stalled: AtomicBool,
    loader: Arc<Loader>,
}

/// Loads adapters as the engine does: whoever asked may be gone before it is done.
struct Loader {
    /// Loads that were asked for and are not done.
    num_loading: AtomicUsize,
    /// Each load takes one.
    permits: Semaphore,
    adapters: Mutex<BTreeSet<u32>>,
}

impl Loader {
    async fn load(&self) -> AdapterId {
        self.permits.acquire().await.unwrap().forget();
        let mut adapters = self.adapters.lock().unwrap();
        let id = adapters.last().map_or(0, |id| id + 1);
        adapters.insert(id);
        self.num_loading.fetch_sub(1, Ordering::AcqRel);
        AdapterId(id)
    }
}

impl MoodyBackend {
    fn start() -> Arc<Self> {
        let model: Box<dyn CausalLm> = Box::new(FakeModel::new(260, Fault::None));
        let options = EngineOptions {
            max_model_len: Some(CONTEXT),
            max_num_seqs: 16,
            kv_cache_bytes: 4 * 16 * 1024,
            ..EngineOptions::default()
        };
        let config = options.resolve(model.info()).unwrap();
        Arc::new(Self {
            inner: EngineHandle::start(model, config).unwrap(),
            refuses_pooling: AtomicBool::new(false),
            is_stalled: AtomicBool::new(false),
            loader: Arc::new(Loader {
                num_loading: AtomicUsize::new(0),
                permits: Semaphore::new(0),
                adapters: Mutex::default(),
            }),
        })
    }

    /// Lets one adapter be loaded.
    pub fn permit_load(&self) {
        self.loader.permits.add_permits(1);
    }

    pub fn num_loading(&self) -> usize {
        self.loader.num_loading.load(Ordering::Acquire)
    }

    /// Adapters that the engine holds.
    pub fn num_adapters(&self) -> usize {
        self.loader.adapters.lock().unwrap().len()
    }
}

impl Backend for MoodyBackend {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &[Capability] {
        self.inner.capabilities()
    }

    fn config(&self) -> &EngineConfig {
        self.inner.config()
    }

    fn model_info(&self) -> &ModelInfo {
        self.inner.model_info()
    }

    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }

    fn is_healthy(&self) -> bool {
        self.inner.is_healthy()
    }

    fn stalled_for(&self) -> Option<Duration> {
        let is_stalled = self.is_stalled.load(Ordering::Acquire);
        is_stalled.then_some(Duration::from_secs(60))
    }

    fn submit(&self, request: GenerateRequest) -> Result<RequestStream, EngineError> {
        let refuses = self.refuses_pooling.load(Ordering::Acquire);
        match refuses && request.pooling.is_some() {
            true => Err(EngineError::Overloaded {
                waiting: 1,
                limit: 1,
            }),
            false => self.inner.submit(request),
        }
    }

    fn new_group(&self) -> GroupId {
        self.inner.new_group()
    }

    fn abort_choice(&self, id: RequestId, index: usize) {
        self.inner.abort_choice(id, index);
    }

    fn abort_all(&self) {
        self.inner.abort_all();
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }

    fn join(&self, timeout: Duration) -> bool {
        self.inner.join(timeout)
    }

    fn load_adapter(&self, _: LoraAdapter) -> BoxFuture<'_, Result<AdapterId, EngineError>> {
        self.loader.num_loading.fetch_add(1, Ordering::AcqRel);
        let loader = Arc::clone(&self.loader);
        let loaded = tokio::spawn(async move { loader.load().await });
        loaded.map(|id| Ok(id.unwrap())).boxed()
    }

    fn unload_adapter(&self, id: AdapterId) {
        self.loader.adapters.lock().unwrap().remove(&id.0);
    }
}

/// Checks schemas with the real binary. What ends a check is the processor time: the binary of a test may take its time
/// to start beside all the other tests.
fn schema_checker() -> SchemaChecker {
    let limits = Limits {
        wall: Duration::from_secs(60),
        ..SchemaChecker::LIMITS
    };
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_ponder"));
    SchemaChecker::new(Confined::new(exe, limits).unwrap(), Programs::new(2, false))
}

fn start_served_by(config: ServerConfig, served: Served) -> Server {
    start_served(config, || served)
}

/// A server without a download.
pub struct Offline {
    pub server: Server,
    pub backend: Arc<MoodyBackend>,
    /// Of the model's files and the adapter's.
    pub folder: tempfile::TempDir,
}

impl Offline {
    pub fn start() -> Self {
        Self::with(ServerConfig::default())
    }

    pub fn with(config: ServerConfig) -> Self {
        Self::with_server(config, start_served_by)
    }

    /// A server without a store.
    pub fn without_store() -> Self {
        Self::with_server(ServerConfig::default(), |config, served| {
            let server = start_stored(config, None, tempfile::tempdir().unwrap());
            server.state.set_served(served);
            server
        })
    }

    fn with_server(
        config: ServerConfig,
        start: impl FnOnce(ServerConfig, Served) -> Server,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = model_files(folder.path());
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let template = ChatTemplate::from_files(&files, &tokenizer, Some(TEMPLATE)).unwrap();
        let backend = MoodyBackend::start();
        let engine: Engine = Arc::clone(&backend) as Engine;
        let judge = Judge::new(engine.clone(), tokenizer.clone(), template.clone().unwrap());
        let prm = Prm::new(PrmParts {
            engine: engine.clone(),
            tokenizer: tokenizer.clone(),
            chat_template: template.clone(),
            format: PrmFormat::MathShepherd,
            head: None,
            delimiter: None,
        });
        let served = Served {
            grammars: Grammars::new(&tokenizer, engine.model_info().vocab_size)
                .ok()
                .into(),
            output: OutputFormat::default(),
            engine,
            model_config: files.config().ok(),
            tokenizer,
            chat_template: template,
            rewards: RewardResources {
                judge: Some(Arc::new(judge)),
                prm: Some(Arc::new(prm.unwrap())),
                schemas: Some(schema_checker()),
                ..RewardResources::default()
            },
            adaptation: None,
            identity: Default::default(),
        };
        let config = ServerConfig {
            enable_lora: true,
            lora_roots: vec![folder.path().to_owned()],
            ..config
        };
        Self {
            server: start(config, served),
            backend,
            folder,
        }
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.server.post(path, body)
    }

    /// The answer to a request that must succeed.
    pub fn ask(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, text) = self.server.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }
}

/// A chat request with a seed.
pub fn chat(more: Value) -> Value {
    let mut body = json!({"model": "m", "seed": 7, "max_tokens": 12,
        "messages": [{"role": "user", "content": "What is 1 + 1?"}]});
    merge(&mut body, more);
    body
}

/// A completion request with a seed.
pub fn completion(more: Value) -> Value {
    let mut body = json!({"model": "m", "seed": 7, "max_tokens": 12, "prompt": "Say it:"});
    merge(&mut body, more);
    body
}

fn merge(body: &mut Value, more: Value) {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
}
