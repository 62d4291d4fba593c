//! A server in this process, over a real socket.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ponder::api::{AppState, Served, ServerConfig, detect_output, listen, serve};
use ponder::engine::{Engine, EngineHandle, EngineOptions};
use ponder::grammar::Grammars;
use ponder::model::ModelFiles;
use ponder::reward::{Judge, RewardResources};
use ponder::text::{ChatTemplate, Tokenizer};
use ponder::trace::{StoreOptions, TraceStore};
use serde_json::Value;

use crate::support::{default_files, install_tls, load_model};

fn served(options: &EngineOptions, rewards: RewardResources) -> Served {
    served_from(&default_files(), options, rewards)
}

/// What a server needs of a model that has a chat template.
pub fn served_from(
    files: &ModelFiles,
    options: &EngineOptions,
    rewards: RewardResources,
) -> Served {
    let model = load_model(files, 1024);
    let config = options.resolve(model.info()).unwrap();
    let tokenizer = Tokenizer::from_files(files).unwrap();
    let engine: Engine = Arc::new(EngineHandle::start(model, config).unwrap());
    let chat_template = ChatTemplate::from_files(files, &tokenizer, None).unwrap();
    let template = chat_template.clone().unwrap();
    let judge = Judge::new(Arc::clone(&engine), tokenizer.clone(), template.clone());
    let judge = Arc::new(judge);
    Served {
        grammars: Grammars::new(&tokenizer, engine.model_info().vocab_size)
            .ok()
            .into(),
        output: detect_output(Some(&template), &tokenizer),
        adaptation: None,
        model_config: files.config().ok(),
        engine,
        chat_template,
        rewards: RewardResources {
            judge: Some(judge),
            ..rewards
        },
        tokenizer,
        identity: Default::default(),
    }
}

pub struct Server {
    pub url: String,
    pub state: AppState,
    pub runtime: tokio::runtime::Runtime,
    pub stop: Option<tokio::sync::oneshot::Sender<()>>,
    pub task: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    /// Of the traces.
    _folder: tempfile::TempDir,
}

pub fn start(config: ServerConfig, options: &EngineOptions) -> Server {
    start_with(config, options, RewardResources::default())
}

pub fn start_with(
    config: ServerConfig,
    options: &EngineOptions,
    rewards: RewardResources,
) -> Server {
    start_served(config, || served(options, rewards))
}

/// A server of any model, which is made once the server listens.
pub fn start_served(config: ServerConfig, served: impl FnOnce() -> Served) -> Server {
    // Under the target folder: the server that all tests share is never dropped.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = TraceStore::open(&folder.path().join("traces.db"), StoreOptions::default());
    let server = start_stored(config, Some(store.unwrap()), folder);
    assert_eq!(
        server.get("/ready").0,
        503,
        "not ready before the model is there"
    );
    server.state.set_served(served());
    server
}

/// A server without a model. The folder lives as long.
pub fn start_stored(
    config: ServerConfig,
    store: Option<TraceStore>,
    folder: tempfile::TempDir,
) -> Server {
    install_tls();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(listen("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = ServerConfig {
        served_model_names: vec!["m".to_owned()],
        ..config
    };
    let state = AppState::with_store(config, store);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let task = runtime.spawn(serve(listener, state.clone(), shutdown));
    Server {
        url,
        state,
        runtime,
        stop: Some(stop),
        task: Some(task),
        _folder: folder,
    }
}

pub fn options() -> EngineOptions {
    EngineOptions {
        max_model_len: Some(1024),
        kv_cache_bytes: 256 << 20,
        ..EngineOptions::default()
    }
}

impl Server {
    pub fn get(&self, path: &str) -> (u16, String) {
        self.runtime.block_on(async {
            let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }

    pub fn post_with(&self, path: &str, body: String, headers: &[(&str, &str)]) -> (u16, String) {
        self.runtime.block_on(async {
            let mut request = reqwest::Client::new()
                .post(format!("{}{path}", self.url))
                .body(body);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.post_with(path, body.to_string(), &[]);
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    pub fn delete(&self, path: &str) -> u16 {
        self.runtime.block_on(async {
            let request = reqwest::Client::new().delete(format!("{}{path}", self.url));
            request.send().await.unwrap().status().as_u16()
        })
    }

    pub fn wait_until_free(&self) {
        let engine = &self.state.served().unwrap().engine;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let stats = engine.stats();
            if stats.num_used_blocks + stats.num_requests_waiting + stats.num_requests_running == 0
            {
                return;
            }
            assert!(Instant::now() < deadline, "blocks leak: {stats:?}");
            std::thread::yield_now();
        }
    }
}

pub fn shared_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start(ServerConfig::default(), &options()))
}
