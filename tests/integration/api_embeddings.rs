//! `/v1/embeddings`, rerankings and scores over the fake model and over tiny encoders.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ponder::api::{AppState, ServedEncoders, ServerConfig, listen, serve};
use ponder::model::Pooling;
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::encoders::tiny;
use crate::offline::{CONTEXT, Offline, chat};
use crate::support::{golden, install_tls};

const EMBEDDINGS: &str = "/v1/embeddings";

/// The fake model, and two encoders beside it.
fn with_encoders() -> Offline {
    let offline = Offline::start();
    offline.server.state.set_encoders(ServedEncoders {
        all: vec![tiny("embedder"), tiny("cross-encoder")],
        are_alone: false,
    });
    offline
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap().iter();
    data.map(|entry| {
        let values = entry["embedding"].as_array().unwrap().iter();
        values.map(|value| value.as_f64().unwrap() as f32).collect()
    })
    .collect()
}

fn refusal(offline: &Offline, path: &str, body: Value) -> (u16, String, String) {
    let (status, answer) = offline.post(path, body);
    let error = &answer["error"];
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (status, text("param"), text("message"))
}

#[test]
fn the_served_model_makes_vectors() {
    let offline = Offline::start();
    let raw = json!({"input": ["One", "Two", "One"], "normalize": false});
    let answer = offline.ask(EMBEDDINGS, raw);
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["model"], "m");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 9, "total_tokens": 9})
    );
    let made = vectors(&answer);
    assert_eq!((made.len(), made[0].len()), (3, 1));
    assert_eq!(made[0], made[2]);
    assert_ne!(made[0], made[1]);
    // Token ids, alone and in lists, are the same texts.
    let ids = offline.ask("/tokenize", json!({"prompt": "One"}))["tokens"].clone();
    for input in [ids.clone(), json!([ids])] {
        let own = offline.ask(EMBEDDINGS, json!({"input": input, "normalize": false}));
        assert_eq!(vectors(&own), [made[0].clone()]);
    }
    let unit = offline.ask(
        EMBEDDINGS,
        json!({"input": "One", "model": "m", "user": "u"}),
    );
    assert_eq!(vectors(&unit)[0][0].abs(), 1.0);
    offline.server.wait_until_free();
}

#[test]
fn states_are_averaged_in_the_engine() {
    let offline = Offline::start();
    offline.server.state.set_decoder_pooling(Pooling::Mean);
    // More positions than a step reads.
    let text = "7 * 6 = 42; ".repeat(30);
    let ids = offline.ask("/tokenize", json!({"prompt": text}))["tokens"].clone();
    let count = ids.as_array().unwrap().len();
    assert!(count > 300);
    let mean = offline.ask(EMBEDDINGS, json!({"input": text, "normalize": false}));
    let last = Offline::start();
    let prefixes: Vec<Value> = (1..=count)
        .map(|len| json!(ids.as_array().unwrap()[..len]))
        .collect();
    let states = last.ask(EMBEDDINGS, json!({"input": prefixes, "normalize": false}));
    let sum: f64 = vectors(&states)
        .iter()
        .map(|state| f64::from(state[0]))
        .sum();
    let expected = (sum / count as f64) as f32;
    let distance = (vectors(&mean)[0][0] - expected).abs();
    assert!(
        distance <= 1e-5 * expected.abs(),
        "{distance} of {expected}"
    );
}

#[test]
fn encoders_answer_beside_the_model() {
    let offline = with_encoders();
    let expected: Value = serde_json::from_str(&golden("encoders/embedder/golden.json")).unwrap();
    let cut = json!({"input": expected["texts"], "truncate_prompt_tokens": -1});
    let answer = offline.ask(EMBEDDINGS, cut);
    assert_eq!(answer["model"], "embedder");
    for (made, wanted) in vectors(&answer)
        .iter()
        .zip(expected["vectors"].as_array().unwrap())
    {
        for (made, wanted) in made.iter().zip(wanted.as_array().unwrap()) {
            assert!((f64::from(*made) - wanted.as_f64().unwrap()).abs() < 1e-5);
        }
    }
    let counts = expected["num_tokens"].as_array().unwrap().iter();
    let total: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], total);
    // The model itself is still there, by its name.
    let own = offline.ask(EMBEDDINGS, json!({"input": "One", "model": "m"}));
    assert_eq!(vectors(&own)[0].len(), 1);
    let models = offline.get("/v1/models")["data"].clone();
    let find = |id: &str| {
        models
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["id"] == id)
            .cloned()
    };
    assert_eq!(
        find("embedder").unwrap()["capabilities"],
        json!(["embedding"])
    );
    assert_eq!(find("cross-encoder").unwrap()["max_model_len"], 32);
    assert_eq!(offline.get("/v1/models/embedder")["id"], "embedder");
    let metrics = offline.get("/metrics");
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("ponder_encoder_texts_total{model_name=\"embedder\"} 10"),
        "{metrics}"
    );
    assert!(metrics.contains("ponder_encoding_requests_total"));
}

#[test]
fn vectors_are_written_as_asked() {
    let offline = with_encoders();
    let ask = |more: Value| {
        let mut body = json!({"input": "the capital", "model": "embedder"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        offline.ask(EMBEDDINGS, body)
    };
    let whole = vectors(&ask(json!({}))).remove(0);
    assert_eq!(whole.len(), 24);
    let written = ask(json!({"encoding_format": "base64"}));
    let bytes = STANDARD
        .decode(written["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let read = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|it| f32::from_le_bytes(*it));
    assert_eq!(read.collect::<Vec<f32>>(), whole);
    let short = vectors(&ask(json!({"dimensions": 5}))).remove(0);
    let length = whole[..5]
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt();
    for (short, whole) in short.iter().zip(&whole[..5]) {
        assert!((short - whole / length).abs() < 1e-6);
    }
    let plain = vectors(&ask(json!({"normalize": false}))).remove(0);
    let length = plain.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 1e-3);
    assert!((plain[3] / length - whole[3]).abs() < 1e-6);
    let bare = ask(json!({"add_special_tokens": false}));
    assert_eq!(bare["usage"]["prompt_tokens"], 2);
    let cut = ask(json!({"truncate_prompt_tokens": 3}));
    assert_eq!(cut["usage"]["prompt_tokens"], 3);
}

#[test]
fn wrong_embedding_requests_name_their_fields() {
    let offline = with_encoders();
    let long = "the capital of France ".repeat(400);
    let many = vec!["a"; 2049];
    for (body, param, told) in [
        (json!({}), "input", "input"),
        (json!({"input": []}), "input", "2048"),
        (json!({"input": many}), "input", "2049"),
        (json!({"input": 7}), "input", "expected a string"),
        (json!({"input": [[]]}), "input[0]", "no tokens"),
        (json!({"input": [4, 1000]}), "input", "vocabulary"),
        (json!({"input": [[4], [1000]]}), "input[1]", "vocabulary"),
        (
            json!({"input": ["a", long]}),
            "input[1]",
            "truncate_prompt_tokens",
        ),
        (
            json!({"input": "a", "dimensions": 0}),
            "dimensions",
            "1 to 24",
        ),
        (
            json!({"input": "a", "dimensions": 25}),
            "dimensions",
            "1 to 24",
        ),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "encoding_format",
            "int8",
        ),
        (
            json!({"input": "a", "truncate_prompt_tokens": 25}),
            "truncate_prompt_tokens",
            "24",
        ),
        (
            json!({"input": "a", "priority": 1}),
            "priority",
            "unknown field",
        ),
        (
            json!({"input": "a", "model": "cross-encoder"}),
            "model",
            "no vectors",
        ),
        (json!({"input": "", "model": "m"}), "input", "no tokens"),
        (
            json!({"input": vec![1; CONTEXT], "model": "m"}),
            "input",
            "tokens",
        ),
        (
            json!({"input": vec![1, 4000], "model": "m"}),
            "input",
            "vocabulary",
        ),
    ] {
        let (status, named, message) = refusal(&offline, EMBEDDINGS, body.clone());
        let body = body.to_string();
        let body = &body[..body.len().min(80)];
        assert_eq!(status, 400, "{body}: {message}");
        assert_eq!(named, param, "{body}: {message}");
        assert!(message.contains(told), "{body}: {message}");
    }
    let (status, param, message) =
        refusal(&offline, EMBEDDINGS, json!({"input": "a", "model": "x"}));
    assert_eq!((status, &*param), (404, "model"));
    assert!(
        message.contains("embedder") && message.contains("`m`"),
        "{message}"
    );
    let preset = json!({"input": "a", "model": "m:beam"});
    assert_eq!(refusal(&offline, EMBEDDINGS, preset).0, 404);
    // A deadline that has passed.
    let body = json!({"input": "a"}).to_string();
    let late = offline
        .server
        .post_with(EMBEDDINGS, body, &[("request-timeout-ms", "0")]);
    assert_eq!(late.0, 408, "{}", late.1);
}

#[test]
fn cross_encoders_rank() {
    let offline = with_encoders();
    let expected: Value =
        serde_json::from_str(&golden("encoders/cross-encoder/golden.json")).unwrap();
    let pair = |index: usize, side: usize| expected["pairs"][index][side].clone();
    let sigmoid = |index: usize| {
        let logit = expected["logits"][index].as_f64().unwrap();
        1.0 / (1.0 + (-logit).exp())
    };
    let body = json!({"query": pair(0, 0), "documents": [pair(1, 1), {"text": pair(0, 1)}]});
    for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
        let answer = offline.ask(path, body.clone());
        assert_eq!(answer["model"], "cross-encoder");
        let results = answer["results"].as_array().unwrap();
        assert_eq!((results.len(), &results[0]["index"]), (2, &json!(1)));
        for (result, golden) in results.iter().zip([0, 1]) {
            let score = result["relevance_score"].as_f64().unwrap();
            assert!((score - sigmoid(golden)).abs() < 1e-5);
        }
        let text = &results[0]["document"]["text"];
        assert_eq!(text.is_null(), path == "/v2/rerank");
        if path != "/v2/rerank" {
            assert_eq!(*text, pair(0, 1));
        }
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 20);
    }
    let mut best = body.clone();
    best["top_n"] = json!(1);
    best["return_documents"] = json!(false);
    let answer = offline.ask("/v1/rerank", best);
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    assert!(answer["results"][0]["document"].is_null());
    // vLLM's shape: one with each, and pairs; too long a pair is cut only when asked.
    let scores = json!({"text_1": pair(0, 0), "text_2": [pair(0, 1), pair(1, 1)],
        "truncate_prompt_tokens": -1});
    let scores = offline.ask("/score", scores);
    assert_eq!(scores["data"][1]["object"], "score");
    assert!((scores["data"][1]["score"].as_f64().unwrap() - sigmoid(1)).abs() < 1e-5);
    let pairs = json!({"queries": [pair(0, 0), pair(3, 0)], "documents": [pair(0, 1), pair(3, 1)]});
    let (status, param, _) = refusal(&offline, "/score", pairs.clone());
    assert_eq!((status, &*param), (400, "text_2"));
    let mut cut = pairs;
    cut["truncate_prompt_tokens"] = json!(-1);
    let scores = offline.ask("/score", cut);
    assert!((scores["data"][1]["score"].as_f64().unwrap() - sigmoid(3)).abs() < 1e-5);
}

#[test]
fn encoders_rank_by_cosines_and_models_by_their_word() {
    let offline = with_encoders();
    let documents = json!([
        "berlin has a population",
        "a museum",
        "how many people live in berlin"
    ]);
    let body = json!({"model": "embedder", "query": "how many people live in berlin",
        "documents": documents});
    let answer = offline.ask("/v1/rerank", body);
    assert_eq!(answer["results"][0]["index"], 2);
    assert!((answer["results"][0]["relevance_score"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    let instructed = json!({"model": "embedder", "query": "q", "documents": ["d"],
        "instruction": "rhymes"});
    assert_eq!(refusal(&offline, "/rerank", instructed).1, "instruction");
    // The model that writes says yes or no.
    let judged = |more: Value| {
        let mut body = json!({"model": "m", "query": "1 + 1?", "documents": ["2", "three"]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        offline.ask("/v1/rerank", body)
    };
    let answer = judged(json!({}));
    assert_eq!(answer["model"], "m");
    for result in answer["results"].as_array().unwrap() {
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&score));
    }
    let total = |answer: &Value| answer["usage"]["total_tokens"].as_u64().unwrap();
    let instructed = judged(json!({"instruction": "Does the document rhyme?"}));
    assert_ne!(total(&answer), total(&instructed));
    let long = judged(json!({"documents": ["word ".repeat(2000), "2"], "max_tokens_per_doc": 20}));
    assert!(total(&long) < CONTEXT as u64 * 2);
    offline.server.wait_until_free();
}

#[test]
fn wrong_rankings_name_their_fields() {
    let offline = with_encoders();
    for (body, param) in [
        (json!({"documents": ["a"]}), "query"),
        (json!({"query": "", "documents": ["a"]}), "query"),
        (json!({"query": "q", "documents": []}), "documents"),
        (
            json!({"query": "q", "documents": vec!["a"; 1025]}),
            "documents",
        ),
        (
            json!({"query": "q", "documents": [{"title": "a"}]}),
            "documents[0]",
        ),
        (
            json!({"query": "q", "documents": ["a"], "top_n": 0}),
            "top_n",
        ),
        (
            json!({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}),
            "max_tokens_per_doc",
        ),
        (
            json!({"query": "q", "documents": ["a"], "rank_fields": ["a"]}),
            "rank_fields",
        ),
    ] {
        let (status, named, message) = refusal(&offline, "/v1/rerank", body);
        assert_eq!((status, &*named), (400, param), "{message}");
    }
    for (body, param) in [
        (json!({"text_1": [], "text_2": "a"}), "text_1"),
        (json!({"text_1": ["a", "b"], "text_2": "a"}), "text_1"),
        (json!({"text_1": "a", "text_2": []}), "text_2"),
        (json!({"text_1": "a", "text_2": [1]}), "text_2"),
        (
            json!({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 99}),
            "truncate_prompt_tokens",
        ),
    ] {
        let (status, named, message) = refusal(&offline, "/score", body);
        assert_eq!((status, &*named), (400, param), "{message}");
    }
}

/// An encoder is all that is served.
#[test]
fn an_encoder_alone_writes_nothing() {
    install_tls();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(listen("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = ServerConfig {
        served_model_names: vec!["vectors".to_owned(), "alias".to_owned()],
        ..ServerConfig::default()
    };
    let state = AppState::new(config);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = runtime.spawn(serve(listener, state.clone(), async move {
        let _ = stopped.await;
    }));
    let send = |path: &str, body: Option<Value>| {
        let client = reqwest::Client::new();
        let request = match body {
            Some(body) => client.post(format!("{url}{path}")).body(body.to_string()),
            None => client.get(format!("{url}{path}")),
        };
        runtime.block_on(async {
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            (
                status,
                serde_json::from_str(&text).unwrap_or(Value::String(text)),
            )
        })
    };
    assert_eq!(send(EMBEDDINGS, Some(json!({"input": "a"}))).0, 503);
    state.set_encoders(ServedEncoders {
        all: vec![tiny("embedder")],
        are_alone: true,
    });
    assert_eq!(send("/ready", None).0, 200);
    assert_eq!(send("/health", None).0, 200);
    for model in [
        json!(null),
        json!("vectors"),
        json!("alias"),
        json!("embedder"),
    ] {
        let (status, answer) = send(EMBEDDINGS, Some(json!({"input": "a", "model": model})));
        assert_eq!(status, 200, "{answer}");
    }
    let (status, _) = send(EMBEDDINGS, Some(json!({"input": "a", "model": "m"})));
    assert_eq!(status, 404);
    let (status, answer) = send(
        "/rerank",
        Some(json!({"query": "a", "documents": ["a", "b"]})),
    );
    assert_eq!((status, &answer["results"][0]["index"]), (200, &json!(0)));
    for path in [CHAT, "/v1/completions", "/tokenize"] {
        let mut body = chat(json!({"model": "vectors"}));
        if path != CHAT {
            body = json!({"model": "vectors", "prompt": "a"});
        }
        let (status, answer) = send(path, Some(body));
        assert_eq!(status, 400, "{path}: {answer}");
        assert_eq!(answer["error"]["code"], "unsupported_capability");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("encoder") && message.contains(EMBEDDINGS),
            "{message}"
        );
    }
    let (_, models) = send("/v1/models", None);
    let names: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["id"])
        .collect();
    assert_eq!(names, ["vectors", "alias"]);
    assert_eq!(send("/metrics", None).0, 200);
    drop(stop);
    runtime.block_on(task).unwrap().unwrap();
}
