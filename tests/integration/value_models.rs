//! Value models: what they read and where, what it costs, and how they are named and refused.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use futures::executor::block_on;
use ponder::api::ServerConfig;
use ponder::engine::{
    AdapterId, Engine, EngineHandle, EngineOptions, GenerateRequest, PoolingParams, SamplingParams,
    StreamEvent,
};
use ponder::model::{LoraAdapter, ModelFiles};
use ponder::reward::{
    Aggregate, Head, ReadingKind, RewardContext, RewardResources, ValueModel, ValueModelParts,
};
use ponder::text::Tokenizer;
use ponder::trace::TraceRecord;
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::backends::refusal;
use crate::process::Process;
use crate::server::{Server, served_from, start_served};
use crate::support::load_model;
use crate::tiny_llama::{
    HIDDEN, head, merged, write_adapter, write_model, write_model_of, write_tensors,
    write_value_model,
};

/// Ids of the tokenizer's special tokens: it has the single bytes before them.
const START: u32 = 256;
const END: u32 = 257;
/// Seeds of two value models.
const FIRST: u64 = 7;
const SECOND: u64 = 8;

fn options() -> EngineOptions {
    EngineOptions {
        kv_cache_bytes: 32 << 20,
        max_model_len: Some(512),
        ..EngineOptions::default()
    }
}

fn engine(folder: &Path) -> Engine {
    let model = load_model(&ModelFiles::open(folder).unwrap(), 512);
    let config = options().resolve(model.info()).unwrap();
    Arc::new(EngineHandle::start(model, config).unwrap())
}

/// What the model reads of a question: its tokenizer is one of bytes.
fn prompt(question: &str) -> Vec<u32> {
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let turn = bytes(&format!("user\n{question}"));
    let reply = bytes("assistant\n");
    [
        vec![START],
        turn,
        vec![END],
        bytes("\n"),
        vec![START],
        reply,
    ]
    .concat()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// The final hidden state at the last of some tokens.
fn state(engine: &Engine, adapter: Option<AdapterId>, token_ids: &[u32]) -> Vec<f32> {
    let pooling = PoolingParams {
        positions: vec![token_ids.len() - 1],
        hidden_state: true,
        ..PoolingParams::default()
    };
    let request = GenerateRequest {
        adapter,
        ..GenerateRequest::pooling(token_ids.to_vec(), pooling)
    };
    let mut stream = engine.submit(request).unwrap();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Pooled { hidden_state, .. } => return hidden_state.unwrap(),
            StreamEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    panic!("nothing was read")
}

/// `sigmoid(score · state + bias)`
fn value_of(seed: u64, state: &[f32]) -> f64 {
    let [(.., score), (.., bias)] = head(seed);
    let dot: f64 = score.iter().zip(state).map(|(w, x)| f64::from(w * x)).sum();
    1.0 / (1.0 + (-dot - f64::from(bias[0])).exp())
}

/// Writes the value model of this seed beside the model in `folder`, and loads it.
fn load(folder: &Path, seed: u64, engine: &Engine) -> (AdapterId, Head) {
    let path = folder.join(format!("value-{seed}"));
    write_value_model(&path, seed);
    let config = ModelFiles::open(folder).unwrap().config().unwrap();
    let adapter = LoraAdapter::read(&path, &config).unwrap();
    let adapter = block_on(engine.load_adapter(adapter)).unwrap();
    let head = Head::load(&path.join("value_head.safetensors"), HIDDEN).unwrap();
    (adapter, head)
}

fn value_model(folder: &Path, name: &str, seed: u64, engine: &Engine) -> ValueModel {
    let (adapter, head) = load(folder, seed, engine);
    ValueModel::new(ValueModelParts {
        name: name.to_owned(),
        engine: Engine::clone(engine),
        tokenizer: Tokenizer::from_files(&ModelFiles::open(folder).unwrap()).unwrap(),
        adapter,
        head,
    })
}

/// A server of the tiny model with two value models.
fn server(folder: &Path) -> Server {
    write_model(folder);
    start_served(ServerConfig::default(), || {
        let files = ModelFiles::open(folder).unwrap();
        let mut served = served_from(&files, &options(), RewardResources::default());
        for (name, seed) in [("first", FIRST), ("second", SECOND)] {
            let model = value_model(folder, name, seed, &served.engine);
            served.rewards.value_models.push(Arc::new(model));
        }
        served
    })
}

fn score(server: &Server, candidates: &[&str], reward: Value) -> (u16, Value) {
    let messages = json!([{"role": "user", "content": "2+3?"}]);
    let body = json!({"messages": messages, "candidates": candidates, "reward": reward});
    server.post("/v1/score", body)
}

fn scores(server: &Server, candidates: &[&str], reward: Value) -> Vec<f64> {
    let (status, answer) = score(server, candidates, reward);
    assert_eq!(status, 200, "{answer}");
    let data = answer["data"].as_array().unwrap().iter();
    data.map(|it| it["score"].as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(actual: f64, expected: f64, tolerance: f64) {
    assert!((actual - expected).abs() < tolerance, "{actual} {expected}");
}

#[test]
fn a_value_is_what_the_head_says_behind_the_end_of_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    // The adapter's change merged into the weights of another model.
    let other = tempfile::tempdir().unwrap();
    write_model_of(other.path(), &merged(FIRST));
    let merged = engine(other.path());
    let plain = engine(folder.path());
    let mut seen = Vec::new();
    for answer in ["5", "It is 5.\n\nSo: 5", ""] {
        let reward = json!({"kind": "value_model"});
        let value = scores(&server, &[answer], reward)[0];
        let tokens = [prompt("2+3?"), bytes(answer), vec![END]].concat();
        let expected = value_of(FIRST, &state(&merged, None, &tokens));
        assert_close(value, expected, 1e-3);
        let without = value_of(FIRST, &state(&plain, None, &tokens));
        assert!((without - expected).abs() > 0.01, "the adapter does much");
        seen.push(value);
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "{seen:?}");
    let each: Vec<f64> = scores(
        &server,
        &["5", "It is 5.\n\nSo: 5", ""],
        json!({"kind": "value_model", "aggregate": "last"}),
    );
    assert_eq!(each, seen, "together as alone");
}

#[test]
fn values_of_steps_become_one_by_the_aggregate() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let engine = engine(folder.path());
    let (adapter, _) = load(folder.path(), FIRST, &engine);
    // Blank lines are no steps, and nothing but an end behind one is none either.
    let answer = "\n\na b\n\n\n\nc\n\n";
    let ends = ["\n\na b\n\n".len(), answer.len() + 1];
    let whole = [prompt("2+3?"), bytes(answer), vec![END]].concat();
    let at = |end: usize| {
        let tokens = &whole[..prompt("2+3?").len() + end];
        value_of(FIRST, &state(&engine, Some(adapter), tokens))
    };
    let values = ends.map(at);
    for (aggregate, expected) in [
        ("last", values[1]),
        ("min", values[0].min(values[1])),
        ("prod", values[0] * values[1]),
        ("mean", (values[0] + values[1]) / 2.0),
    ] {
        let reward = json!({"kind": "value_model", "aggregate": aggregate});
        assert_close(scores(&server, &[answer], reward)[0], expected, 1e-6);
    }
}

#[test]
fn value_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let of = |reward: Value| scores(&server, &["5"], reward)[0];
    let first = of(json!({"kind": "value_model"}));
    let second = of(json!({"kind": "value_model", "model": "second"}));
    assert_eq!(of(json!({"kind": "value_model", "model": "first"})), first);
    assert_ne!(first, second);
    let both = of(
        json!([{"kind": "value_model", "model": "first", "weight": 3},
        {"kind": "value_model", "model": "second"}]),
    );
    assert_close(both, (3.0 * first + second) / 4.0, 1e-9);
    let (status, answer) = score(
        &server,
        &["5"],
        json!({"kind": "value_model", "model": "third"}),
    );
    assert_eq!(status, 400);
    let (param, message) = (
        &answer["error"]["param"],
        answer["error"]["message"].to_string(),
    );
    assert_eq!(param, "reward[0].model", "{answer}");
    assert!(message.contains("first, second"), "{message}");
    for (reward, param) in [
        (
            json!({"kind": "value_model", "instruction": "?"}),
            "reward[0].instruction",
        ),
        (
            json!({"kind": "likelihood", "model": "first"}),
            "reward[0].model",
        ),
    ] {
        let (status, answer) = score(&server, &["5"], reward);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)));
    }
    let without = crate::server::shared_server();
    let (status, answer) = score(without, &["5"], json!({"kind": "value_model"}));
    assert_eq!(status, 400);
    assert!(
        answer["error"]["message"]
            .to_string()
            .contains("--value-adapter"),
        "{answer}"
    );
}

/// What a context has counted since `before`.
fn computed(context: &RewardContext, before: &mut u64) -> u64 {
    let now = context.tokens.of(ReadingKind::ValueModel);
    now - std::mem::replace(before, now)
}

#[test]
fn a_new_step_costs_its_own_tokens_and_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let engine = engine(folder.path());
    let grown = value_model(folder.path(), "v", FIRST, &engine);
    let prompt = prompt("a longer question, so that its tokens fill more than one block");
    let context = RewardContext {
        prompt_token_ids: prompt.as_slice().into(),
        ..RewardContext::default()
    };
    let answer: Vec<u32> = bytes("First step of it.\n\nThe second step.\n\nThe third one.");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let values = |model: &ValueModel, ends: &[usize], context: &RewardContext| {
        let answers = ends.iter().map(|end| answer[..*end].into()).collect();
        let values = model.values(answers, Aggregate::Last, context, None);
        runtime.block_on(values).unwrap()
    };
    let ends = [19, 37, answer.len()];
    let (mut before, mut last, mut all) = (0, 0, Vec::new());
    for end in ends {
        all.extend(values(&grown, &[end], &context));
        let own = match last {
            0 => prompt.len() + end,
            _ => end - last,
        };
        assert_eq!(computed(&context, &mut before), own as u64, "{end}");
        last = end;
    }
    assert_eq!(values(&grown, &ends, &context), all);
    assert_eq!(computed(&context, &mut before), 0, "all is known");
    // Another tenant shares neither values nor blocks.
    let other = RewardContext {
        cache_salt: 1,
        ..context.clone()
    };
    assert_eq!(values(&grown, &ends[..1], &other), all[..1]);
    assert_eq!(
        computed(&context, &mut before),
        (prompt.len() + ends[0]) as u64
    );
    // A fresh engine that reads all at once.
    let fresh = tempfile::tempdir().unwrap();
    write_model(fresh.path());
    let fresh = value_model(fresh.path(), "v", FIRST, &self::engine(fresh.path()));
    assert_eq!(values(&fresh, &ends, &context), all);
}

#[test]
fn an_answer_that_fills_the_context_has_a_value() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let room = 512 - prompt("2+3?").len() - 1;
    let reward = json!({"kind": "value_model"});
    let value = scores(&server, &[&"x".repeat(room)], reward.clone())[0];
    assert!(value > 0.0 && value < 1.0);
    let (status, answer) = score(&server, &[&"x".repeat(room + 1)], reward);
    assert_eq!(status, 400, "{answer}");
}

fn chat(server: &Server, search: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "2+3?"}], "max_tokens": 24,
        "seed": 3, "temperature": 1.5, "search": search});
    let (status, answer) = server.post(CHAT, body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn searches_are_steered_by_the_values_of_their_own_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let reference = engine(folder.path());
    let (adapter, head) = load(folder.path(), FIRST, &reference);
    let metric = |text: &str| -> f64 {
        let name = "ponder_scorer_tokens_total{model_name=\"m\",kind=\"value_model\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    };
    let mut counted = metric(&server.get("/metrics").1);
    for strategy in ponder::search::STRATEGIES {
        let name = strategy.name();
        let mut search = json!({"strategy": name, "step": {"max_tokens": 6},
            "budget": {"tokens": 160}, "return_tree": true});
        if strategy.defaults().is_vote {
            search["reward"] = json!({"kind": "value_model"});
        }
        let answer = chat(&server, search);
        let report = &answer["search"];
        let trace: TraceRecord = serde_json::from_value(report["tree"].clone()).unwrap();
        let mut num_checked = 0;
        let mut texts = std::collections::HashSet::new();
        for (id, node) in trace.nodes.iter().enumerate().skip(1) {
            // Answers with the same text have one score, that of the first.
            let is_new = texts.insert((trace.answer_text(id), node.is_whole()));
            let Some(score) = node.score.filter(|_| is_new) else {
                continue;
            };
            let tokens = [trace.prompt_token_ids.clone(), trace.answer_token_ids(id)].concat();
            let value = head.value(&state(&reference, Some(adapter), &tokens));
            assert_eq!(value, score, "{name} {id}");
            num_checked += 1;
        }
        assert!(num_checked > 0, "{name}: {answer}");
        // Each token of the prompt and of what was scored is computed once, or twice where what
        // samples share is read before them.
        let tokens = report["scorer_tokens"].as_u64().unwrap();
        // The answers of self_consistency, before it, are the same.
        let is_known = name == "deepconf";
        let own: usize = trace.nodes.iter().map(|node| node.token_ids.len()).sum();
        let most = trace.prompt_token_ids.len() + own + 2 * trace.nodes.len();
        assert!(
            (tokens > 0) != is_known && tokens as usize <= most,
            "{name}: {tokens} of {most}"
        );
        assert_eq!(trace.usage.scorer_tokens, tokens);
        let now = metric(&server.get("/metrics").1);
        assert_eq!(now - counted, tokens as f64, "{name}");
        counted = now;
    }
    // Beside another reward, in a list.
    let rewards = json!([{"kind": "value_model", "aggregate": "min"},
        {"kind": "likelihood", "weight": 2}]);
    let answer = chat(
        &server,
        json!({"strategy": "beam", "n": 4, "branch": 2, "step": {"max_tokens": 6},
            "budget": {"tokens": 96}, "reward": rewards}),
    );
    assert!(answer["search"]["value"].as_f64().unwrap() > 0.0);
}

#[test]
fn branches_are_scored_and_the_model_names_of_requests_mean_no_value_models() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let (status, session) = server.post(
        "/v1/branches",
        json!({"messages": [{"role": "user", "content": "2+3?"}], "max_tokens": 64}),
    );
    assert_eq!(status, 200, "{session}");
    let at = |call: &str| format!("/v1/branches/{}/{call}", session["id"].as_str().unwrap());
    let (_, node) = server.post(&at("fork"), json!({"node": 0, "text": "It is 5.\n\n"}));
    let body = json!({"nodes": [node["node"]], "reward": {"kind": "value_model"}});
    let (status, scored) = server.post(&at("score"), body);
    assert_eq!(status, 200, "{scored}");
    let engine = engine(folder.path());
    let (adapter, _) = load(folder.path(), FIRST, &engine);
    // A beginning of an answer is read at its last token.
    let tokens = [prompt("2+3?"), bytes("It is 5.\n\n")].concat();
    let expected = value_of(FIRST, &state(&engine, Some(adapter), &tokens));
    let score = scored["data"][0]["score"].as_f64().unwrap();
    assert_close(score, expected, 1e-6);
    let models = server.get("/v1/models").1;
    assert!(!models.contains("first") && !models.contains("second"));
    let body = json!({"model": "first", "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(server.post(CHAT, body).0, 404);
}

/// Greedy tokens of a prompt.
fn greedy(engine: &Engine, prompt: &[u32]) -> Vec<u32> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 48,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let request = GenerateRequest::new(prompt.to_vec(), params);
    let mut stream = engine.submit(request).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Token { token_id, .. } = event {
            tokens.push(token_id);
        }
    }
    tokens
}

#[test]
fn rows_beside_a_value_model_keep_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let engine = engine(folder.path());
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| prompt(&format!("question {i}"))).collect();
    let alone: Vec<Vec<u32>> = prompts.iter().map(|p| greedy(&engine, p)).collect();
    let model = value_model(folder.path(), "v", FIRST, &engine);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let values = |salt: u64| {
        let context = RewardContext {
            prompt_token_ids: prompts[0].as_slice().into(),
            cache_salt: salt,
            ..RewardContext::default()
        };
        let answers = alone.iter().map(|answer| answer.as_slice().into());
        let values = model.values(answers.collect(), Aggregate::Last, &context, None);
        runtime.block_on(values).unwrap()
    };
    let expected = values(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| (1..6).map(&values).collect::<Vec<_>>());
        let beside: Vec<_> = prompts
            .iter()
            .map(|prompt| scope.spawn(|| greedy(&engine, prompt)))
            .collect();
        for (answer, alone) in beside.into_iter().zip(&alone) {
            assert_eq!(&answer.join().unwrap(), alone);
        }
        for values in reading.join().unwrap() {
            assert_eq!(values, expected);
        }
    });
}

#[test]
fn what_is_no_value_model_of_the_served_model_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("value");
    let file = |name: &str| path.join(name);
    let config = |change: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::write(file("adapter_config.json"), config.to_string()).unwrap();
    };
    let head = |tensors: &[(&str, usize)]| {
        let tensor =
            |(name, len): &(&str, usize)| ((*name).to_owned(), vec![1, *len], vec![0.5_f32; *len]);
        let tensors: Vec<_> = tensors.iter().map(tensor).collect();
        write_tensors(&file("value_head.safetensors"), &tensors);
    };
    let flag = path.to_str().unwrap();
    let args = ["--value-adapter", flag];
    let expect = |what: &str, args: &[&str]| {
        let message = refusal(folder.path(), args);
        assert!(
            message.contains(what) && message.contains("--value-adapter"),
            "{what}: {message}"
        );
    };
    expect("adapter_model.safetensors", &args);
    write_adapter(&path, FIRST);
    expect("value_head.safetensors", &args);
    head(&[("score.weight", HIDDEN / 2)]);
    expect("reads states of 32 numbers; this model's have 64", &args);
    head(&[("score.weight", 2 * HIDDEN)]);
    expect("reads states of 128 numbers", &args);
    head(&[("other", HIDDEN)]);
    expect("score.weight", &args);
    head(&[("score.weight", HIDDEN)]);
    config(json!({"modules_to_save": ["score"]}));
    expect("changes score, which is not supported", &args);
    config(json!({"r": 3}));
    expect("this model needs", &args);
    config(json!({}));
    let again = format!("{flag},{flag}");
    expect("the same name", &["--value-adapter", &again]);
    expect("names no folder", &["--value-adapter", "name="]);
}

#[test]
fn the_server_loads_value_models_and_names_them_in_traces() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    for (name, seed) in [("one", FIRST), ("two", SECOND)] {
        write_value_model(&folder.path().join(name), seed);
    }
    let at = |name: &str| folder.path().join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    let command = command.arg("serve").arg(folder.path());
    let command = command.env(
        "PONDER_VALUE_ADAPTER",
        format!("{},2={}", at("one"), at("two")),
    );
    let process = Process::start_as(command, folder.path(), &[]);
    let url = format!("{}/chat/completions", process.base_url);
    let body = json!({"messages": [{"role": "user", "content": "2+3?"}], "max_tokens": 8,
        "search": {"strategy": "best_of_n", "n": 2, "return_tree": true}});
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer: Value = runtime.block_on(async {
        let request = reqwest::Client::new().post(url).body(body.to_string());
        let text = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    });
    let search = &answer["search"];
    assert!(search["scorer_tokens"].as_u64() > Some(0), "{answer}");
    // The first is the default.
    assert_eq!(search["tree"]["search"]["reward"], Value::Null);
    let hashes = search["tree"]["identity"]["value_adapters"].as_object();
    let names: Vec<&str> = hashes.unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["2", "one"]);
    assert_ne!(hashes.unwrap()["2"], hashes.unwrap()["one"]);
}
