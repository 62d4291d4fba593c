//! Process reward models: every format against prompts written by hand, incremental scoring, the
//! API.

use std::path::Path;
use std::sync::Arc;

use ponder::api::ServerConfig;
use ponder::engine::{
    Engine, EngineHandle, EngineOptions, EngineStats, GenerateRequest, SamplingParams, StreamEvent,
};
use ponder::reward::prm::{Prm, PrmFormat, PrmParts, Scored};
use ponder::reward::{Head, RewardContext, RewardResources};
use ponder::text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

use crate::server::{Server, start_with};
use crate::support::{default_files, load_model};

const QUESTION: &str = "How much is 12 times 3 plus 4?";
const STEPS: [&str; 3] = ["12 times 3 is 36.", "36 plus 4 is 40.", "The answer is 40."];

fn engine() -> Engine {
    let model = load_model(&default_files(), 1024);
    let options = EngineOptions {
        kv_cache_bytes: 64 << 20,
        max_model_len: Some(1024),
        ..EngineOptions::default()
    };
    let config = options.resolve(model.info()).unwrap();
    Arc::new(EngineHandle::start(model, config).unwrap())
}

/// A linear head of two classes whose numbers are made up, in TRL's layout.
fn write_head(path: &Path, hidden_size: usize) {
    let weight: Vec<u8> = (0..2 * hidden_size)
        .flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 2000.0).to_le_bytes())
        .collect();
    let bias: Vec<u8> = [0.1_f32, -0.2]
        .iter()
        .flat_map(|b| b.to_le_bytes())
        .collect();
    let tensor = |shape: Vec<usize>, data| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap()
    };
    let tensors = [
        ("score.weight", tensor(vec![2, hidden_size], &weight)),
        ("score.bias", tensor(vec![2], &bias)),
    ];
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

fn prm(engine: &Engine, format: PrmFormat) -> Result<Prm, String> {
    let files = default_files();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    let chat_template = ChatTemplate::from_files(&files, &tokenizer, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let hidden_size = engine.model_info().hidden_size;
    write_head(&path, hidden_size);
    Prm::new(PrmParts {
        engine: engine.clone(),
        tokenizer,
        chat_template,
        format,
        head: format
            .has_head()
            .then(|| Head::load(&path, hidden_size).unwrap()),
        delimiter: None,
    })
}

/// Counters once nothing runs: events come before the step that sent them is counted.
fn settled(engine: &Engine) -> EngineStats {
    loop {
        let stats = engine.stats();
        if stats.num_requests_waiting + stats.num_requests_running == 0 {
            return stats;
        }
        std::thread::yield_now();
    }
}

fn context() -> RewardContext {
    RewardContext {
        question: QUESTION.to_owned(),
        ..RewardContext::default()
    }
}

fn score(prm: &Prm, answers: &[(&str, bool)]) -> Vec<Scored> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(prm.score_answers(answers, &context(), None))
        .unwrap()
}

/// The next token's log-probabilities and the state behind them, by generating one token.
fn next(engine: &Engine, token_ids: Vec<u32>) -> (Vec<(u32, f32)>, Vec<f32>) {
    let params = SamplingParams {
        max_tokens: 1,
        temperature: 0.0,
        logprobs: Some(engine.model_info().vocab_size),
        hidden_state: true,
        ..SamplingParams::default()
    };
    let mut stream = engine
        .submit(GenerateRequest::new(token_ids, params))
        .unwrap();
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Token {
            logprobs,
            hidden_state,
            ..
        } = event
        {
            return (logprobs.unwrap().top, hidden_state.unwrap());
        }
    }
    panic!("no token came");
}

/// P(`+`) against P(`-`).
fn plus_share(engine: &Engine, tokenizer: &Tokenizer, token_ids: Vec<u32>) -> f64 {
    let (top, _) = next(engine, token_ids);
    let of = |text: &str| {
        let id = tokenizer.encode(text, false, false).unwrap()[0];
        let found = top.iter().find(|(token_id, _)| *token_id == id).unwrap();
        f64::from(found.1).exp()
    };
    of("+") / (of("+") + of("-"))
}

fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-6, "{actual} {expected}");
    }
}

#[test]
fn token_formats_read_plus_against_minus_after_each_step() {
    let engine = engine();
    let tokenizer = Tokenizer::from_files(&default_files()).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false, true).unwrap();

    let shepherd = prm(&engine, PrmFormat::MathShepherd).unwrap();
    let actual = score(&shepherd, &[(&STEPS.join("\n"), true)]);
    let mut text = format!("{QUESTION} ");
    let expected = STEPS.map(|step| {
        text.push_str(&format!("{step} ки"));
        let share = plus_share(&engine, &tokenizer, encode(&text));
        text.push('\n');
        share
    });
    assert_close(&actual[0].steps, &expected);
    let tagged = vec![text];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let raw = runtime
        .block_on(shepherd.score_tagged(tagged, &context(), None))
        .unwrap();
    assert_eq!(raw[0].steps, actual[0].steps, "tags of the client's own");

    let rlhflow = prm(&engine, PrmFormat::Rlhflow).unwrap();
    let actual = score(&rlhflow, &[(&STEPS.join("\n\n"), true)]);
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let mut text = system.to_owned();
    let mut expected = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        let content = match index {
            0 => format!("{QUESTION} {step}"),
            _ => (*step).to_owned(),
        };
        text.push_str(&format!(
            "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        ));
        expected.push(plus_share(&engine, &tokenizer, encode(&text)));
        text.push_str("+<|im_end|>\n");
    }
    assert_close(&actual[0].steps, &expected);
}

#[test]
fn head_formats_read_the_state_at_each_steps_end() {
    let engine = engine();
    let tokenizer = Tokenizer::from_files(&default_files()).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false, false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let hidden_size = engine.model_info().hidden_size;
    write_head(&path, hidden_size);
    let head = Head::load(&path, hidden_size).unwrap();
    for (format, start) in [
        (PrmFormat::Skywork, format!("{QUESTION}\n")),
        (PrmFormat::Trl, QUESTION.to_owned()),
    ] {
        let actual = score(&prm(&engine, format).unwrap(), &[(&STEPS.join("\n"), true)]);
        let mut token_ids = encode(&start);
        let expected = STEPS.map(|step| {
            token_ids.extend(encode(step));
            token_ids.extend(encode("\n"));
            head.value(&next(&engine, token_ids.clone()).1)
        });
        assert_eq!(actual[0].num_tokens, token_ids.len(), "{format:?}");
        assert_close(&actual[0].steps, &expected);
        assert_close(&actual[0].steps, &expected);
    }
    // A plain chat is read where a search taps: behind the token that was sampled last.
    let plain = prm(&engine, PrmFormat::ValueHead).unwrap();
    let text = STEPS.join("\n\n");
    let actual = score(&plain, &[(&text, true), (&text[..text.len() - 1], false)]);
    let files = default_files();
    let template = ChatTemplate::from_files(&files, &tokenizer, None)
        .unwrap()
        .unwrap();
    let messages = [json!({"role": "user", "content": QUESTION})];
    let chat = template
        .render(&messages, None, true, &serde_json::Map::new())
        .unwrap();
    let prompt = tokenizer.encode(&chat, false, true).unwrap();
    let steps = text.split_inclusive("\n\n").flat_map(encode);
    let mut token_ids: Vec<u32> = prompt.into_iter().chain(steps).collect();
    assert_eq!(actual[0].num_tokens, token_ids.len());
    let whole = head.value(&next(&engine, token_ids.clone()).1);
    token_ids.truncate(token_ids.len() - 2);
    let part = head.value(&next(&engine, token_ids).1);
    assert_close(&[actual[0].steps[2], actual[1].steps[2]], &[whole, part]);
    let refused = prm(&engine, PrmFormat::Qwen).map(|_| ());
    assert!(refused.unwrap_err().contains("<extra_0>"));
}

#[test]
fn a_new_step_costs_its_own_tokens() {
    let engine = engine();
    for format in [PrmFormat::Rlhflow, PrmFormat::Trl, PrmFormat::ValueHead] {
        let separator = format.default_delimiter();
        let grown = prm(&engine, format).unwrap();
        let mut last = Vec::new();
        let mut num_tokens = 0;
        for len in 1..=STEPS.len() {
            let text = STEPS[..len].join(separator) + separator;
            let before = settled(&engine);
            let scored = score(&grown, &[(&text, false)]).remove(0);
            let after = settled(&engine);
            let queries = after.prefix_cache_queries - before.prefix_cache_queries;
            let hits = after.prefix_cache_hits - before.prefix_cache_hits;
            let num_new = (scored.num_tokens - num_tokens) as u64;
            assert!(
                queries - hits <= num_new + 1,
                "{format:?}: {queries} - {hits}"
            );
            assert_eq!(scored.steps[..len - 1], last, "earlier scores stand");
            (last, num_tokens) = (scored.steps, scored.num_tokens);
        }
        let before = settled(&engine).prefix_cache_queries;
        let text = STEPS.join(separator) + separator;
        let siblings = [(text.as_str(), false), (text.as_str(), false)];
        assert_eq!(score(&grown, &siblings)[1].steps, last);
        assert_eq!(
            settled(&engine).prefix_cache_queries,
            before,
            "all is known"
        );
        let fresh = prm(&self::engine(), format).unwrap();
        assert_eq!(score(&fresh, &siblings)[0].steps, last, "as in one pass");
    }
}

fn server() -> Server {
    let prm = prm(&engine(), PrmFormat::ValueHead).unwrap();
    let rewards = RewardResources {
        prm: Some(Arc::new(prm)),
        ..RewardResources::default()
    };
    let options = EngineOptions {
        kv_cache_bytes: 64 << 20,
        max_model_len: Some(1024),
        ..EngineOptions::default()
    };
    start_with(ServerConfig::default(), &options, rewards)
}

#[test]
fn a_served_prm_steers_searches_and_answers_by_itself() {
    let server = server();
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let chat = |search: Value| {
        let body = json!({"messages": messages, "max_tokens": 48, "seed": 3, "search": search});
        let (status, answer) = server.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let step = json!({"max_tokens": 12});
    let by_default = chat(json!({"strategy": "beam", "n": 4, "branch": 2, "step": step}));
    assert!(by_default["search"]["scorer_calls"].as_u64().unwrap() >= 4);
    let named = chat(
        json!({"strategy": "beam", "n": 4, "branch": 2, "step": step, "reward": {"kind": "prm"}}),
    );
    assert_eq!(named["choices"], by_default["choices"]);
    let ranked = chat(json!({"strategy": "best_of_n", "n": 4,
        "reward": {"kind": "prm", "aggregate": "min"}}));
    assert!(ranked["search"]["value"].as_f64().unwrap() > 0.0);

    let answer = STEPS.join("\n\n");
    let mut conversation = messages.as_array().unwrap().clone();
    conversation.push(json!({"role": "assistant", "content": answer}));
    let (status, pooled) = server.post("/pooling", json!({"model": "m", "messages": conversation}));
    assert_eq!(status, 200, "{pooled}");
    let steps = pooled["data"][0]["data"].as_array().unwrap();
    assert_eq!(steps.len(), STEPS.len());
    let right = |step: &Value| step[1].as_f64().unwrap();
    let scored = |aggregate: &str| {
        let body = json!({"messages": messages, "candidates": [answer],
            "reward": {"kind": "prm", "aggregate": aggregate}});
        let (status, scored) = server.post("/v1/score", body);
        assert_eq!(status, 200, "{scored}");
        scored["data"][0]["score"].as_f64().unwrap()
    };
    let all: Vec<f64> = steps.iter().map(right).collect();
    assert_close(
        &["last", "min", "prod", "mean"].map(scored),
        &[
            all[2],
            all.iter().copied().fold(1.0, f64::min),
            all.iter().product(),
            all.iter().sum::<f64>() / 3.0,
        ],
    );
    for (body, param) in [
        (json!({"messages": messages}), "messages"),
        (json!({"input": "no tag"}), "input"),
        (json!({"input": []}), "input"),
        (json!({}), "input"),
        (
            json!({"input": "x", "encoding_format": "base64"}),
            "encoding_format",
        ),
    ] {
        let (status, answer) = server.post("/pooling", body);
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{answer}"
        );
    }
}
