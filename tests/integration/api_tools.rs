//! Calls of tools and thoughts over HTTP: a model that writes what it is told to.

use std::sync::OnceLock;

use ponder::api::ServerConfig;
use ponder::text::OutputFormat;
use serde_json::{Value, json};

use crate::api::{CHAT, sse, with};
use crate::scripted::{OR, say, start, thinking_hermes};
use crate::server::Server;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start(thinking_hermes(), ServerConfig::default()))
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": false}}})
}

fn tools() -> Value {
    json!({"tools": [tool("get_weather"), tool("get_time")]})
}

const OSLO: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
const ROME: &str =
    "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

/// The choice of an answer that must succeed.
fn choice(server: &Server, body: Value) -> Value {
    let (status, answer) = server.post(CHAT, body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0].clone()
}

/// A choice put together from its chunks, as SDKs do.
fn streamed(server: &Server, body: Value) -> Value {
    let body = with(body, "stream", json!(true));
    let (status, text) = server.post_with(CHAT, body.to_string(), &[]);
    assert_eq!(status, 200, "{text}");
    let mut message = json!({"role": null, "content": null, "calls": [], "reasoning": ""});
    let mut reason = Value::Null;
    for chunk in sse(&text) {
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        assert_eq!(reason, Value::Null, "nothing comes behind the end");
        reason = choice["finish_reason"].clone();
        let delta = &choice["delta"];
        if let Some(role) = delta.get("role") {
            assert_eq!(
                message["role"],
                Value::Null,
                "the role comes once, and first"
            );
            message["role"] = role.clone();
        }
        let mut add = |field: &str, text: &Value| {
            if let Some(text) = text.as_str() {
                let so_far = message[field].as_str().unwrap_or_default();
                message[field] = format!("{so_far}{text}").into();
            }
        };
        add("content", &delta["content"]);
        add("reasoning", &delta["reasoning_content"]);
        assert_eq!(delta["reasoning_content"], delta["reasoning"]);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let calls = message["calls"].as_array_mut().unwrap();
            if let Some(id) = call.get("id") {
                assert_eq!(calls.len(), index, "calls begin in their order");
                assert!(id.as_str().unwrap().starts_with("call_"));
                assert_eq!(call["type"], "function");
                assert_eq!(call["function"]["arguments"], "");
                calls.push(json!([call["function"]["name"], ""]));
                continue;
            }
            let more = call["function"]["arguments"].as_str().unwrap();
            let so_far = calls[index][1].as_str().unwrap();
            calls[index][1] = format!("{so_far}{more}").into();
        }
    }
    json!({"message": message, "finish_reason": reason})
}

/// The calls of a message, with the arguments as values.
fn calls(message: &Value) -> Value {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let call = |call: &Value| {
        let id = call["id"].as_str().unwrap();
        assert_eq!((id.len(), &id[..5]), (29, "call_"));
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        json!([call["function"]["name"], arguments])
    };
    calls.map(call).collect()
}

fn oslo() -> Value {
    json!(["get_weather", {"city": "Oslo"}])
}

fn rome() -> Value {
    json!(["get_time", {"city": "Rome"}])
}

#[test]
fn calls_are_told_from_text() {
    let server = server();
    for (script, content, expected, reason) in [
        (OSLO.to_owned(), json!(null), json!([oslo()]), "tool_calls"),
        (
            format!("{OSLO}\n{ROME}"),
            json!(null),
            json!([oslo(), rome()]),
            "tool_calls",
        ),
        (
            format!("Let me see.\n{OSLO}"),
            json!("Let me see."),
            json!([oslo()]),
            "tool_calls",
        ),
        (
            "Nothing to <call>.".to_owned(),
            json!("Nothing to <call>."),
            json!([]),
            "stop",
        ),
    ] {
        let body = say(&script, tools());
        let choice = choice(server, body.clone());
        let message = &choice["message"];
        let said = message["content"]
            .as_str()
            .map(|text| json!(text.trim_end()));
        assert_eq!(said.unwrap_or_default(), content, "{script}: {message}");
        assert_eq!(calls(message), expected, "{script}");
        assert_eq!(choice["finish_reason"], reason);
        // A stream says the same.
        let streamed = streamed(server, body);
        assert_eq!(streamed["finish_reason"], reason);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        assert_eq!(
            text(&streamed["message"]["content"]),
            text(&message["content"]),
            "{script}"
        );
        let told = streamed["message"]["calls"].as_array().unwrap().iter();
        let told = told.map(|call| {
            let arguments = call[1].as_str().unwrap();
            json!([call[0], serde_json::from_str::<Value>(arguments).unwrap()])
        });
        assert_eq!(told.collect::<Value>(), expected, "{script}");
    }
    // No tools are offered: the text is text, but for marks that are special tokens.
    let plain = choice(server, say(OSLO, json!({})));
    assert!(plain["message"].get("tool_calls").is_none());
    let none = with(tools(), "tool_choice", json!("none"));
    assert!(
        choice(server, say(OSLO, none))["message"]
            .get("tool_calls")
            .is_none()
    );
}

#[test]
fn a_cut_call_says_length() {
    let short = with(tools(), "max_tokens", json!(50));
    let choice = choice(server(), say(OSLO, short));
    assert_eq!(choice["finish_reason"], "length");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "get_weather");
    let arguments = call["arguments"].as_str().unwrap();
    assert!("{\"city\": \"Oslo\"}".starts_with(arguments), "{arguments}");
}

#[test]
fn each_choice_has_calls_of_its_own() {
    let script = format!("{OSLO}{OR}{ROME}{OR}Neither.");
    let mut body = say(&script, tools());
    for (name, value) in [
        ("n", json!(8)),
        ("temperature", json!(1.0)),
        ("seed", json!(1)),
    ] {
        body[name] = value;
    }
    let (status, answer) = server().post(CHAT, body);
    assert_eq!(status, 200, "{answer}");
    let mut ids = std::collections::BTreeSet::new();
    let mut seen = std::collections::BTreeSet::new();
    for choice in answer["choices"].as_array().unwrap() {
        let message = &choice["message"];
        let calls = calls(message);
        let expected = match calls.as_array().unwrap().is_empty() {
            true => "stop",
            false => "tool_calls",
        };
        assert_eq!(choice["finish_reason"], expected);
        seen.insert(calls.to_string());
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            assert!(
                ids.insert(call["id"].clone().to_string()),
                "ids are told apart"
            );
        }
    }
    assert!(seen.len() > 1, "{seen:?}");
}

#[test]
fn functions_are_answered_as_they_were() {
    let function = tool("get_weather")["function"].clone();
    let body = say(OSLO, json!({"functions": [function]}));
    let choice = choice(server(), body.clone());
    let call = json!({"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"});
    let arguments =
        |call: &Value| serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap();
    let told = &choice["message"]["function_call"];
    assert_eq!(told["name"], call["name"]);
    assert_eq!(arguments(told), arguments(&call));
    assert_eq!(choice["finish_reason"], "function_call");
    assert!(choice["message"].get("tool_calls").is_none());
}

#[test]
fn thoughts_are_told_from_answers() {
    let server = server();
    let script = "<think>\nIs it so?\n</think>\n\nIt is.";
    let (_, answer) = server.post(CHAT, say(script, json!({})));
    let message = &answer["choices"][0]["message"];
    let trimmed = |field: &str| message[field].as_str().unwrap().trim().to_owned();
    assert_eq!(trimmed("content"), "It is.");
    assert_eq!(trimmed("reasoning_content"), "Is it so?");
    assert_eq!(trimmed("reasoning"), "Is it so?");
    let details = &answer["usage"]["completion_tokens_details"];
    let num_thoughts = details["reasoning_tokens"].as_u64().unwrap();
    assert!((10..=16).contains(&num_thoughts), "{details}");
    // The prompt may open the thought.
    let opened = json!({"chat_template_kwargs": {"opens": true}});
    let body = say("Is it so?\n</think>\n\nIt is.", opened);
    let choice = choice(server, body.clone());
    assert_eq!(
        choice["message"]["content"].as_str().unwrap().trim(),
        "It is."
    );
    let streamed = streamed(server, body.clone());
    for (field, told) in [("content", "content"), ("reasoning_content", "reasoning")] {
        assert_eq!(streamed["message"][told], choice["message"][field]);
    }
    // Thoughts that nobody wants count, and are not sent.
    for hidden in [
        ("include_reasoning", json!(false)),
        ("reasoning", json!({"exclude": true})),
    ] {
        let (_, answer) = server.post(CHAT, with(body.clone(), hidden.0, hidden.1));
        let message = &answer["choices"][0]["message"];
        assert!(message.get("reasoning_content").is_none(), "{message}");
        assert_eq!(message["content"].as_str().unwrap().trim(), "It is.");
        let details = &answer["usage"]["completion_tokens_details"];
        assert!(details["reasoning_tokens"].as_u64().unwrap() > 5);
    }
    // A thought, then a call.
    let body = say(&format!("<think>\nHm.\n</think>\n{OSLO}"), tools());
    let choice = self::choice(server, body);
    assert_eq!(calls(&choice["message"]), json!([oslo()]));
    assert_eq!(
        choice["message"]["reasoning_content"]
            .as_str()
            .unwrap()
            .trim(),
        "Hm."
    );
    assert_eq!(choice["finish_reason"], "tool_calls");
}

#[test]
fn searches_see_and_tell_calls() {
    let script = format!("{OSLO}{OR}{ROME}");
    let mut body = say(&script, tools());
    body["temperature"] = json!(1.0);
    body["seed"] = json!(3);
    body["search"] = json!({"strategy": "best_of_n", "n": 6,
        "reward": {"kind": "verifier", "type": "regex", "pattern": "get_time"}});
    body["store"] = json!(true);
    let (status, answer) = server().post(CHAT, body.clone());
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(
        calls(&choice["message"]),
        json!([rome()]),
        "rewards read calls"
    );
    assert_eq!(choice["finish_reason"], "tool_calls");
    let trace = answer["search"]["trace_id"].as_str().unwrap();
    let (_, kept) = server().get(&format!("/v1/traces/{trace}"));
    assert!(
        kept.contains("<tool_call>"),
        "traces keep the model's own text"
    );
    let streamed = streamed(server(), body);
    assert_eq!(streamed["message"]["calls"][0][0], "get_time");
    assert_eq!(streamed["finish_reason"], "tool_calls");
}

#[test]
fn streams_of_searches_show_no_marks() {
    let mut body = say(&format!("Look:\n{OSLO}"), tools());
    body["temperature"] = json!(1.0);
    body["search"] = json!({"strategy": "beam", "n": 2, "branch": 2, "reward": {"kind": "likelihood"},
        "step": {"delimiter": "\n"}});
    let streamed = streamed(server(), body);
    let message = &streamed["message"];
    assert_eq!(message["content"].as_str().unwrap().trim(), "Look:");
    assert_eq!(message["calls"][0][0], "get_weather");
}

#[test]
fn a_session_s_answer_is_told_as_calls() {
    let mut body = say(OSLO, tools());
    body["temperature"] = json!(1);
    let (status, session) = server().post("/v1/branches", body);
    assert_eq!(status, 200, "{session}");
    let path = format!("/v1/branches/{}", session["id"].as_str().unwrap());
    let expand = json!({"nodes": [session["root"]], "n": 1});
    let (status, expanded) = server().post(&format!("{path}/generate"), expand);
    assert_eq!(status, 200, "{expanded}");
    let node = &expanded["data"][0];
    assert_eq!(
        node["text"], OSLO,
        "clients that search see the model's own text"
    );
    let (_, answer) = server().post(&format!("{path}/commit"), json!({"node": node["node"]}));
    let choice = &answer["choices"][0];
    assert_eq!(calls(&choice["message"]), json!([oslo()]), "{answer}");
    assert_eq!(choice["finish_reason"], "tool_calls");
}

#[test]
fn what_cannot_be_is_refused() {
    let plain = start(OutputFormat::default(), ServerConfig::default());
    for (server, more, field) in [
        (&plain, tools(), "tools"),
        (
            &plain,
            json!({"thinking_token_budget": 5}),
            "thinking_token_budget",
        ),
        (
            &plain,
            json!({"reasoning": {"max_tokens": 5}}),
            "reasoning.max_tokens",
        ),
        (
            server(),
            json!({"tools": [tool("a"), tool("a")]}),
            "tools[1].function.name",
        ),
        (
            server(),
            with(
                tools(),
                "tool_choice",
                json!({"type": "function",
            "function": {"name": "x"}}),
            ),
            "tool_choice",
        ),
        (
            server(),
            json!({"response_format": "json"}),
            "response_format",
        ),
        (
            server(),
            json!({"guided_regex": "a", "grammar": "root ::= \"a\""}),
            "grammar",
        ),
    ] {
        let (status, answer) = server.post(CHAT, say("a", more.clone()));
        assert_eq!(status, 400, "{more}: {answer}");
        assert_eq!(answer["error"]["param"], field, "{answer}");
    }
    // Ten megabytes of tools.
    let long = "a".repeat(10 << 20);
    let big = json!({"tools": [{"type": "function", "function":
        {"name": "a", "description": long}}]});
    let (status, answer) = server().post(CHAT, say("a", big));
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("tools")),
        "{answer}"
    );
    // Sessions of branches have none of it.
    for field in [
        "response_format",
        "guided_regex",
        "tool_choice",
        "thinking_token_budget",
    ] {
        let (status, answer) = server().post("/v1/branches", say("a", json!({field: "x"})));
        assert_eq!(status, 400);
        assert_eq!(answer["error"]["param"], field);
    }
}

/// A small model leaves the mark out; what is enforced is enforced so, too.
#[test]
fn calls_without_marks() {
    let server = server();
    let bare = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}";
    let mut strict = tools();
    strict["tools"][0]["function"]["strict"] = json!(true);
    strict["max_tokens"] = json!(200);
    for more in [tools(), strict.clone()] {
        let choice = choice(server, say(bare, more));
        assert_eq!(calls(&choice["message"]), json!([oslo()]));
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
    for script in [OSLO, bare] {
        let wrong = script.replace("\"city\"", "\"town\"");
        let (_, answer) = server.post(CHAT, say(&wrong, strict.clone()));
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        let arguments = call["arguments"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"));
        assert!(arguments.starts_with("{\"city\": \""), "{answer}");
    }
    // Made-up marks are not.
    let made_up = format!("<tools>{bare}</tools>{OR}Sunny!");
    let said = choice(server, say(&made_up, strict));
    assert_eq!(said["message"]["content"], "Sunny!");
}
