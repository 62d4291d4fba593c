//! Adapters belong to the key that loaded them, and come from folders that the operator named.

use std::path::Path;

use ponder::api::ServerConfig;
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::offline::{Offline, adapter_folder, chat};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

fn start() -> Offline {
    let offline = Offline::with(ServerConfig {
        api_keys: vec!["first".to_owned(), "second".to_owned()],
        ..ServerConfig::default()
    });
    adapter_folder(offline.folder.path());
    offline
}

fn post(offline: &Offline, key: &str, path: &str, body: &Value) -> (u16, Value) {
    let headers = [("x-api-key", key)];
    let (status, text) = offline.server.post_with(path, body.to_string(), &headers);
    (status, serde_json::from_str(&text).unwrap_or(json!(text)))
}

fn get(offline: &Offline, key: &str, path: &str) -> (u16, Value) {
    let server = &offline.server;
    server.runtime.block_on(async {
        let request = reqwest::Client::new().get(format!("{}{path}", server.url));
        let response = request.header("x-api-key", key).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    })
}

fn load(offline: &Offline, key: &str, name: &str) -> (u16, Value) {
    offline.backend.permit_load();
    let body = json!({"lora_name": name, "lora_path": "adapter"});
    post(offline, key, LOAD, &body)
}

/// The adapters among the models that a key sees.
fn adapters(offline: &Offline, key: &str) -> Vec<String> {
    let (status, models) = get(offline, key, "/v1/models");
    assert_eq!(status, 200);
    let models = models["data"].as_array().unwrap().iter();
    let adapters = models.filter(|model| model["parent"] == "m");
    adapters
        .map(|model| model["id"].as_str().unwrap().to_owned())
        .collect()
}

/// What is another key's is answered as what is nowhere.
fn is_unknown(offline: &Offline, key: &str, name: &str) {
    let without_name = |answer: &(u16, Value), name: &str| {
        let text = answer.1.to_string().replace(name, "NAME");
        (answer.0, text)
    };
    for suffix in ["", ":best_of_n"] {
        let ask = |name: &str| {
            let body = chat(json!({"model": format!("{name}{suffix}")}));
            post(offline, key, CHAT, &body)
        };
        let (there, nowhere) = (ask(name), ask("nowhere"));
        assert_eq!(there.0, 404);
        assert_eq!(there.1["error"]["code"], "model_not_found");
        assert_eq!(
            without_name(&there, name),
            without_name(&nowhere, "nowhere")
        );
    }
    let retrieve = |name: &str| get(offline, key, &format!("/v1/models/{name}"));
    let unload = |name: &str| post(offline, key, UNLOAD, &json!({"lora_name": name}));
    for (there, nowhere) in [
        (retrieve(name), retrieve("nowhere")),
        (unload(name), unload("nowhere")),
    ] {
        assert_eq!(there.0, 404);
        assert_eq!(
            without_name(&there, name),
            without_name(&nowhere, "nowhere")
        );
    }
}

#[test]
fn an_adapter_is_its_keys() {
    let offline = start();
    assert_eq!(load(&offline, "first", "mine").0, 200);
    assert_eq!(adapters(&offline, "first"), ["mine"]);
    assert!(adapters(&offline, "second").is_empty());
    is_unknown(&offline, "second", "mine");
    assert_eq!(adapters(&offline, "first"), ["mine"], "it was not unloaded");
    // The fake engine has no adapters: that it is asked for one says that the name was found.
    let (_, error) = post(&offline, "first", CHAT, &chat(json!({"model": "mine"})));
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("unloaded"), "{message}");
    // The same name is another adapter for another key.
    assert_eq!(load(&offline, "second", "mine").0, 200);
    assert_eq!(load(&offline, "second", "mine").0, 400);
    assert_eq!(offline.backend.num_adapters(), 2);
    let body = json!({"lora_name": "mine"});
    assert_eq!(post(&offline, "first", UNLOAD, &body).0, 200);
    assert!(adapters(&offline, "first").is_empty());
    assert_eq!(adapters(&offline, "second"), ["mine"]);
    is_unknown(&offline, "first", "mine");
    assert_eq!(post(&offline, "second", UNLOAD, &body).0, 200);
    assert_eq!(offline.backend.num_adapters(), 0);
}

#[test]
fn the_operators_adapters_are_everybodys_and_nobody_unloads_them() {
    let offline = start();
    let folder = offline.folder.path().join("adapter");
    offline.backend.permit_load();
    let loading = offline.server.state.load_adapter("ours", &folder);
    offline.server.runtime.block_on(loading).unwrap();
    for key in ["first", "second"] {
        assert_eq!(adapters(&offline, key), ["ours"]);
        let (status, model) = get(&offline, key, "/v1/models/ours");
        assert_eq!((status, &model["root"]), (200, &json!("adapter")));
        assert_eq!(load(&offline, key, "ours").0, 400);
        let (status, error) = post(&offline, key, UNLOAD, &json!({"lora_name": "ours"}));
        assert_eq!(
            (status, &error["error"]["code"]),
            (403, &json!("adapter_of_operator"))
        );
        assert_eq!(adapters(&offline, key), ["ours"]);
    }
}

#[test]
fn a_key_has_so_many_adapters_and_names_are_bounded() {
    let offline = start();
    for index in 0..8 {
        assert_eq!(load(&offline, "first", &format!("a{index}")).0, 200);
    }
    let (status, error) = load(&offline, "first", "a8");
    assert_eq!(
        (status, &error["error"]["code"]),
        (429, &json!("overloaded"))
    );
    assert_eq!(load(&offline, "second", "a8").0, 200);
    let long = "x".repeat(1 << 20);
    for name in ["", "a b", "m:best_of_n", "a\u{0}", "é", &long] {
        for path in [LOAD, UNLOAD] {
            let body = json!({"lora_name": name, "lora_path": "adapter"});
            let (status, error) = post(&offline, "first", path, &body);
            assert_eq!(
                (status, &error["error"]["param"]),
                (400, &json!("lora_name"))
            );
            assert!(error.to_string().len() < 1000);
        }
    }
}

#[test]
fn requests_name_folders_inside_the_roots_and_learn_of_no_others() {
    let offline = start();
    let root = offline.folder.path();
    let outside = tempfile::tempdir().unwrap();
    let there = adapter_folder(outside.path());
    let refused = |path: &Path| {
        let body = json!({"lora_name": "b", "lora_path": path});
        let (status, error) = post(&offline, "first", LOAD, &body);
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &json!("lora_path"))
        );
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    let message = refused(Path::new("nowhere"));
    assert!(message.contains("--lora-root"), "{message}");
    let up = Path::new("../..").join(there.strip_prefix("/").unwrap());
    for path in [
        there.as_path(),
        &outside.path().join("nothing"),
        Path::new("/etc/shadow"),
        Path::new("/proc/self/fd"),
        Path::new(".."),
        &up,
        &root.join("../.."),
    ] {
        assert_eq!(refused(path), message, "{}", path.display());
    }
    let body = json!({"lora_name": "a", "lora_path": root.join("adapter")});
    offline.backend.permit_load();
    let (status, told) = post(&offline, "first", LOAD, &body);
    assert_eq!(status, 200, "{told}");
    let (_, models) = get(&offline, "first", "/v1/models");
    assert!(!models.to_string().contains(root.to_str().unwrap()));
    let (_, model) = get(&offline, "first", "/v1/models/a");
    assert_eq!(model["root"], "adapter");
    // What is wrong inside is said without the way there.
    std::fs::write(root.join("adapter/adapter_config.json"), "{").unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let message = refused(Path::new("adapter"));
        assert!(message.contains("adapter_"), "{message}");
        assert!(!message.contains(root.to_str().unwrap()), "{message}");
        std::fs::remove_file(root.join("adapter").join(name)).unwrap();
    }
}
