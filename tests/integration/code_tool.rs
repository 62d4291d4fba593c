//! Code as a tool over HTTP: a scripted model writes the blocks, the sandbox runs them.

use std::sync::OnceLock;

use ponder::api::ServerConfig;
use ponder::reward::{Programs, PythonRunner, RewardResources};
use ponder::search::STRATEGIES;
use ponder_sandbox::{Limits, Sandbox};
use serde_json::{Value, json};

use crate::api::{CHAT, sse, with};
use crate::scripted::{OR, say, start, start_with, thinking_hermes};
use crate::server::Server;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| running(2))
}

/// A server that runs so many programs at once.
fn running(num_programs: usize) -> Server {
    let exe = std::path::PathBuf::from(env!("CARGO_BIN_EXE_ponder"));
    let limits = Limits {
        // Other tests take the cores.
        nice: 0,
        wall: std::time::Duration::from_secs(60),
        ..Limits::default()
    };
    let sandbox = Sandbox::new(exe, None, limits).unwrap();
    let rewards = RewardResources {
        python: Some(PythonRunner::new(
            sandbox,
            Programs::new(num_programs, false),
        )),
        ..RewardResources::default()
    };
    start_with(thinking_hermes(), ServerConfig::default(), rewards)
}

/// A block of Python, and what follows it once it has run.
fn block(code: &str, output: &str) -> [String; 2] {
    [
        format!("```python\n{code}\n```"),
        format!("\n```output\n{output}```\n"),
    ]
}

fn code(more: Value) -> Value {
    let mut tool = json!({"type": "code_interpreter"});
    for (name, value) in more.as_object().unwrap() {
        tool[name] = value.clone();
    }
    json!({"tools": [tool]})
}

fn answered(body: &Value) -> Value {
    let (status, answer) = server().post(CHAT, body.clone());
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

fn content(answer: &Value) -> &str {
    let content = &answer["choices"][0]["message"]["content"];
    content.as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// An answer that computes twice, the second time with what the first block left.
fn twice() -> (String, [String; 2]) {
    let [first, printed] = block("x = 6 * 7\nprint(x)", "42\n");
    let [second, shown] = block("x + 1", "43\n");
    let text = format!("I compute.\n{first}{printed}Once more:\n{second}{shown}So it is 43.");
    (text, [printed, shown])
}

#[test]
fn blocks_run_and_their_outputs_stand_in_the_answer() {
    let (text, outputs) = twice();
    let answer = answered(&say(&text, code(json!({}))));
    assert_eq!(content(&answer), text);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let lens = outputs.each_ref().map(String::len);
    let expected = json!([
        {"type": "code_interpreter", "code": "x = 6 * 7\nprint(x)\n", "output": "42\n",
            "status": "completed", "text": outputs[0], "num_tokens": lens[0]},
        {"type": "code_interpreter", "code": "x + 1\n", "output": "43\n",
            "status": "completed", "text": outputs[1], "num_tokens": lens[1]},
    ]);
    assert_eq!(choice["ponder_tool_outputs"], expected);
    // A token is a byte; the end is one, too.
    let num_inserted = lens[0] + lens[1];
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], text.len() - num_inserted + 1);
    assert_eq!(
        usage["completion_tokens_details"]["tool_output_tokens"],
        num_inserted
    );
    // Without the tool the model has the last word on what a program prints.
    let wrong = text.replace("43\n", "44\n");
    let alone = answered(&say(&wrong, json!({})));
    assert_eq!(content(&alone), wrong);
    assert!(alone["choices"][0]["ponder_tool_outputs"].is_null());
    assert!(alone["usage"]["completion_tokens_details"]["tool_output_tokens"].is_null());
}

#[test]
fn streams_mark_what_programs_print() {
    let (text, outputs) = twice();
    let body = with(say(&text, code(json!({}))), "stream", json!(true));
    let chunks = sse(&server().post_with(CHAT, body.to_string(), &[]).1);
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    let said: String = choices
        .clone()
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect();
    assert_eq!(said, text);
    let marked = choices.filter(|choice| !choice["ponder_tool_outputs"].is_null());
    let marked: Vec<&Value> = marked.collect();
    assert_eq!(marked.len(), 2);
    for (choice, output) in marked.into_iter().zip(&outputs) {
        assert_eq!(choice["delta"], json!({"content": output}));
        assert_eq!(choice["ponder_tool_outputs"][0]["text"], *output);
    }
}

#[test]
fn errors_limits_and_empty_outputs_are_told() {
    for (code_text, output, status, more) in [
        (
            "1 / 0",
            "ZeroDivisionError: division by zero\n",
            "failed",
            json!({}),
        ),
        ("x = 1", "", "completed", json!({})),
        (
            "print('x' * 50)",
            "xxxxxxxxxx\n[cut after 10 bytes]\n",
            "completed",
            json!({"max_output_bytes": 10}),
        ),
    ] {
        let [before, after] = block(code_text, output);
        let text = format!("{before}{after}Done.");
        let answer = answered(&say(&text, code(more)));
        assert_eq!(content(&answer), text);
        let outputs = &answer["choices"][0]["ponder_tool_outputs"];
        assert_eq!(
            (&outputs[0]["status"], &outputs[0]["output"]),
            (&json!(status), &json!(output))
        );
    }
    // The kernel or the interpreter ends it, whoever notices first.
    let endless = "```python\nwhile True: pass\n```";
    let answer = answered(&say(endless, code(json!({"timeout_ms": 100}))));
    let output = &answer["choices"][0]["ponder_tool_outputs"][0];
    assert_eq!(output["status"], "timed_out");
    let said = output["output"].as_str().unwrap();
    assert!(said.starts_with("TimeoutError: took more than"), "{said}");
    // No program closes its own fence, and none names a control token.
    let before = "```python\nprint('```')\nprint('<|im_' + 'end|>')\n```";
    let text = format!("{before}\n````output\n```\n<|im_end|>\n````\n");
    let answer = answered(&say(before, code(json!({}))));
    assert_eq!(content(&answer), text);
}

#[test]
fn calls_tokens_and_stop_strings_are_limited() {
    let (text, outputs) = twice();
    // The second block is not run: what follows it is the model's own.
    let answer = answered(&say(&text, code(json!({"max_calls": 1}))));
    assert_eq!(content(&answer), text);
    assert_eq!(
        answer["choices"][0]["ponder_tool_outputs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // What programs print is free.
    let own = text.len() - outputs[0].len() - outputs[1].len();
    let limited = |max_tokens: usize, stop: &str| {
        let body = with(say(&text, code(json!({}))), "max_tokens", json!(max_tokens));
        answered(&with(body, "stop", json!([stop])))
    };
    let answer = limited(own, "never");
    assert_eq!(content(&answer), text);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // Behind the last token of a block nothing can follow: it does not run.
    let end = text.find("\n```output").unwrap();
    let answer = limited(end, "never");
    assert_eq!(content(&answer), &text[..end]);
    assert!(answer["choices"][0]["ponder_tool_outputs"].is_null());
    // A stop string counts in what the model writes, and not across an output.
    for (stop, expected) in [
        ("42", text.as_str()),
        ("```\n\n", text.as_str()),
        ("```\nOnce", text.as_str()),
        ("43", &text[..text.len() - "43.".len()]),
        ("Once", &text[..text.find("Once").unwrap()]),
        ("x + 1\n```", &text[..text.find("x + 1").unwrap()]),
    ] {
        let answer = limited(1000, stop);
        assert_eq!(content(&answer), expected, "{stop:?}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn each_choice_calls_for_itself() {
    let answer = |x: &str, y: &str| {
        let [block, output] = block(&format!("print({x})"), y);
        format!("{block}{output}{y}")
    };
    let texts = [answer("1 + 1", "2\n"), answer("2 * 3", "6\n")];
    let mut body = say(&texts.join(OR), code(json!({})));
    for (name, value) in [
        ("n", json!(6)),
        ("temperature", json!(1.0)),
        ("seed", json!(4)),
        ("logprobs", json!(true)),
    ] {
        body[name] = value;
    }
    let first = answered(&body);
    let mut seen = [0; 2];
    for choice in first["choices"].as_array().unwrap() {
        let content = choice["message"]["content"].as_str().unwrap();
        let which = texts.iter().position(|text| text == content);
        seen[which.unwrap_or_else(|| panic!("{content:?}"))] += 1;
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        let tokens: String = entries
            .iter()
            .filter_map(|it| it["token"].as_str())
            .collect();
        let output = choice["ponder_tool_outputs"][0]["text"].as_str().unwrap();
        let own = content.replacen(output, "", 1);
        assert!(tokens.starts_with(&own), "{tokens:?}");
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    let again = answered(&body);
    assert_eq!(first["choices"], again["choices"]);
}

#[test]
fn every_strategy_and_grammar_may_call() {
    let [block, output] = block("print(6 * 7)", "42\n");
    let text = format!("First.\n\n{block}{output}\nThe answer is 42.");
    for strategy in STRATEGIES.iter().map(|strategy| strategy.name()) {
        let search = json!({"strategy": strategy, "reward": {"kind": "likelihood"},
            "return_tree": true});
        let mut body = with(say(&text, code(json!({}))), "search", search);
        body["temperature"] = json!(0.7);
        let answer = answered(&body);
        assert_eq!(content(&answer), text, "{strategy}");
        let outputs = &answer["choices"][0]["ponder_tool_outputs"];
        assert_eq!(outputs[0]["text"], output, "{strategy}");
        let tree = &answer["search"]["tree"];
        let inserted = tree["nodes"].as_array().unwrap().iter();
        let inserted = inserted.flat_map(|node| node["inserted"].as_array().into_iter().flatten());
        assert!(inserted.clone().count() > 0, "{strategy}");
        for it in inserted {
            assert_eq!(it["code"], "print(6 * 7)\n", "{strategy}");
        }
        // Streams have the same text in the same order.
        let streamed = with(body, "stream", json!(true));
        let chunks = sse(&server().post_with(CHAT, streamed.to_string(), &[]).1);
        let said = chunks.iter();
        let said: String = said
            .filter_map(|it| it["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(said, text, "{strategy}");
    }
    // A grammar is about what the model writes.
    let grammar = json!({"guided_regex": "```python\nprint\\(1\\)\n```So it is [0-9]\\."});
    let mut body = say("Hello!", code(json!({})));
    body["guided_regex"] = grammar["guided_regex"].clone();
    let said = answered(&body);
    let said = content(&said);
    let before = "```python\nprint(1)\n```\n```output\n1\n```\nSo it is ";
    assert!(
        said.starts_with(before) && said.len() == before.len() + 2,
        "{said:?}"
    );
}

#[test]
fn thoughts_may_call_and_hold_what_is_printed() {
    let [block, output] = block("print(6 * 7)", "42\n");
    let script = format!("<think>\nLet me see.\n{block}{output}I see.\n</think>\nDone.");
    let answer = answered(&say(&script, code(json!({}))));
    let message = &answer["choices"][0]["message"];
    let thought = message["reasoning_content"].as_str().unwrap();
    assert_eq!(thought, format!("Let me see.\n{block}{output}I see."));
    assert_eq!(message["content"], "Done.");
}

#[test]
fn traces_tell_what_no_trainer_may_teach() {
    let (text, outputs) = twice();
    let body = with(say(&text, code(json!({}))), "store", json!(true));
    let id = answered(&body)["trace_id"].as_str().unwrap().to_owned();
    let get = |format: &str| -> Value {
        let (status, body) = server().get(&format!("/v1/traces/{id}{format}"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let node = &get("")["nodes"][1];
    assert_eq!(node["text"], text);
    let inserted = node["inserted"].as_array().unwrap();
    assert_eq!(inserted.len(), 2);
    let logprobs = node["token_logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), node["token_ids"].as_array().unwrap().len());
    let row = &get("?format=sft")["data"][0];
    for (span, output) in row["inserted"].as_array().unwrap().iter().zip(&outputs) {
        let [from, to] = [0, 1].map(|at| span[at].as_u64().unwrap() as usize);
        assert_eq!(text[from..to], **output);
        assert_eq!(row["messages"][1]["content"], text);
    }
}

#[test]
fn branches_go_on_behind_what_their_code_printed() {
    let [block, output] = block("print(6 * 7)", "42\n");
    let text = format!("First.\n\n{block}{output}It is 42.");
    let mut body = say(&text, code(json!({})));
    body["temperature"] = json!(0.7);
    let (status, opened) = server().post("/v1/branches", body);
    assert_eq!(status, 200, "{opened}");
    let id = opened["id"].as_str().unwrap();
    let call = |what: &str, body: Value| {
        let (status, answer) = server().post(&format!("/v1/branches/{id}/{what}"), body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let step = |node: u64| {
        let more = json!({"nodes": [node], "step": {"delimiter": "\n\n"}});
        call("generate", more)["data"][0].clone()
    };
    assert_eq!(step(0)["text"], "First.\n\n");
    let second = step(1);
    assert_eq!(second["text"], format!("{block}{output}"));
    assert_eq!(second["inserted"][0]["output"], "42\n");
    assert_eq!(step(2)["text"], "It is 42.");
    let done = call("commit", json!({"node": 3}));
    assert_eq!(content(&done), text);
    assert_eq!(done["choices"][0]["ponder_tool_outputs"][0]["text"], output);
}

#[test]
fn the_operator_and_the_request_say_what_is_run() {
    let refused = |server: &Server, path: &str, body: Value, param: &str, says: &str| {
        let (status, error) = server.post(path, body);
        assert_eq!(
            (status, error["error"]["param"].as_str()),
            (400, Some(param)),
            "{error}"
        );
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    };
    let closed = start(thinking_hermes(), ServerConfig::default());
    let ask = |more: Value| say("Hello", code(more));
    let flag = "--allow-code-execution";
    refused(&closed, CHAT, ask(json!({})), "tools[0]", flag);
    let completion = json!({"prompt": "a", "tools": [{"type": "code_interpreter"}]});
    refused(
        &closed,
        "/v1/completions",
        completion.clone(),
        "tools[0]",
        flag,
    );
    let open = server();
    refused(
        open,
        CHAT,
        ask(json!({"files": 1})),
        "tools[0].files",
        "not known",
    );
    refused(
        open,
        CHAT,
        ask(json!({"max_calls": 0})),
        "tools[0].max_calls",
        "from 1 to 64",
    );
    let function = json!({"type": "function", "function": {"name": "f"}});
    let both = json!([{"type": "code_interpreter"}, {"type": "web_search"}]);
    let body = with(say("Hello", json!({})), "tools", both);
    refused(open, CHAT, body, "tools[1].type", "code_interpreter");
    let body = with(completion, "tools", json!([function]));
    refused(
        open,
        "/v1/completions",
        body,
        "tools[0]",
        "functions need a chat",
    );
    // A tool that may not be called is none.
    let [block, _] = block("print(1)", "");
    let none = with(say(&block, code(json!({}))), "tool_choice", json!("none"));
    assert_eq!(content(&answered(&none)), block);
    // Where nothing is written that runs, nothing changes.
    assert_eq!(content(&answered(&ask(json!({})))), "Hello");
}

#[test]
fn a_deadline_ends_a_program() {
    let body = say(
        "```python\nimport time\ntime.sleep(50)\n```",
        code(json!({})),
    );
    let headers = [("Request-Timeout-Ms", "1500")];
    let started = std::time::Instant::now();
    let (status, _) = server().post_with(CHAT, body.to_string(), &headers);
    assert_eq!(status, 408);
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn a_response_has_calls_as_items_that_can_be_sent_back() {
    let (text, outputs) = twice();
    let post = |path: &str, body: Value| {
        let (status, answer) = server().post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let tools = json!([{"type": "code_interpreter", "container": {"type": "auto"}}]);
    let body = json!({"model": "m", "temperature": 0, "input": text, "tools": tools,
        "include": ["code_interpreter_call.outputs"]});
    let response = post("/v1/responses", body.clone());
    let output = response["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().filter_map(|it| it["type"].as_str()).collect();
    let call = "code_interpreter_call";
    assert_eq!(kinds, ["message", call, "message", call, "message"]);
    let first = json!({"id": output[1]["id"], "type": call, "status": "completed",
        "code": "x = 6 * 7\nprint(x)\n", "container_id": output[1]["container_id"],
        "outputs": [{"type": "logs", "logs": "42\n"}]});
    assert_eq!(output[1], first);
    let said = |at: usize| output[at]["content"][0]["text"].as_str().unwrap();
    let whole = [said(0), &outputs[0], said(2), &outputs[1], said(4)].concat();
    assert_eq!(whole, text);
    let num_inserted = outputs[0].len() + outputs[1].len();
    let details = &response["usage"]["output_tokens_details"];
    assert_eq!(details["tool_output_tokens"], num_inserted);
    // What comes back is the text that it was.
    let count = |body: Value| post("/v1/responses/input_tokens", body)["input_tokens"].clone();
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = json!({"role": "assistant", "content": text});
    let next = user("Again.");
    let expected = count(json!({"model": "m", "input": [user(&text), assistant, next]}));
    let items: Vec<&Value> = output.iter().collect();
    let first = user(&text);
    let input: Vec<&Value> = [&first].into_iter().chain(items).chain([&next]).collect();
    assert_eq!(count(json!({"model": "m", "input": input})), expected);
    let by_id = json!({"model": "m", "input": "Again.", "previous_response_id": response["id"]});
    assert_eq!(count(by_id), expected);
    // A limit of all calls is one of these.
    let limited = with(body, "max_tool_calls", json!(1));
    let kinds = post("/v1/responses", limited)["output"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(kinds, 3);
}

#[test]
fn who_hangs_up_ends_a_program() {
    // One at a time: another one runs when the first is gone.
    let server = running(1);
    let body = say(
        "```python\nimport time\ntime.sleep(50)\n```",
        code(json!({})),
    );
    let body = with(body, "stream", json!(true));
    server.runtime.block_on(async {
        let url = format!("{}{CHAT}", server.url);
        let request = reqwest::Client::new().post(url).body(body.to_string());
        let mut response = request.send().await.unwrap();
        let mut num_ticks = 0;
        while num_ticks < 6 {
            let chunk = response.chunk().await.unwrap().unwrap();
            num_ticks += chunk.iter().filter(|byte| **byte == b'`').count();
        }
    });
    let [before, after] = block("print(1)", "1\n");
    let text = format!("{before}{after}");
    let started = std::time::Instant::now();
    let (status, answer) = server.post(CHAT, say(&text, code(json!({}))));
    assert_eq!((status, content(&answer)), (200, text.as_str()));
    // The first one may run for 22 s.
    assert!(started.elapsed().as_secs() < 18);
}

#[test]
fn a_block_may_begin_before_the_answer() {
    let [block, output] = block("print(6 * 7)", "42\n");
    let begun = "```python\n";
    let script = format!("{block}{output}It is 42.");
    for search in [Value::Null, json!({"strategy": "best_of_n", "n": 2})] {
        let mut body = say(&script, code(json!({})));
        let messages = body["messages"].as_array_mut().unwrap();
        messages.push(json!({"role": "assistant", "content": begun}));
        body["continue_final_message"] = json!(true);
        if !search.is_null() {
            body["temperature"] = json!(0.7);
            body["search"] = search;
        }
        assert_eq!(content(&answered(&body)), &script[begun.len()..]);
    }
    let metrics = server().get("/metrics").1;
    assert!(metrics.contains("ponder_code_calls_total{"), "{metrics}");
}
