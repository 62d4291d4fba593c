//! `/v1/responses` over the fake model.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ponder::api::ServerConfig;
use ponder::trace::{PackedResponse, StoreOptions, TraceStore};
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::offline::{CONTEXT, Offline, chat};
use crate::server::{Server, start_stored};

const RESPONSES: &str = "/v1/responses";
const ALICE: &[(&str, &str)] = &[("authorization", "Bearer alice")];
const BOB: &[(&str, &str)] = &[("authorization", "Bearer bob")];

fn with(mut body: Value, more: Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

fn request(more: Value) -> Value {
    let body = json!({"model": "m", "seed": 7, "max_output_tokens": 12, "input": "1 + 1?"});
    with(body, more)
}

fn respond(offline: &Offline, more: Value) -> Value {
    offline.ask(RESPONSES, request(more))
}

fn id(response: &Value) -> &str {
    response["id"].as_str().unwrap()
}

fn path(response: &Value) -> String {
    format!("{RESPONSES}/{}", id(response))
}

fn text(response: &Value) -> String {
    let items = response["output"].as_array().unwrap().iter();
    let texts = items.filter_map(|item| item["content"][0]["text"].as_str());
    texts.collect()
}

/// The events of a stream by their names, which are those of their data.
fn events(text: &str) -> Vec<(String, Value)> {
    let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
    let event = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name);
        (name, data)
    };
    blocks.map(event).collect()
}

fn streamed(offline: &Offline, more: Value) -> Vec<(String, Value)> {
    let body = with(request(more), json!({"stream": true}));
    let (status, text) = offline.server.post_with(RESPONSES, body.to_string(), &[]);
    assert_eq!(status, 200, "{text}");
    events(&text)
}

/// Asks for a background response until it is over.
fn settled(offline: &Offline, path: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let response = offline.get(path);
        let status = response["status"].as_str().unwrap();
        if !matches!(status, "queued" | "in_progress") {
            return response;
        }
        assert!(Instant::now() < deadline, "{response}");
        std::thread::yield_now();
    }
}

/// What is remembered of a conversation is bounded as a body is.
#[test]
fn a_conversation_is_no_longer_than_a_body() {
    let offline = Offline::with(ServerConfig {
        max_body_bytes: 6144,
        ..ServerConfig::default()
    });
    let mut previous = respond(&offline, json!({}));
    for _ in 0..20 {
        let more = json!({"previous_response_id": previous["id"], "input": "And 2?"});
        let (status, answer) = offline.server.post(RESPONSES, request(more));
        if status == 200 {
            previous = answer;
            continue;
        }
        assert_eq!(status, 400, "{answer}");
        assert_eq!(answer["error"]["param"], "previous_response_id");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("--max-body-bytes"), "{message}");
        return;
    }
    panic!("a conversation of 20 responses fits 6144 bytes");
}

#[test]
fn a_stream_adds_up_to_the_response() {
    let offline = Offline::start();
    let whole = respond(&offline, json!({}));
    assert_eq!(whole["object"], "response");
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["usage"]["output_tokens"], 12);
    // The same conversation as a chat's.
    let asked = chat(json!({"messages": [{"role": "user", "content": "1 + 1?"}]}));
    let answer = offline.ask(CHAT, asked);
    assert_eq!(text(&whole), answer["choices"][0]["message"]["content"]);
    assert_eq!(
        whole["usage"]["input_tokens"],
        answer["usage"]["prompt_tokens"]
    );

    let events = streamed(&offline, json!({}));
    for (number, (_, event)) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let begun = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ];
    assert_eq!(names[..3], begun);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(*names.last().unwrap(), "response.incomplete");
    assert_eq!(text(last), text(&whole));
    let deltas: String = events
        .iter()
        .filter_map(|(_, event)| event["delta"].as_str())
        .collect();
    assert_eq!(deltas, text(&whole));
    // It is kept as it was told.
    assert_eq!(offline.get(&path(last)), *last);
    assert_eq!(offline.get(&path(&whole)), whole);
    offline.server.wait_until_free();
}

#[test]
fn every_field_has_an_effect_or_an_error() {
    let offline = Offline::start();
    let message = |content: Value| json!([{"role": "user", "content": content}]);
    let item = |item: Value| json!([{"role": "user", "content": "x"}, item]);
    let long = "x".repeat(65);
    for (param, more) in [
        ("input", json!({"input": []})),
        ("input", json!({"input": null})),
        ("input", json!({"input": 5})),
        ("input[1]", json!({"input": item(json!("x"))})),
        (
            "input[1].type",
            json!({"input": item(json!({"type": "web_search_call"}))}),
        ),
        ("input[1].type", json!({"input": item(json!({}))})),
        (
            "input[1].role",
            json!({"input": item(json!({"role": "sytem", "content": "x"}))}),
        ),
        (
            "input[1].content",
            json!({"input": item(json!({"role": "user"}))}),
        ),
        (
            "input[0].content[0].type",
            json!({"input": message(json!([{"type": "input_file"}]))}),
        ),
        (
            "input[0].content[0].type",
            json!({"input": message(json!([{"text": "x"}]))}),
        ),
        (
            "input[0].content[1].text",
            json!({"input":
            message(json!([{"type": "input_text", "text": ""}, {"type": "input_text"}]))}),
        ),
        (
            "input[0].content[0].file_id",
            json!({"input":
            message(json!([{"type": "input_image", "file_id": "file-1"}]))}),
        ),
        (
            "input[0].content[0].image_url",
            json!({"input":
            message(json!([{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]))}),
        ),
        (
            "input[1].call_id",
            json!({"input": item(json!({"type": "function_call"}))}),
        ),
        (
            "input[1].call_id",
            json!({"input":
            item(json!({"type": "function_call_output", "call_id": "c", "output": "x"}))}),
        ),
        (
            "input[1].id",
            json!({"input": item(json!({"type": "item_reference", "id": "msg_1"}))}),
        ),
        (
            "input[1].id",
            json!({"input": item(json!({"id": format!("msg_{long}")}))}),
        ),
        (
            "input[1].encrypted_content",
            json!({"input":
            item(json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}))}),
        ),
        (
            "input[1].summary[0].text",
            json!({"input":
            item(json!({"type": "reasoning", "summary": [{}]}))}),
        ),
        ("instructions", json!({"instructions": ["x"]})),
        ("max_output_tokens", json!({"max_output_tokens": 0})),
        ("max_tool_calls", json!({"max_tool_calls": 0})),
        ("temperature", json!({"temperature": 3})),
        ("top_p", json!({"top_p": -1})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        (
            "top_logprobs",
            json!({"top_logprobs": 99,
            "include": ["message.output_text.logprobs"]}),
        ),
        (
            "include[1]",
            json!({"include":
            ["reasoning.encrypted_content", "file_search_call.results"]}),
        ),
        (
            "tools[1].type",
            json!({"tools": [{"type": "function", "name": "f"},
            {"type": "web_search"}]}),
        ),
        ("tools[0].name", json!({"tools": [{"type": "function"}]})),
        ("tools[0].type", json!({"tools": [{}]})),
        ("tool_choice", json!({"tool_choice": "any"})),
        (
            "tool_choice.type",
            json!({"tool_choice": {"type": "file_search"}}),
        ),
        (
            "tool_choice.name",
            json!({"tool_choice": {"type": "function"}}),
        ),
        (
            "tool_choice.tools[0]",
            json!({"tool_choice":
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}}),
        ),
        ("text", json!({"text": "short"})),
        (
            "text.format.type",
            json!({"text": {"format": {"type": "xml"}}}),
        ),
        (
            "text.format.schema",
            json!({"text": {"format": {"type": "json_schema", "name": "n"}}}),
        ),
        ("text.verbosity", json!({"text": {"verbosity": "mute"}})),
        ("reasoning", json!({"reasoning": "high"})),
        ("reasoning.effort", json!({"reasoning": {"effort": "some"}})),
        ("reasoning.effort", json!({"reasoning": {"effort": 5}})),
        (
            "reasoning.max_tokens",
            json!({"reasoning": {"max_tokens": -5}}),
        ),
        (
            "reasoning.summary",
            json!({"reasoning": {"summary": "long"}}),
        ),
        ("reasoning.mode", json!({"reasoning": {"mode": "pro"}})),
        ("truncation", json!({"truncation": "some"})),
        ("conversation", json!({"conversation": "conv_1"})),
        ("prompt", json!({"prompt": {"id": "pmpt_1"}})),
        ("service_tier", json!({"service_tier": "flex"})),
        ("stream_options", json!({"stream_options": {}})),
        (
            "stream_options.include_obfuscation",
            json!({"stream": true,
            "stream_options": {"include_obfuscation": 1}}),
        ),
        ("background", json!({"background": true, "store": false})),
        (
            "previous_response_id",
            json!({"previous_response_id": "resp_1"}),
        ),
        ("safety_identifier", json!({"safety_identifier": long})),
        ("prompt_cache_key", json!({"prompt_cache_key": long})),
        (
            "context_management",
            json!({"context_management": [{"type": "compaction"}]}),
        ),
        (
            "moderation",
            json!({"moderation": {"model": "omni-moderation-latest"}}),
        ),
        ("messages", json!({"messages": []})),
        ("max_tokens", json!({"max_tokens": 5})),
        (
            "response_format",
            json!({"response_format": {"type": "json_object"}}),
        ),
        ("reasoning_effort", json!({"reasoning_effort": "low"})),
        ("logprobs", json!({"logprobs": true})),
        ("n", json!({"n": 2})),
        ("search.strategy", json!({"search": {"strategy": "guess"}})),
        ("metadata", json!({"metadata": {"k": "v".repeat(513)}})),
        ("seed", json!({"seed": "x"})),
    ] {
        let (status, error) = offline.post(RESPONSES, request(more.clone()));
        assert_eq!(status, 400, "{more}: {error}");
        assert_eq!(error["error"]["param"], param, "{more}: {error}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
    }
    for taken in [
        json!({"conversation": null, "prompt": null, "messages": null, "n": 1}),
        json!({"an_unknown_field": {"a": 1}, "reasoning": null, "text": null, "tools": []}),
        json!({"service_tier": "auto", "user": "u", "safety_identifier": "s"}),
        json!({"tool_choice": "auto", "parallel_tool_calls": false, "max_tool_calls": 3}),
        json!({"text": {"format": {"type": "text"}, "verbosity": "medium"}}),
        json!({"truncation": "auto", "metadata": {"k": "v"}, "store": false}),
    ] {
        let (status, answer) = offline.post(RESPONSES, request(taken.clone()));
        assert_eq!(status, 200, "{taken}: {answer}");
    }
    let (status, error) = offline.post(RESPONSES, request(json!({"model": "gpt-9"})));
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    offline.server.wait_until_free();
}

#[test]
fn a_response_repeats_its_request() {
    let offline = Offline::start();
    let plain = respond(
        &offline,
        json!({"input": [{"role": "user", "content": "1 + 1?"}]}),
    );
    for (field, value) in [
        ("background", json!(false)),
        ("error", Value::Null),
        ("instructions", Value::Null),
        ("max_output_tokens", json!(12)),
        ("metadata", json!({})),
        ("model", json!("m")),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("service_tier", json!("default")),
        ("store", json!(true)),
        ("temperature", json!(1.0)),
        (
            "text",
            json!({"format": {"type": "text"}, "verbosity": "medium"}),
        ),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", json!(1.0)),
        ("truncation", json!("disabled")),
    ] {
        assert_eq!(plain[field], value, "{field}");
    }
    let asked = json!({"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5,
        "top_p": 0.9, "truncation": "auto", "user": "u", "store": false,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let told = respond(&offline, asked.clone());
    for (field, value) in asked.as_object().unwrap() {
        if field != "include" {
            assert_eq!(told[field], *value, "{field}");
        }
    }
    let logprobs = told["output"][0]["content"][0]["logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(told["usage"]["output_tokens"], logprobs.len());
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(
        offline.server.get(&path(&told)).0,
        404,
        "it was not to be kept"
    );
}

#[test]
fn conversations_go_on_where_they_stopped() {
    let offline = Offline::start();
    let first = respond(&offline, json!({"instructions": "Say it."}));
    let more = json!({"input": "And then?", "previous_response_id": id(&first)});
    let second = respond(&offline, more);
    let answer = text(&first);
    // The instructions are not inherited.
    let same = json!({"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And then?"}]});
    let explicit = respond(&offline, same);
    assert_eq!(text(&second), text(&explicit));
    assert_eq!(
        second["usage"]["input_tokens"],
        explicit["usage"]["input_tokens"]
    );
    assert_eq!(second["previous_response_id"], first["id"]);
    // A third turn has both before it; references name single items.
    let third = respond(
        &offline,
        json!({"input": "So?", "previous_response_id": id(&second)}),
    );
    let items = offline.get(&format!("{}/input_items?order=asc", path(&second)));
    assert_eq!(
        items["data"].as_array().unwrap().len(),
        1,
        "those of its own request"
    );
    let refer = |id: &Value| json!({"type": "item_reference", "id": id});
    let referring = json!({"input": [
        {"role": "user", "content": "1 + 1?"}, refer(&first["output"][0]["id"]),
        refer(&items["data"][0]["id"]), {"id": second["output"][0]["id"]},
        {"role": "user", "content": "So?"}]});
    let referred = respond(&offline, referring);
    assert_eq!(text(&referred), text(&third));
    // What is referred to is kept with the response.
    let kept = offline.get(&format!("{}/input_items?order=asc", path(&referred)));
    assert_eq!(kept["data"][3], second["output"][0]);
    // A conversation whose beginning is gone.
    assert_eq!(offline.server.delete(&path(&first)), 200);
    let body = request(json!({"previous_response_id": id(&second)}));
    let (status, error) = offline.post(RESPONSES, body);
    let code = json!("previous_response_not_found");
    assert_eq!((status, &error["error"]["code"]), (400, &code), "{error}");
}

#[test]
fn input_items_are_listed_in_pages() {
    let offline = Offline::start();
    let call = json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"});
    let output = json!({"type": "function_call_output", "call_id": "c1", "output":
        [{"type": "input_text", "text": "2"}]});
    let thought = json!({"type": "reasoning", "id": "rs_mine", "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}]});
    let input = json!([{"role": "user", "content": "1 + 1?"}, thought, call, output,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Why?"}]);
    let response = respond(&offline, json!({"input": input}));
    let page = |query: &str| offline.get(&format!("{}/input_items{query}", path(&response)));
    let all = page("?order=asc");
    let kinds: Vec<&str> = all["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["type"].as_str().unwrap())
        .collect();
    let expected = [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ];
    assert_eq!(
        (kinds.as_slice(), &all["has_more"]),
        (&expected[..], &json!(false))
    );
    assert_eq!(all["data"][1]["id"], "rs_mine");
    // The last one first, two at a time.
    let mut seen = Vec::new();
    let mut query = "?limit=2&include[]=reasoning.encrypted_content".to_owned();
    loop {
        let list = page(&query);
        let data = list["data"].as_array().unwrap();
        assert_eq!(
            (&list["first_id"], &list["last_id"]),
            (&data[0]["id"], &data[1]["id"])
        );
        seen.extend(data.clone());
        if list["has_more"] == false {
            break;
        }
        query = format!("?limit=2&after={}", list["last_id"].as_str().unwrap());
    }
    seen.reverse();
    assert_eq!(json!(seen), all["data"]);
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=x", "limit"),
        ("?order=up", "order"),
        ("?after=none", "after"),
        ("?include=everything", "include[0]"),
    ] {
        let (status, error) = offline
            .server
            .get(&format!("{}/input_items{query}", path(&response)));
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
    }
}

#[test]
fn responses_are_of_one_key() {
    let offline = Offline::with(ServerConfig {
        api_keys: vec!["alice".to_owned(), "bob".to_owned()],
        ..ServerConfig::default()
    });
    let post = |path: &str, body: Value, headers| {
        let (status, text) = offline.server.post_with(path, body.to_string(), headers);
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let call = |method: &str, path: &str, headers: &[(&str, &str)]| {
        offline.server.runtime.block_on(async {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let url = format!("{}{path}", offline.server.url);
            let (name, value) = headers[0];
            let request = reqwest::Client::new()
                .request(method, url)
                .header(name, value);
            request.send().await.unwrap().status().as_u16()
        })
    };
    let (status, response) = post(RESPONSES, request(json!({})), ALICE);
    assert_eq!(status, 200, "{response}");
    let path = path(&response);
    for (method, suffix) in [
        ("GET", ""),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ] {
        assert_eq!(
            call(method, &format!("{path}{suffix}"), BOB),
            404,
            "{method}"
        );
    }
    for more in [
        json!({"previous_response_id": id(&response)}),
        json!({"input": [{"type": "item_reference", "id": response["output"][0]["id"]}]}),
    ] {
        let (status, error) = post(RESPONSES, request(more.clone()), BOB);
        assert_eq!(status, 400, "{error}");
        assert_eq!(post(RESPONSES, request(more), ALICE).0, 200);
    }
    assert_eq!(call("DELETE", &path, ALICE), 200);
    assert_eq!(call("GET", &path, ALICE), 404);
}

#[test]
fn background_responses_are_asked_for_later() {
    let offline = Offline::start();
    let queued = respond(&offline, json!({"background": true}));
    assert_eq!(
        (&queued["status"], &queued["background"]),
        (&json!("queued"), &json!(true))
    );
    let ended = settled(&offline, &path(&queued));
    assert_eq!(text(&ended), text(&respond(&offline, json!({}))));
    // Cancelling what is over says how it ended.
    let again = offline.ask(&format!("{}/cancel", path(&queued)), json!({}));
    assert_eq!(again, ended);
    let no_stream = format!("{}?stream=true", path(&queued));
    assert_eq!(
        offline.server.get(&no_stream).0,
        400,
        "it was made without events"
    );

    // With events, of which a second reader gets the rest.
    let events_of_first = streamed(&offline, json!({"background": true}));
    let names: Vec<&str> = events_of_first
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let begun = [
        "response.created",
        "response.queued",
        "response.in_progress",
    ];
    assert_eq!(names[..3], begun);
    let last = &events_of_first.last().unwrap().1["response"];
    let rest = format!("{}?stream=true&starting_after=3", path(last));
    let (status, rest) = offline.server.get(&rest);
    assert_eq!(status, 200);
    assert_eq!(events(&rest), events_of_first[4..]);
    assert_eq!(offline.get(&path(last)), *last);
    for query in [
        "starting_after=3",
        "stream=maybe",
        "stream=true&include_obfuscation=true",
    ] {
        assert_eq!(
            offline.server.get(&format!("{}?{query}", path(last))).0,
            400,
            "{query}"
        );
    }
    assert_eq!(offline.server.delete(&path(last)), 200);
    assert_eq!(offline.server.get(&path(last)).0, 404);
    offline.server.wait_until_free();
}

/// A search that waits for its judge until the backend lets it.
fn waiting_search() -> Value {
    json!({"background": true, "stream": false,
        "search": {"strategy": "best_of_n", "n": 2, "reward": {"kind": "judge"}}})
}

#[test]
fn background_responses_can_be_ended() {
    let offline = Offline::start();
    offline
        .backend
        .refuses_pooling
        .store(true, Ordering::Release);
    for ends_by in ["cancel", "delete"] {
        let queued = respond(&offline, waiting_search());
        let running = offline.get(&path(&queued));
        let status = running["status"].as_str().unwrap();
        assert!(matches!(status, "queued" | "in_progress"), "{running}");
        // Nothing goes on from what is not there yet.
        let more = request(json!({"previous_response_id": id(&queued)}));
        let (status, error) = offline.post(RESPONSES, more);
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &json!("previous_response_id"))
        );
        let items = offline.get(&format!("{}/input_items", path(&queued)));
        assert_eq!(items["data"].as_array().unwrap().len(), 1);
        if ends_by == "delete" {
            assert_eq!(offline.server.delete(&path(&queued)), 200);
            assert_eq!(offline.server.get(&path(&queued)).0, 404);
            continue;
        }
        for _ in 0..2 {
            let ended = offline.ask(&format!("{}/cancel", path(&queued)), json!({}));
            assert_eq!(ended["status"], "cancelled");
            assert_eq!(offline.get(&path(&queued)), ended);
        }
    }
    offline.server.wait_until_free();
    offline
        .backend
        .refuses_pooling
        .store(false, Ordering::Release);
    let queued = respond(&offline, waiting_search());
    let ended = settled(&offline, &path(&queued));
    assert_eq!(ended["search"]["strategy"], "best_of_n");
}

#[test]
fn a_server_that_stops_ends_its_background_responses() {
    let mut offline = Offline::with(ServerConfig {
        shutdown_timeout: Duration::from_millis(50),
        ..ServerConfig::default()
    });
    offline
        .backend
        .refuses_pooling
        .store(true, Ordering::Release);
    let queued = respond(&offline, waiting_search());
    let server = &mut offline.server;
    server.stop.take().unwrap().send(()).unwrap();
    let task = server.task.take().unwrap();
    server.runtime.block_on(task).unwrap().unwrap();
    assert!(id(&queued).starts_with("resp_"));
    // The server waits for what runs, and no longer than it was told.
    let mut idle = Offline::with(ServerConfig::default());
    let queued = respond(&idle, json!({"background": true, "max_output_tokens": 300}));
    let server = &mut idle.server;
    server.stop.take().unwrap().send(()).unwrap();
    let task = server.task.take().unwrap();
    server.runtime.block_on(task).unwrap().unwrap();
    assert_eq!(queued["status"], "queued");
}

#[test]
fn responses_survive_and_what_was_being_made_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traces.db");
    let record = |id: &str, status: &str| {
        let response = json!({"id": id, "object": "response", "status": status, "error": null,
            "background": true, "output": []});
        json!({"response": response, "input": []})
    };
    let store = TraceStore::open(&file, StoreOptions::default()).unwrap();
    for (id, status) in [
        ("resp_1", "completed"),
        ("resp_2", "in_progress"),
        ("resp_3", "queued"),
    ] {
        let row = PackedResponse::of(id, 4_000_000_000, &record(id, status)).unwrap();
        futures::executor::block_on(store.put_response(row, 0)).unwrap();
    }
    store.close();
    let store = TraceStore::open(&file, StoreOptions::default()).unwrap();
    let server: Server = start_stored(ServerConfig::default(), Some(store), folder);
    for (id, status) in [
        ("resp_1", "completed"),
        ("resp_2", "failed"),
        ("resp_3", "failed"),
    ] {
        let (code, text) = server.get(&format!("{RESPONSES}/{id}"));
        let response: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &response["status"]), (200, &json!(status)));
        let cancelled = server.post(&format!("{RESPONSES}/{id}/cancel"), json!({}));
        assert_eq!(cancelled, (200, response.clone()));
        let has_error = response["error"]["code"] == "server_error";
        assert_eq!(has_error, status == "failed");
    }
}

#[test]
fn a_server_without_a_store_keeps_nothing_and_says_so() {
    let offline = Offline::without_store();
    let response = respond(&offline, json!({}));
    assert_eq!(response["store"], false);
    assert_eq!(offline.server.get(&path(&response)).0, 404);
    for (param, more) in [
        ("store", json!({"store": true})),
        ("background", json!({"background": true})),
        (
            "previous_response_id",
            json!({"previous_response_id": "resp_1"}),
        ),
        (
            "input[0]",
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ),
    ] {
        let (status, error) = offline.post(RESPONSES, request(more));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("--trace-db"), "{message}");
    }
    // Chats and texts are traces there.
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        ("/v1/completions", json!({"prompt": "x"})),
    ] {
        let asked = |store: bool| {
            let more = json!({"model": "m", "store": store, "max_tokens": 1});
            offline.post(path, with(body.clone(), more))
        };
        let (status, error) = asked(true);
        assert_eq!((status, &error["error"]["param"]), (400, &json!("store")));
        assert_eq!(asked(false).0, 200);
    }
}

#[test]
fn long_conversations_are_refused_or_cut() {
    let offline = Offline::start();
    let turn = |index: usize| {
        [
            json!({"role": "user", "content": format!("Question {index}: {}", "x".repeat(40))}),
            json!({"role": "assistant", "content": format!("Answer {index}.")}),
        ]
    };
    let mut items: Vec<Value> = vec![json!({"role": "developer", "content": "Be brief."})];
    items.extend((0..20).flat_map(turn));
    items.push(json!({"role": "user", "content": "Last?"}));
    let (status, error) = offline.post(RESPONSES, request(json!({"input": items})));
    let expected = (400, &json!("context_length_exceeded"), &json!("input"));
    assert_eq!(
        (status, &error["error"]["code"], &error["error"]["param"]),
        expected
    );
    let cut = respond(&offline, json!({"input": items, "truncation": "auto"}));
    let num_tokens = cut["usage"]["input_tokens"].as_u64().unwrap() as usize;
    // As many turns as there is room for.
    assert!(
        num_tokens + 12 <= CONTEXT && num_tokens + 12 + 150 > CONTEXT,
        "{num_tokens}"
    );
    let mut kept = vec![items[0].clone()];
    let same = (1..items.len()).step_by(2).find_map(|from| {
        kept.truncate(1);
        kept.extend(items[from..].to_vec());
        let (status, answer) = offline.post(RESPONSES, request(json!({"input": kept})));
        (status == 200).then_some(answer)
    });
    assert_eq!(
        text(&same.unwrap()),
        text(&cut),
        "the operator's words stay, the oldest turns go"
    );
    // One message that is too long by itself stays too long.
    let huge = json!({"input": "x".repeat(CONTEXT * 2), "truncation": "auto"});
    let (status, error) = offline.post(RESPONSES, request(huge));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("input")));
}

#[test]
fn responses_are_searched() {
    let offline = Offline::start();
    let search = json!({"strategy": "best_of_n", "n": 3, "reward": {"kind": "likelihood"},
        "stream_events": true});
    let whole = respond(&offline, json!({"search": search}));
    assert_eq!(whole["search"]["strategy"], "best_of_n");
    assert!(whole["search"]["trace_id"].is_string());
    let events = streamed(&offline, json!({"search": search}));
    assert!(
        events
            .iter()
            .any(|(name, _)| name == "response.search_event")
    );
    assert_eq!(text(&events.last().unwrap().1["response"]), text(&whole));
    let by_effort = respond(&offline, json!({"reasoning": {"effort": "medium"}}));
    assert_eq!(by_effort["search"]["strategy"], "self_consistency");
    let by_name = respond(&offline, json!({"model": "m:best_of_n"}));
    assert_eq!(by_name["search"]["strategy"], "best_of_n");
}
