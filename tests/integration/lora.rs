//! Low-rank adapters: against merged weights, against PEFT, and in batches with and without them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ponder::api::ServerConfig;
use ponder::engine::{Backend, EngineHandle, GenerateRequest, SamplingParams, StreamEvent};
use ponder::model::lora::{LowRank, Target};
use ponder::model::testing::{TinyModel, uniform};
use ponder::model::{AdapterId, CausalLm, ForwardBatch, LoraAdapter, ModelFiles, SequenceRows};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{CHAT, ask, with};
use crate::goldens::kl_divergence;
use crate::server::{options, start};
use crate::support::{default_files, golden, load_model};

const BLOCK_SIZE: usize = 16;
/// Bounds on KL(PEFT, ours); PEFT runs the dequantised weights in f32, ours rounds activations to 8 bits.
const KL_MEAN_MAX: f64 = 0.01;
const KL_MAX: f64 = 0.05;
/// Largest difference of logits between an adapter and the same change merged into float weights.
const MERGED_TOLERANCE: f32 = 2e-3;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/lora")
}

fn loaded(files: &ModelFiles) -> Box<dyn CausalLm> {
    let mut model = load_model(files, 512);
    model.allocate_kv_cache(64, BLOCK_SIZE, 512).unwrap();
    model
}

/// Logits after each prompt, all in one step; each prompt with its adapter.
fn next_logits(model: &mut dyn CausalLm, prompts: &[(&[u32], Option<AdapterId>)]) -> Vec<Vec<f32>> {
    let (mut token_ids, mut positions, mut slots, mut logits_rows) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut tables: Vec<Vec<u32>> = Vec::new();
    let mut next_block = 0;
    for (prompt, _) in prompts {
        let blocks = prompt.len().div_ceil(BLOCK_SIZE) as u32;
        let table: Vec<u32> = (next_block..next_block + blocks).collect();
        next_block += blocks;
        for (position, token_id) in prompt.iter().enumerate() {
            token_ids.push(*token_id);
            positions.push(position as u32);
            let block = table[position / BLOCK_SIZE] as usize;
            slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
        }
        logits_rows.push(token_ids.len() as u32 - 1);
        tables.push(table);
    }
    let sequences: Vec<SequenceRows> = tables
        .iter()
        .zip(prompts)
        .map(|(table, (prompt, _))| SequenceRows {
            block_table: table,
            num_rows: prompt.len(),
            context_len: prompt.len(),
            leaves: &[],
        })
        .collect();
    let adapters: Vec<Option<AdapterId>> = prompts.iter().map(|(_, adapter)| *adapter).collect();
    let batch = ForwardBatch {
        token_ids: &token_ids,
        positions: &positions,
        slot_mapping: &slots,
        sequences: &sequences,
        adapters: &adapters,
        steering: &[],
        logits_rows: &logits_rows,
        skip: None,
        local: None,
    };
    let mut logits = Vec::new();
    model.forward(&batch, &mut logits).unwrap();
    let width = model.info().vocab_size;
    logits.chunks(width).map(<[f32]>::to_vec).collect()
}

/// A random adapter of every matrix, and the model with it merged.
fn adapted(model: &TinyModel, rank: usize) -> (LoraAdapter, TinyModel) {
    let mut state = 7;
    let mut merged = TinyModel::random(model.architecture, 1);
    let mut layers = Vec::new();
    for layer in 0..model.num_layers {
        let mut parts = BTreeMap::new();
        for (target, name) in [
            (Target::Q, "attn_q"),
            (Target::K, "attn_k"),
            (Target::V, "attn_v"),
            (Target::Output, "attn_output"),
            (Target::Gate, "ffn_gate"),
            (Target::Up, "ffn_up"),
            (Target::Down, "ffn_down"),
        ] {
            let tensor = merged
                .tensors
                .get_mut(&format!("blk.{layer}.{name}.weight"));
            let (dimensions, weights) = tensor.unwrap();
            let (in_features, out_features) = (dimensions[0], dimensions[1]);
            let mut random = |count: usize| -> Vec<f32> {
                (0..count).map(|_| 0.2 * uniform(&mut state)).collect()
            };
            let (a, b) = (random(rank * in_features), random(out_features * rank));
            for (row, weights) in weights.chunks_mut(in_features).enumerate() {
                for (column, weight) in weights.iter_mut().enumerate() {
                    let low = (0..rank).map(|k| b[row * rank + k] * a[k * in_features + column]);
                    *weight += low.sum::<f32>();
                }
            }
            parts.insert(
                target,
                LowRank {
                    rank,
                    out_features,
                    in_features,
                    a,
                    b,
                },
            );
        }
        layers.push(parts);
    }
    (LoraAdapter { layers }, merged)
}

fn open(model: &TinyModel, folder: &Path, name: &str) -> Box<dyn CausalLm> {
    let path = folder.join(format!("{name}.gguf"));
    std::fs::write(&path, model.to_gguf()).unwrap();
    loaded(&ModelFiles::open(&path).unwrap())
}

#[test]
fn an_adapter_does_what_merged_weights_do() {
    let folder = tempfile::tempdir().unwrap();
    let prompt: Vec<u32> = (0..20).map(|index| index * 37 % 96).collect();
    for architecture in ["llama", "qwen2", "qwen3", "gemma3"] {
        let tiny = TinyModel::random(architecture, 1);
        let (adapter, merged) = adapted(&tiny, 3);
        let mut base = open(&tiny, folder.path(), architecture);
        let mut merged = open(&merged, folder.path(), "merged");
        let id = AdapterId(4);
        base.adapters().unwrap().load(id, &adapter).unwrap();
        let ours = next_logits(base.as_mut(), &[(&prompt, Some(id))]).remove(0);
        let expected = next_logits(merged.as_mut(), &[(&prompt, None)]).remove(0);
        let plain = next_logits(base.as_mut(), &[(&prompt, None)]).remove(0);
        let distance = |a: &[f32], b: &[f32]| {
            let pairs = a.iter().zip(b);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        let far = distance(&plain, &expected);
        let near = distance(&ours, &expected);
        assert!(far > 0.1, "{architecture}: the adapter matters ({far})");
        assert!(near < MERGED_TOLERANCE, "{architecture}: {near}");
    }
}

#[test]
fn a_row_does_not_depend_on_the_adapters_beside_it() {
    let files = default_files();
    let adapter = LoraAdapter::read(&golden_folder(), &files.config().unwrap()).unwrap();
    assert_eq!(adapter.layers[14][&Target::Up].rank, 3);
    assert_eq!(adapter.layers[14][&Target::Q].rank, 2);
    let mut other = adapter.clone();
    for part in other.layers.iter_mut().flat_map(BTreeMap::values_mut) {
        part.b.iter_mut().for_each(|value| *value *= -1.0);
    }
    let mut model = loaded(&files);
    let (one, two) = (AdapterId(0), AdapterId(1));
    model.adapters().unwrap().load(one, &adapter).unwrap();
    model.adapters().unwrap().load(two, &other).unwrap();
    let prompts: [&[u32]; 4] = [&[1, 9, 30, 77], &[504, 2, 6], &[3; 20], &[1, 9, 30, 77]];
    let adapters = [Some(one), None, Some(two), Some(one)];
    let batch: Vec<_> = prompts.into_iter().zip(adapters).collect();
    let together = next_logits(model.as_mut(), &batch);
    for (row, together) in batch.iter().zip(&together) {
        let alone = next_logits(model.as_mut(), &[*row]);
        assert_eq!(alone[0], *together);
    }
    assert_eq!(together[0], together[3]);
    // Without its weights a batch fails instead of answering by other ones.
    model.adapters().unwrap().unload(one);
    let sequence = SequenceRows {
        block_table: &[0],
        num_rows: 1,
        context_len: 1,
        leaves: &[],
    };
    let batch = ForwardBatch {
        token_ids: &[1],
        positions: &[0],
        slot_mapping: &[0],
        sequences: &[sequence],
        adapters: &[Some(one)],
        steering: &[],
        logits_rows: &[0],
        skip: None,
        local: None,
    };
    assert!(model.forward(&batch, &mut Vec::new()).is_err());
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    kl_to_base: f64,
    top: Vec<(u32, f32)>,
}

#[test]
fn distributions_equal_those_of_peft_within_bounds() {
    let files = default_files();
    let adapter = LoraAdapter::read(&golden_folder(), &files.config().unwrap()).unwrap();
    let mut model = loaded(&files);
    let id = AdapterId(0);
    model.adapters().unwrap().load(id, &adapter).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&golden("lora/logits.json")).unwrap();
    let (mut sum, mut largest, mut sum_to_base) = (0.0, 0.0_f64, 0.0);
    for case in &cases {
        let logits = next_logits(model.as_mut(), &[(&case.prompt, Some(id))]).remove(0);
        let divergence = kl_divergence(&case.top, &logits);
        sum += divergence;
        largest = largest.max(divergence);
        sum_to_base += case.kl_to_base;
    }
    let count = cases.len() as f64;
    println!("KL mean {:.5}, max {largest:.5}", sum / count);
    assert!(sum_to_base / count > 0.3, "the adapter matters");
    assert!(
        sum / count <= KL_MEAN_MAX && largest <= KL_MAX,
        "KL mean {}, max {largest}",
        sum / count
    );
}

#[test]
fn folders_that_do_not_fit_are_refused() {
    let config = default_files().config().unwrap();
    let read = |name: &str| std::fs::read(golden_folder().join(name)).unwrap();
    let (json, weights) = (
        read("adapter_config.json"),
        read("adapter_model.safetensors"),
    );
    let changed = |field: &str, value: Value| {
        let mut config: Value = serde_json::from_slice(&json).unwrap();
        config[field] = value;
        config.to_string().into_bytes()
    };
    let refused = |json: &[u8], weights: &[u8]| {
        let error = LoraAdapter::parse(json, weights, &config).unwrap_err();
        error.to_string()
    };
    for (field, value, words) in [
        ("peft_type", json!("IA3"), "IA3"),
        ("use_dora", json!(true), "DoRA"),
        ("bias", json!("all"), "biases"),
        ("modules_to_save", json!(["lm_head"]), "lm_head"),
        ("r", json!(9), "this model needs"),
    ] {
        let message = refused(&changed(field, value), &weights);
        assert!(message.contains(words), "{message}");
    }
    assert!(refused(b"{", &weights).contains("adapter_config.json"));
    assert!(refused(&json, &weights[..100]).contains("adapter_model.safetensors"));
    let mut other = config.clone();
    other.hidden_size = 640;
    assert!(LoraAdapter::parse(&json, &weights, &other).is_err());
}

fn tokens(engine: &EngineHandle, adapter: Option<AdapterId>) -> Result<(Vec<u32>, usize), String> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 12,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let request = GenerateRequest {
        adapter,
        ..GenerateRequest::new((1..40).collect(), params)
    };
    let mut stream = engine.submit(request).unwrap();
    let (mut tokens, mut num_cached) = (Vec::new(), 0);
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token_id, .. } => tokens.push(token_id),
            StreamEvent::PromptDone {
                num_cached_tokens, ..
            } => num_cached = num_cached_tokens,
            StreamEvent::Error(error) => return Err(error.to_string()),
            _ => {}
        }
    }
    Ok((tokens, num_cached))
}

/// Cached blocks of one adapter are never another's, also when a name is loaded again.
#[test]
fn prefixes_are_shared_under_one_adapter_only() {
    let files = default_files();
    let adapter = LoraAdapter::read(&golden_folder(), &files.config().unwrap()).unwrap();
    let model = load_model(&files, 512);
    let config = options().resolve(model.info()).unwrap();
    let engine = EngineHandle::start(model, config).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let load = || {
        runtime
            .block_on(engine.load_adapter(adapter.clone()))
            .unwrap()
    };
    let (first, second) = (load(), load());
    let (plain, _) = tokens(&engine, None).unwrap();
    let (adapted, num_cached) = tokens(&engine, Some(first)).unwrap();
    assert_eq!(num_cached, 0);
    assert_ne!(plain, adapted);
    let (again, num_cached) = tokens(&engine, Some(first)).unwrap();
    assert!(num_cached > 0);
    assert_eq!(again, adapted);
    assert_eq!(tokens(&engine, Some(second)).unwrap(), (adapted, 0));
    engine.unload_adapter(first);
    assert!(
        tokens(&engine, Some(first))
            .unwrap_err()
            .contains("unloaded")
    );
    assert_eq!(tokens(&engine, None).unwrap().0, plain);
}

#[test]
fn adapters_come_and_go_over_http() {
    let folder = golden_folder().display().to_string();
    let load = |name: &str| json!({"lora_name": name, "lora_path": folder});
    let closed = start(ServerConfig::default(), &options());
    assert_eq!(closed.post("/v1/load_lora_adapter", load("a")).0, 403);
    let config = ServerConfig {
        enable_lora: true,
        lora_roots: vec![golden_folder()],
        ..ServerConfig::default()
    };
    let server = start(config, &options());
    let named = |name: &str| with(ask("Name a fruit."), "model", json!(name));
    assert_eq!(server.post(CHAT, named("a")).0, 404);
    let (status, text) = server.post("/v1/load_lora_adapter", load("a"));
    assert_eq!(status, 200, "{text}");
    assert_eq!(server.post("/v1/load_lora_adapter", load("a")).0, 400);
    assert_eq!(server.post("/v1/load_lora_adapter", load("m")).0, 400);
    let nowhere = json!({"lora_name": "b", "lora_path": "/nowhere"});
    let (status, error) = server.post("/v1/load_lora_adapter", nowhere);
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("lora_path"))
    );

    let (_, models) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&models).unwrap();
    let entry = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["id"] == "a");
    assert_eq!(entry.unwrap()["parent"], "m");
    let (_, plain) = server.post(CHAT, named("m"));
    let (status, adapted) = server.post(CHAT, with(named("a"), "store", json!(true)));
    assert_eq!((status, &adapted["model"]), (200, &json!("a")));
    assert_ne!(
        adapted["choices"][0]["message"],
        plain["choices"][0]["message"]
    );
    let (_, trace) = server.get(&format!(
        "/v1/traces/{}",
        adapted["trace_id"].as_str().unwrap()
    ));
    let trace: Value = serde_json::from_str(&trace).unwrap();
    assert_eq!(
        (&trace["model"], &trace["identity"]["adapter"]["name"]),
        (&json!("a"), &json!("a"))
    );
    let searched = with(named("a:best_of_n"), "temperature", json!(0.8));
    let (status, found) = server.post(CHAT, searched);
    assert_eq!((status, &found["model"]), (200, &json!("a")), "{found}");

    let unload = json!({"lora_name": "a"});
    assert_eq!(
        server.post("/v1/unload_lora_adapter", unload.clone()).0,
        200
    );
    assert_eq!(server.post("/v1/unload_lora_adapter", unload).0, 404);
    assert_eq!(server.post(CHAT, named("a")).0, 404);
}
