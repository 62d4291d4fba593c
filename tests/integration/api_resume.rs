//! A search that goes on from its trace, over HTTP.

use serde_json::{Value, json};

use crate::api::{CHAT, ask, with};
use crate::server::{Server, options, start};

fn body(search: Value) -> Value {
    let body = with(ask("Name three rivers of Europe."), "search", search);
    let body = with(body, "temperature", json!(0.8));
    with(with(body, "seed", json!(5)), "max_tokens", json!(40))
}

fn search(strategy: &str, tokens: u64) -> Value {
    json!({"strategy": strategy, "n": 3, "branch": 2, "max_depth": 3, "iterations": 4, "return_tree": true,
        "step": {"max_tokens": 10}, "budget": {"tokens": tokens}})
}

fn num_generated(server: &Server) -> u64 {
    server.wait_until_free();
    server
        .state
        .served()
        .unwrap()
        .engine
        .stats()
        .generation_tokens
}

/// Path, text and end of each node.
fn outline(answer: &Value) -> Vec<(Value, Value, Value)> {
    let nodes = answer["search"]["tree"]["nodes"].as_array().unwrap().iter();
    let part = |node: &Value, name: &str| node[name].clone();
    nodes
        .map(|node| {
            (
                part(node, "branch_path"),
                part(node, "text"),
                part(node, "end"),
            )
        })
        .collect()
}

#[test]
fn a_search_goes_on_from_its_trace() {
    let server = start(Default::default(), &options());
    for strategy in ["beam", "rebase", "particle_filtering", "mcts", "vm_mcts"] {
        let ask = |search: Value| {
            let before = num_generated(&server);
            let (status, answer) = server.post(CHAT, body(search));
            assert_eq!(status, 200, "{answer}");
            (answer, num_generated(&server) - before)
        };
        let (short, _) = ask(search(strategy, 130));
        let (whole, num_whole) = ask(search(strategy, 400));
        // As a JavaScript client would write it.
        let text = short["search"]["tree"].to_string().replace("1.0,", "1,");
        let tree: Value = serde_json::from_str(&text).unwrap();
        let resumed = with(search(strategy, 400), "resume", tree);
        let (resumed, num_new) = ask(resumed);
        let id = short["search"]["trace_id"].clone();
        let (by_id, num_new_by_id) = ask(with(search(strategy, 400), "resume", id));
        assert_eq!(outline(&by_id), outline(&whole), "{strategy}");
        assert!(num_new_by_id <= num_new, "{num_new_by_id} {num_new}");
        assert_eq!(outline(&resumed), outline(&whole), "{strategy}");
        assert_eq!(
            resumed["choices"][0]["message"],
            whole["choices"][0]["message"]
        );
        assert_eq!(
            resumed["usage"],
            with(
                whole["usage"].clone(),
                "prompt_tokens_details",
                resumed["usage"]["prompt_tokens_details"].clone()
            )
        );
        assert!(
            num_new < num_whole,
            "{strategy}: {num_new} of {num_whole} tokens are new"
        );
    }

    let (_, short) = server.post(CHAT, body(search("mcts", 130)));
    let resume = with(
        search("mcts", 400),
        "resume",
        short["search"]["tree"].clone(),
    );
    let refused = |body: Value, words: &str| {
        let (status, answer) = server.post(CHAT, body);
        assert_eq!(status, 400, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    };
    refused(with(body(resume.clone()), "seed", json!(6)), "seed 5");
    refused(
        with(body(resume.clone()), "temperature", json!(0.9)),
        "another temperature",
    );
    refused(
        with(body(resume.clone()), "logprobs", json!(true)),
        "logprobs",
    );
    refused(
        body(with(resume.clone(), "branch", json!(3))),
        "another branch",
    );
    refused(
        body(with(resume.clone(), "resume", json!({"nodes": []}))),
        "not a tree",
    );
    let other = with(
        body(resume.clone()),
        "messages",
        ask("Name three lakes.")["messages"].clone(),
    );
    refused(other, "another prompt");
    let unknown = body(with(resume.clone(), "resume", json!("trace-0")));
    let (status, answer) = server.post(CHAT, unknown);
    assert_eq!(
        (status, &answer["error"]["param"]),
        (404, &json!("search.resume"))
    );
    let mut broken = resume;
    broken["resume"]["nodes"][1]["parent"] = json!(7);
    refused(body(broken), "not a tree");
}

#[test]
fn a_made_up_tree_of_many_nodes_costs_what_it_is_long() {
    let server = start(Default::default(), &options());
    let search = json!({"strategy": "best_of_n", "n": 2, "return_tree": true});
    let (_, whole) = server.post(CHAT, body(search.clone()));
    let mut tree = whole["search"]["tree"].clone();
    let root = tree["nodes"][0].clone();
    // One long branch whose nodes claim to be what the search samples.
    let node = |id: usize| {
        let node = with(root.clone(), "parent", json!(id));
        let node = with(node, "text", json!("a small step of an answer\n"));
        let node = with(node, "token_ids", json!([1]));
        let node = with(node, "score", json!(0.5));
        with(node, "branch_path", json!([0, 59_999 - id]))
    };
    let nodes: Vec<Value> = std::iter::once(root.clone())
        .chain((0..60_000).map(node))
        .collect();
    tree["nodes"] = json!(nodes);
    let started = std::time::Instant::now();
    let (status, resumed) = server.post(CHAT, body(with(search, "resume", tree)));
    assert_eq!(status, 200, "{resumed}");
    assert_eq!(outline(&resumed), outline(&whole));
    // The square of the nodes would be hours.
    let took = started.elapsed();
    assert!(took.as_secs() < 600, "{took:?}");
}
