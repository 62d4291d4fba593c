//! Every route of the OpenAPI document over the fake model: a route without a case here fails.

use std::collections::BTreeSet;

use ponder::api::document_json;
use serde_json::{Value, json};

use crate::api::{CHAT, sse};
use crate::offline::{Offline, adapter_folder, chat, completion};

/// A route and what it must do.
type Case = (&'static str, &'static str, fn(&Offline));

const CASES: [Case; 37] = [
    ("post", "/v1/chat/completions", chats),
    ("post", "/v1/completions", completions),
    ("post", "/v1/responses", responds),
    ("post", "/v1/responses/input_tokens", counts_input_tokens),
    ("get", "/v1/responses/{id}", retrieves_responses),
    ("delete", "/v1/responses/{id}", deletes_responses),
    ("post", "/v1/responses/{id}/cancel", cancels_responses),
    ("get", "/v1/responses/{id}/input_items", lists_input_items),
    ("post", "/v1/embeddings", embeds),
    ("post", "/v1/rerank", reranks),
    ("post", "/rerank", reranks_unversioned),
    ("post", "/v2/rerank", reranks_as_cohere),
    ("post", "/score", scores_texts),
    ("post", "/v1/score", scores),
    ("post", "/pooling", pools),
    ("post", "/v1/branches", opens_branches),
    ("post", "/v1/branches/{id}/generate", generates_branches),
    ("post", "/v1/branches/{id}/score", scores_branches),
    ("post", "/v1/branches/{id}/fork", forks_branches),
    ("post", "/v1/branches/{id}/commit", commits_branches),
    ("delete", "/v1/branches/{id}", deletes_branches),
    ("get", "/v1/traces", lists_traces),
    ("get", "/v1/traces/stream", streams_traces),
    ("get", "/v1/traces/{id}", retrieves_traces),
    ("delete", "/v1/traces/{id}", deletes_traces),
    ("post", "/v1/traces/{id}/outcome", takes_outcomes),
    ("post", "/v1/load_lora_adapter", loads_adapters),
    ("post", "/v1/unload_lora_adapter", unloads_adapters),
    ("get", "/v1/models", lists_models),
    ("get", "/v1/models/{id}", retrieves_models),
    ("get", "/v1/models/{id}/{name}", retrieves_models_of),
    ("post", "/tokenize", tokenizes),
    ("post", "/detokenize", detokenizes),
    ("get", "/health", is_healthy),
    ("get", "/ready", is_ready),
    ("get", "/version", tells_its_version),
    ("get", "/metrics", tells_metrics),
];

#[test]
fn every_route_has_a_case_and_answers() {
    let document: Value = serde_json::from_str(&document_json()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| (method.as_str(), path.as_str()))
        })
        .collect();
    let cases: BTreeSet<(&str, &str)> = CASES.map(|(method, path, _)| (method, path)).into();
    assert_eq!(documented, cases, "every route needs a case here");
    let offline = Offline::start();
    for (_, _, case) in CASES {
        case(&offline);
    }
    offline.server.wait_until_free();
    // The document itself, and the page that shows it.
    assert_eq!(offline.get("/openapi.json"), document);
    let (status, page) = offline.server.get("/docs/");
    assert_eq!(status, 200);
    assert_eq!(offline.server.get("/docs").1, page);
    for (method, path, _) in CASES {
        let heading = format!("<b>{method}</b> <code>{path}</code>");
        assert!(page.contains(&heading), "{heading}");
    }
    assert!(!page.contains("<script") && !page.contains("http:"));
    assert_eq!(offline.server.get("/docs/style.css").0, 200);
    assert_eq!(offline.server.get("/v1/nothing").0, 404);
    assert_eq!(offline.server.get(CHAT).0, 405);
}

fn chats(offline: &Offline) {
    let whole = offline.ask(CHAT, chat(json!({"n": 2})));
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    let streamed = chat(json!({"n": 2, "stream": true})).to_string();
    let chunks = sse(&offline.server.post_with(CHAT, streamed, &[]).1);
    for choice in choices {
        let own = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let own = own.filter(|it| it["index"] == choice["index"]);
        let text: String = own
            .filter_map(|it| it["delta"]["content"].as_str())
            .collect();
        assert_eq!(choice["message"]["content"], text);
    }
}

fn completions(offline: &Offline) {
    let body = json!({"prompt": ["One", "Two"], "echo": true, "logprobs": 1});
    let whole = offline.ask("/v1/completions", completion(body));
    let choices = whole["choices"].as_array().unwrap();
    for (choice, prompt) in choices.iter().zip(["One", "Two"]) {
        assert!(choice["text"].as_str().unwrap().starts_with(prompt));
        assert_eq!(choice["logprobs"]["tokens"][0], prompt[..1]);
    }
    assert_eq!(whole["usage"]["prompt_tokens"], 6);
}

/// A response to a text.
fn response(offline: &Offline, more: Value) -> Value {
    let mut body = json!({"model": "m", "seed": 7, "max_output_tokens": 12, "input": "1 + 1?"});
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    offline.ask("/v1/responses", body)
}

/// Where a response is.
fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

fn responds(offline: &Offline) {
    let response = response(offline, json!({}));
    assert_eq!(response["object"], "response");
    assert_eq!(response["output"][0]["content"][0]["type"], "output_text");
}

fn counts_input_tokens(offline: &Offline) {
    let response = response(offline, json!({"instructions": "Be brief."}));
    let body = json!({"model": "m", "input": "1 + 1?", "instructions": "Be brief."});
    let counted = offline.ask("/v1/responses/input_tokens", body);
    assert_eq!(counted["object"], "response.input_tokens");
    assert_eq!(counted["input_tokens"], response["usage"]["input_tokens"]);
}

fn retrieves_responses(offline: &Offline) {
    let response = response(offline, json!({}));
    assert_eq!(offline.get(&path(&response)), response);
}

fn deletes_responses(offline: &Offline) {
    let path = path(&response(offline, json!({})));
    assert_eq!(offline.server.delete(&path), 200);
    assert_eq!(offline.server.get(&path).0, 404);
}

fn cancels_responses(offline: &Offline) {
    let plain = path(&response(offline, json!({})));
    assert_eq!(offline.post(&format!("{plain}/cancel"), json!({})).0, 400);
    let path = path(&response(offline, json!({"background": true})));
    let ended = offline.ask(&format!("{path}/cancel"), json!({}));
    let known = ["cancelled", "completed", "incomplete"].map(|it| json!(it));
    assert!(known.contains(&ended["status"]), "{ended}");
}

fn lists_input_items(offline: &Offline) {
    let path = path(&response(offline, json!({})));
    let list = offline.get(&format!("{path}/input_items"));
    assert_eq!(list["data"][0]["content"][0]["text"], "1 + 1?");
}

fn embeds(offline: &Offline) {
    let answer = offline.ask("/v1/embeddings", json!({"input": ["One", "Two"]}));
    assert_eq!(answer["data"][1]["index"], 1);
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 1);
}

fn rerank(offline: &Offline, path: &str) -> Value {
    let answer = offline.ask(path, json!({"query": "1 + 1?", "documents": ["2", "3"]}));
    assert_eq!(answer["results"].as_array().unwrap().len(), 2);
    answer["results"][0]["document"].clone()
}

fn reranks(offline: &Offline) {
    assert!(rerank(offline, "/v1/rerank")["text"].is_string());
}

fn reranks_unversioned(offline: &Offline) {
    assert!(rerank(offline, "/rerank")["text"].is_string());
}

fn reranks_as_cohere(offline: &Offline) {
    assert!(rerank(offline, "/v2/rerank").is_null());
}

fn scores_texts(offline: &Offline) {
    let scores = offline.ask("/score", json!({"text_1": "One", "text_2": ["1", "2"]}));
    assert_eq!(scores["data"].as_array().unwrap().len(), 2);
}

fn scores(offline: &Offline) {
    for reward in ["likelihood", "judge", "prm"] {
        let body = json!({"candidates": ["2", "3"], "reward": {"kind": reward},
            "messages": [{"role": "user", "content": "1 + 1?"}]});
        let scores = offline.ask("/v1/score", body);
        assert_eq!(scores["data"].as_array().unwrap().len(), 2, "{scores}");
    }
}

fn pools(offline: &Offline) {
    let messages = json!([{"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "One and one.\nThat is 2."}]);
    let scores = offline.ask("/pooling", json!({"messages": messages}));
    assert_eq!(scores["data"][0]["data"].as_array().unwrap().len(), 2);
}

/// A session's id.
fn open(offline: &Offline) -> String {
    let session = offline.ask("/v1/branches", chat(json!({})));
    session["id"].as_str().unwrap().to_owned()
}

fn call(offline: &Offline, session: &str, what: &str, body: Value) -> Value {
    offline.ask(&format!("/v1/branches/{session}/{what}"), body)
}

fn opens_branches(offline: &Offline) {
    let session = offline.ask("/v1/branches", completion(json!({"lease_seconds": 5})));
    assert_eq!(session["lease_seconds"], 5);
    assert_eq!(session["root"], 0);
}

fn generates_branches(offline: &Offline) {
    let session = open(offline);
    let body = json!({"nodes": [0], "n": 3, "step": {"max_tokens": 4}});
    let first = call(offline, &session, "generate", body);
    let nodes: Vec<&Value> = first["data"].as_array().unwrap().iter().collect();
    assert_eq!(nodes.len(), 3);
    assert!(nodes.iter().all(|node| node["parent"] == 0));
}

fn scores_branches(offline: &Offline) {
    let session = open(offline);
    let body = json!({"nodes": [0], "n": 2, "step": {"max_tokens": 4}});
    call(offline, &session, "generate", body);
    let body = json!({"nodes": [1, 2], "reward": {"kind": "likelihood"}});
    let scores = call(offline, &session, "score", body);
    assert_eq!(scores["data"][1]["node"], 2);
}

fn forks_branches(offline: &Offline) {
    let session = open(offline);
    let body = json!({"node": 0, "text": "Two"});
    let node = call(offline, &session, "fork", body);
    assert_eq!((&node["text"], &node["tokens"]), (&json!("Two"), &json!(3)));
}

fn commits_branches(offline: &Offline) {
    let session = open(offline);
    let body = json!({"node": 0, "text": "Two"});
    let node = call(offline, &session, "fork", body)["node"].clone();
    let answer = call(offline, &session, "commit", json!({"node": node}));
    assert_eq!(answer["choices"][0]["message"]["content"], "Two");
    assert_eq!(answer["object"], "chat.completion");
    let path = format!("/v1/branches/{session}/commit");
    assert_eq!(offline.post(&path, json!({"node": 0})).0, 404);
}

fn deletes_branches(offline: &Offline) {
    let path = format!("/v1/branches/{}", open(offline));
    assert_eq!(offline.server.delete(&path), 204);
    assert_eq!(offline.server.delete(&path), 404);
}

/// The id of a new trace.
fn traced(offline: &Offline) -> String {
    let answer = offline.ask(CHAT, chat(json!({"store": true})));
    answer["trace_id"].as_str().unwrap().to_owned()
}

fn lists_traces(offline: &Offline) {
    let id = traced(offline);
    let list = offline.get("/v1/traces?limit=1");
    assert_eq!(list["data"][0]["id"], id);
}

fn streams_traces(offline: &Offline) {
    let id = traced(offline);
    let (status, text) = offline.server.get("/v1/traces/stream");
    assert_eq!(status, 200);
    assert!(text.lines().any(|line| line.contains(&id)), "{text}");
}

fn retrieves_traces(offline: &Offline) {
    let search = json!({"strategy": "best_of_n", "n": 2});
    let answer = offline.ask(CHAT, chat(json!({"search": search})));
    let id = answer["search"]["trace_id"].as_str().unwrap();
    let trace = offline.get(&format!("/v1/traces/{id}"));
    assert_eq!(trace["strategy"], "best_of_n");
}

fn deletes_traces(offline: &Offline) {
    let path = format!("/v1/traces/{}", traced(offline));
    assert_eq!(offline.server.delete(&path), 204);
    assert_eq!(offline.server.get(&path).0, 404);
}

fn takes_outcomes(offline: &Offline) {
    let path = format!("/v1/traces/{}/outcome", traced(offline));
    let told = offline.ask(&path, json!({"outcome": 1.0}));
    assert_eq!(
        (&told["revision"], &told["outcome"]),
        (&json!(2), &json!(1.0))
    );
}

fn loads_adapters(offline: &Offline) {
    offline.backend.permit_load();
    let folder = adapter_folder(offline.folder.path());
    let body = json!({"lora_name": "mine", "lora_path": folder});
    let told = offline.ask("/v1/load_lora_adapter", body);
    assert_eq!(told, "Success: LoRA adapter 'mine' added successfully.");
    assert_eq!(offline.get("/v1/models/mine")["parent"], "m");
}

fn unloads_adapters(offline: &Offline) {
    let body = json!({"lora_name": "mine"});
    let told = offline.ask("/v1/unload_lora_adapter", body.clone());
    assert_eq!(told, "Success: LoRA adapter 'mine' removed successfully.");
    assert_eq!(offline.post("/v1/unload_lora_adapter", body).0, 404);
}

fn lists_models(offline: &Offline) {
    let models = offline.get("/v1/models");
    assert_eq!(models["data"][0]["id"], "m");
}

fn retrieves_models(offline: &Offline) {
    assert_eq!(offline.get("/v1/models/m")["max_model_len"], 512);
    assert_eq!(offline.server.get("/v1/models/other").0, 404);
}

fn retrieves_models_of(offline: &Offline) {
    let (status, error) = offline.server.get("/v1/models/org/name");
    assert_eq!(status, 404);
    assert!(error.contains("`org/name`"), "{error}");
}

fn tokenizes(offline: &Offline) {
    let told = offline.ask("/tokenize", json!({"prompt": "Hi é"}));
    assert_eq!(told["tokens"], json!([72, 105, 32, 195, 169]));
}

fn detokenizes(offline: &Offline) {
    let told = offline.ask("/detokenize", json!({"tokens": [72, 105, 32, 195, 169]}));
    assert_eq!(told["prompt"], "Hi é");
    assert_eq!(offline.post("/detokenize", json!({"tokens": [260]})).0, 400);
}

fn is_healthy(offline: &Offline) {
    assert_eq!(offline.get("/health")["status"], "ok");
}

fn is_ready(offline: &Offline) {
    assert_eq!(offline.get("/ready")["status"], "ready");
}

fn tells_its_version(offline: &Offline) {
    assert_eq!(
        offline.get("/version")["version"],
        env!("CARGO_PKG_VERSION")
    );
}

fn tells_metrics(offline: &Offline) {
    let text = offline.get("/metrics");
    let text = text.as_str().unwrap();
    for name in [
        "vllm:generation_tokens_total",
        "ponder_time_to_first_token_seconds_count",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
}
