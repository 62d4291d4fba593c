//! Structured output over HTTP.

use std::sync::OnceLock;

use ponder::api::ServerConfig;
use serde_json::{Value, json};

use crate::api::{CHAT, sse, with};
use crate::scripted::{OR, say, start, thinking_hermes};
use crate::server::{Server, shared_server};

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start(thinking_hermes(), ServerConfig::default()))
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"], "additionalProperties": false})
}

/// The text of an answer that must succeed.
fn text(server: &Server, body: &Value) -> String {
    let (status, answer) = server.post(CHAT, body.clone());
    assert_eq!(status, 200, "{body}: {answer}");
    let text = answer["choices"][0]["message"]["content"].as_str();
    text.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn check_person(text: &str) {
    let person: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text:?}"));
    assert!(
        person["name"].is_string() && person["age"].is_u64(),
        "{text}"
    );
}

/// Every field that asks for [`schema`].
fn asking_for_a_person() -> Vec<Value> {
    vec![
        json!({"response_format": {"type": "json_schema",
            "json_schema": {"name": "person", "schema": schema(), "strict": true}}}),
        json!({"response_format": {"type": "json_object", "schema": schema()}}),
        json!({"structured_outputs": {"json": schema()}}),
        json!({"guided_json": schema().to_string()}),
        json!({"json_schema": schema()}),
    ]
}

#[test]
fn answers_keep_to_every_kind_of_grammar() {
    let server = server();
    // The model would say something else.
    for more in asking_for_a_person() {
        check_person(&text(server, &say("Hello there!", more)));
    }
    for (more, allowed) in [
        (json!({"guided_choice": ["yes", "no"]}), vec!["yes", "no"]),
        (
            json!({"structured_outputs": {"choice": ["red", "blue"]}}),
            vec!["red", "blue"],
        ),
        (json!({"guided_regex": "ab{2}c"}), vec!["abbc"]),
        (json!({"grammar": "root ::= \"x\" \"y\""}), vec!["xy"]),
        (json!({"guided_grammar": "start: \"uv\""}), vec!["uv"]),
    ] {
        let said = text(server, &say("Hello there!", more.clone()));
        assert!(allowed.contains(&said.as_str()), "{more}: {said}");
    }
    let object = text(
        server,
        &say(
            "Hello!",
            json!({"response_format": {"type": "json_object"}}),
        ),
    );
    assert!(
        serde_json::from_str::<Value>(&object).unwrap().is_object(),
        "{object}"
    );
    // What the model would say anyway, it says.
    let own = "{\"name\": \"Bo\", \"age\": 7}";
    assert_eq!(
        text(server, &say(own, asking_for_a_person()[0].clone())),
        own
    );
}

#[test]
fn streams_choices_completions_and_searches_keep_to_it() {
    let server = server();
    let person = asking_for_a_person()[0].clone();
    let body = say("Hello!", person.clone());
    let streamed = with(body.clone(), "stream", json!(true));
    let chunks = sse(&server.post_with(CHAT, streamed.to_string(), &[]).1);
    let said = chunks
        .iter()
        .filter_map(|it| it["choices"][0]["delta"]["content"].as_str());
    let said: String = said.collect();
    check_person(&said);
    assert_eq!(said, text(server, &body));
    let script = ["Al", "Bo", "Cy"].map(|name| format!("{{\"name\": \"{name}\", \"age\": 7}}"));
    let mut many = say(&script.join(OR), person.clone());
    for (name, value) in [
        ("n", json!(6)),
        ("temperature", json!(1)),
        ("logprobs", json!(true)),
    ] {
        many[name] = value;
    }
    let (_, answer) = server.post(CHAT, many.clone());
    for choice in answer["choices"].as_array().unwrap() {
        check_person(choice["message"]["content"].as_str().unwrap());
    }
    let completion = json!({"model": "m", "prompt": ["Hello!", "You!"], "n": 2, "max_tokens": 100,
        "guided_json": schema()});
    let (status, answer) = server.post("/v1/completions", completion);
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for choice in choices {
        check_person(choice["text"].as_str().unwrap());
    }
    for search in [
        json!({"strategy": "best_of_n", "n": 3, "reward": {"kind": "likelihood"}}),
        json!({"strategy": "self_consistency", "n": 3}),
        json!({"strategy": "beam", "n": 4, "branch": 2, "reward": {"kind": "likelihood"},
            "step": {"delimiter": ","}}),
        json!({"strategy": "mcts", "n": 2, "iterations": 4, "reward": {"kind": "likelihood"},
            "step": {"delimiter": ","}}),
    ] {
        let mut body = say("Hello!", person.clone());
        body["search"] = search;
        body["temperature"] = json!(1);
        check_person(&text(server, &body));
    }
}

#[test]
fn a_cut_answer_says_length() {
    let person = asking_for_a_person()[0].clone();
    let (_, answer) = server().post(CHAT, say("Hello!", with(person, "max_tokens", json!(4))));
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
}

#[test]
fn thoughts_come_before_the_grammar() {
    let server = server();
    let person = asking_for_a_person()[0].clone();
    let script = "<think>\nHm, {who}?\n</think>{\"name\": \"Bo\", \"age\": 7}";
    let body = say(script, person.clone());
    let (_, answer) = server.post(CHAT, body.clone());
    let message = &answer["choices"][0]["message"];
    check_person(message["content"].as_str().unwrap().trim());
    assert_eq!(
        message["reasoning_content"].as_str().unwrap().trim(),
        "Hm, {who}?"
    );
    // A budget ends the thought.
    let opened = json!({"chat_template_kwargs": {"opens": true}, "thinking_token_budget": 6,
        "max_tokens": 100});
    let mut body = say("I could go on and on and on.", opened);
    let (_, answer) = server.post(CHAT, body.clone());
    let message = &answer["choices"][0]["message"];
    let thought = message["reasoning_content"].as_str().unwrap();
    assert!(thought.len() <= 6 && !thought.is_empty(), "{message}");
    let details = &answer["usage"]["completion_tokens_details"];
    assert!(
        details["reasoning_tokens"].as_u64().unwrap() <= 8,
        "{details}"
    );
    for (name, value) in person.as_object().unwrap() {
        body[name] = value.clone();
    }
    check_person(text(server, &body).trim());
    // No thought at all.
    let off = json!({"reasoning": {"enabled": false}});
    let (_, answer) = server.post(CHAT, say("Plainly.", off));
    assert_eq!(answer["choices"][0]["message"]["content"], "Plainly.");
}

#[test]
fn tools_are_called_as_they_must_be() {
    let server = server();
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema()}});
    let tools = json!([tool("add_person"), tool("find_person")]);
    let named = json!({"type": "function", "function": {"name": "find_person"}});
    for (choice, reason) in [(json!("required"), "tool_calls"), (named.clone(), "stop")] {
        let more = json!({"tools": tools, "tool_choice": choice, "max_tokens": 300});
        let (status, answer) = server.post(CHAT, say("I will not.", more));
        assert_eq!(status, 200, "{answer}");
        let told = &answer["choices"][0];
        let call = &told["message"]["tool_calls"][0]["function"];
        check_person(
            call["arguments"]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}")),
        );
        if choice == named {
            assert_eq!(call["name"], "find_person");
        }
        assert_eq!(told["finish_reason"], reason);
        assert_eq!(told["message"]["content"], Value::Null);
    }
    // An answer in its form, or a call.
    let both = with(asking_for_a_person()[0].clone(), "tools", tools.clone());
    check_person(&text(
        server,
        &say("{\"name\": \"Bo\", \"age\": 7}", both.clone()),
    ));
    let script = "<tool_call>\n{\"name\": \"add_person\", \"arguments\": {\"name\": \"Bo\", \"age\": 7}}\n</tool_call>";
    let (_, answer) = server.post(CHAT, say(script, both));
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "add_person", "{answer}");
    // One call of two.
    let script = format!("{script}\n{script}");
    let one = json!({"tools": tools, "parallel_tool_calls": false});
    let (_, answer) = server.post(CHAT, say(&script, one));
    let calls = answer["choices"][0]["message"]["tool_calls"]
        .as_array()
        .unwrap();
    assert_eq!(calls.len(), 1, "{answer}");
}

#[test]
fn hostile_grammars_cost_one_request_its_answer() {
    let server = server();
    let deep = (0..100).fold(
        json!({"type": "string"}),
        |inner, _| json!({"items": inner}),
    );
    for (more, field) in [
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (
            json!({"guided_regex": "(a{1,1000}){1,1000}b"}),
            "guided_regex",
        ),
        (json!({"grammar": "root ::= ("}), "grammar"),
        (
            json!({"guided_grammar": "start: nothing"}),
            "guided_grammar",
        ),
        (json!({"guided_json": {"type": "nonsense"}}), "guided_json"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a",
            "strict": true, "schema": {"type": "object", "not": {"required": ["a"]}}}}}),
            "response_format",
        ),
    ] {
        let (status, answer) = server.post(CHAT, say("a", more.clone()));
        assert_eq!(status, 400, "{more}: {answer}");
        let param = answer["error"]["param"].as_str().unwrap();
        assert!(param.starts_with(field), "{answer}");
    }
    let (status, _) = server.post(
        CHAT,
        say("a", json!({"guided_json": deep, "max_tokens": 5})),
    );
    assert!(status == 200 || status == 400, "{status}");
    assert_eq!(
        server.post(CHAT, say("a", json!({}))).0,
        200,
        "the engine lives"
    );
}

#[test]
fn the_default_model_keeps_to_a_schema() {
    let server = shared_server();
    let mut body = json!({"model": "m", "seed": 1, "temperature": 1.0, "n": 4, "max_tokens": 100,
        "messages": [{"role": "user", "content": "Invent a person."}]});
    body["response_format"] = asking_for_a_person()[0]["response_format"].clone();
    let (status, answer) = server.post(CHAT, body);
    assert_eq!(status, 200, "{answer}");
    for choice in answer["choices"].as_array().unwrap() {
        if choice["finish_reason"] == "stop" {
            check_person(choice["message"]["content"].as_str().unwrap());
        }
    }
}
