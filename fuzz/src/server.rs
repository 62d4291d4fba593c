//! The whole router over the fake model, without a socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ponder::api::{AppState, Served, ServerConfig, router};
use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{Engine, EngineHandle, EngineOptions};
use ponder::model::CausalLm;
use ponder::reward::prm::{Prm, PrmFormat, PrmParts};
use ponder::reward::{Judge, RewardResources};
use ponder::text::{ChatTemplate, Tokenizer};
use ponder::trace::{StoreOptions, TraceStore};

use crate::tiny;

/// Of the model; short, so that a request is over soon.
const MAX_MODEL_LEN: usize = 160;
const MAX_STORE_BYTES: u64 = 256 << 10;
const BLOCK_BYTES: usize = 4 * 16;
const NUM_BLOCKS: usize = 256;

fn served(folder: &Path) -> Served {
    let files = tiny::model_files(folder);
    let tokenizer = Tokenizer::from_files(&files).expect("the tokenizer");
    let template = ChatTemplate::from_files(&files, &tokenizer, Some(tiny::TEMPLATE));
    let template = template.expect("the template");
    let model: Box<dyn CausalLm> = Box::new(FakeModel::new(260, Fault::None));
    let options = EngineOptions {
        max_model_len: Some(MAX_MODEL_LEN),
        max_num_seqs: 16,
        kv_cache_bytes: NUM_BLOCKS * BLOCK_BYTES,
        ..EngineOptions::default()
    };
    let config = options.resolve(model.info()).expect("the options");
    let engine: Engine = Arc::new(EngineHandle::start(model, config).expect("the engine"));
    let judge = template.clone().expect("a template");
    let judge = Judge::new(engine.clone(), tokenizer.clone(), judge);
    let prm = Prm::new(PrmParts {
        engine: engine.clone(),
        tokenizer: tokenizer.clone(),
        chat_template: template.clone(),
        format: PrmFormat::MathShepherd,
        head: None,
        delimiter: None,
    });
    Served {
        engine,
        model_config: files.config().ok(),
        tokenizer,
        chat_template: template,
        rewards: RewardResources {
            judge: Some(Arc::new(judge)),
            prm: Some(Arc::new(prm.expect("the reward model"))),
            ..RewardResources::default()
        },
        adaptation: None,
        identity: Default::default(),
    }
}

/// A server that ends each request after `timeout`. Adapters are loaded from `folder`.
pub fn start(folder: &Path, api_keys: &[&str], timeout: Duration) -> Router {
    // The reward client wants one; whoever comes second finds it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tiny::adapter_folder(folder);
    let options = StoreOptions {
        max_bytes: MAX_STORE_BYTES,
        ..StoreOptions::default()
    };
    let store = TraceStore::open(&folder.join("traces.db"), options).expect("the store");
    let config = ServerConfig {
        served_model_names: vec!["m".to_owned()],
        api_keys: api_keys.iter().map(|key| (*key).to_owned()).collect(),
        metrics_need_key: false,
        request_timeout: timeout,
        trace_all: true,
        enable_lora: true,
        lora_roots: vec![folder.to_owned()],
        work_threads: 1,
        ..ServerConfig::default()
    };
    let state = AppState::with_store(config, Some(store));
    state.set_served(served(folder));
    router(state)
}
