//! Adaptation as a client sees it, on a dense model: what it tells, what is refused, and that
//! nobody else notices.

use serde_json::{Value, json};

use crate::api::{CHAT, ask, sse, with};
use crate::server::shared_server;

fn question() -> Value {
    ask("Tell me in a few words what a river is, where it begins and where it ends.")
}

fn phases(adaptation: &Value) -> &[Value] {
    adaptation["phases"].as_array().unwrap()
}

#[test]
fn an_adapted_answer_tells_what_was_done_and_leaves_nothing_behind() {
    let server = shared_server();
    let (_, plain) = server.post(CHAT, question());
    assert!(plain.get("adaptation").is_none(), "{plain}");
    // At a rate that changes the answer.
    let slot = json!({"method": "slot", "learning_rate": 0.1});
    let body = with(question(), "adaptation", slot);
    let (status, adapted) = server.post(CHAT, body.clone());
    assert_eq!(status, 200, "{adapted}");
    let told = &adapted["adaptation"];
    assert_eq!(told["config"]["method"], "slot", "{told}");
    assert_eq!(told["config"]["learning_rate"], 0.1, "{told}");
    let [phase] = phases(told) else {
        panic!("{told}")
    };
    let losses: Vec<f64> = serde_json::from_value(phase["losses"].clone()).unwrap();
    assert_eq!(losses.len(), 6, "{phase}");
    assert!(losses[5] < losses[0], "{phase}");
    assert_ne!(adapted["choices"], plain["choices"]);
    assert_eq!(
        server.post(CHAT, body.clone()).1["choices"],
        adapted["choices"]
    );
    assert_eq!(server.post(CHAT, question()).1["choices"], plain["choices"]);
    // A stream tells it in its last chunk, with the usage.
    let body = with(body, "stream", json!(true));
    let body = with(body, "stream_options", json!({"include_usage": true}));
    let (_, text) = server.post_with(CHAT, body.to_string(), &[]);
    let chunks = sse(&text);
    let last = chunks.last().unwrap();
    assert_eq!(phases(&last["adaptation"]).len(), 1, "{last}");
    let (_, metrics) = server.get("/metrics");
    assert!(
        metrics.contains("ponder_adaptation_phases_total"),
        "{metrics}"
    );
}

#[test]
fn a_search_adapts_once_for_all_its_samples() {
    let server = shared_server();
    let search = json!({"strategy": "best_of_n", "n": 3, "return_tree": true, "reward": {"kind": "likelihood"}});
    let body = with(with(question(), "search", search), "seed", json!(4));
    let body = with(body, "temperature", json!(0.8));
    let (_, plain) = server.post(CHAT, body.clone());
    let body = with(
        body,
        "adaptation",
        json!({"method": "slot", "steps": 2, "learning_rate": 0.1}),
    );
    let (status, adapted) = server.post(CHAT, body.clone());
    assert_eq!(status, 200, "{adapted}");
    let told = &adapted["search"]["adaptation"];
    assert_eq!(phases(told).len(), 1, "{told}");
    assert_eq!(adapted["search"]["tree"]["adaptation"], *told);
    assert_ne!(adapted["choices"], plain["choices"]);
    assert_eq!(server.post(CHAT, body).1["choices"], adapted["choices"]);
}

#[test]
fn what_cannot_be_adapted_is_refused() {
    let server = shared_server();
    let refused = |key: &str, value: Value, param: &str, says: &str| {
        let (status, body) = server.post(CHAT, with(question(), key, value));
        assert_eq!(status, 400, "{body}");
        assert_eq!(body["error"]["param"], param, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    };
    let router = "router_adaptation";
    refused(router, json!(true), router, "mixture-of-experts");
    refused(router, json!("yes"), router, "true, false or an object");
    refused(
        router,
        json!({"method": "slot"}),
        "router_adaptation.method",
        "only",
    );
    refused("adaptation", json!("router"), "adaptation.method", "dense");
    refused("adaptation", json!("fast"), "adaptation.method", "slot");
    refused("adaptation", json!(3), "adaptation", "an object");
    refused(
        "adaptation",
        json!({"steps": 3}),
        "adaptation.method",
        "must be",
    );
    let slot = |name: &str, value: Value| {
        let mut fields = json!({"method": "slot"});
        fields[name] = value;
        fields
    };
    refused(
        "adaptation",
        slot("steps", json!(0)),
        "adaptation.steps",
        "1 to 64",
    );
    refused(
        "adaptation",
        slot("steps", json!("x")),
        "adaptation.steps",
        "invalid type",
    );
    refused(
        "adaptation",
        slot("rate", json!(1)),
        "adaptation.rate",
        "not known",
    );
    refused(
        "adaptation",
        slot("window", json!(3)),
        "adaptation.window",
        "at least",
    );
    let unknown = slot("layers", json!({"first": 2}));
    refused(
        "adaptation",
        unknown,
        "adaptation.layers.first",
        "not known",
    );
    let both = with(question(), "adaptation", json!("slot"));
    let (status, body) = server.post(CHAT, with(both, router, json!(true)));
    assert_eq!((status, &body["error"]["param"]), (400, &json!(router)));
    for off in [json!(null), json!(false), json!("off")] {
        let (status, body) = server.post(CHAT, with(question(), "adaptation", off));
        assert_eq!(status, 200, "{body}");
        assert!(body.get("adaptation").is_none());
    }
    let session = json!({"model": "m", "prompt": "Once", "adaptation": "slot"});
    let (status, body) = server.post("/v1/branches", session);
    assert_eq!(
        (status, &body["error"]["param"]),
        (400, &json!("adaptation"))
    );
}
