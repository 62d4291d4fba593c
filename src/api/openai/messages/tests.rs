use serde_json::{Value, json};

use super::normalize::place_systems;
use super::*;
use crate::text::ChatTemplate;

const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
const TOOLS: &str = "{% for m in messages %}{% if m.role == 'tool' %}{% endif %}{{ m.content }}\
    {% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.to_owned(), String::new(), String::new()).unwrap()
}

fn normalized(source: &str, messages: Value) -> Value {
    let Value::Array(mut messages) = messages else {
        panic!("a list of messages");
    };
    check_messages(&messages).unwrap();
    let template = template(source);
    normalize(&mut messages, &template).unwrap();
    place_systems(&mut messages, template.knows());
    messages.into()
}

/// The field that an error names.
fn refused(source: &str, message: Value) -> String {
    let mut messages = vec![message];
    let error = check_messages(&messages).err();
    let error = error.or_else(|| normalize(&mut messages, &template(source)).err());
    let error = error.unwrap_or_else(|| panic!("{messages:?} is accepted"));
    let param = error.param.unwrap();
    assert!(error.message.starts_with(&param), "{}", error.message);
    param
}

fn call(id: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
}

fn check_refused(cases: &[(Value, &str)]) {
    for (message, field) in cases {
        let param = format!("messages[0]{field}");
        assert_eq!(refused(TOOLS, message.clone()), param, "{message}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let user = |content: Value| json!({"role": "user", "content": content});
    check_refused(&[
        (json!("hi"), ""),
        (json!({"content": "x"}), ".role"),
        (json!({"role": "sytem", "content": "x"}), ".role"),
        (json!({"role": 7, "content": "x"}), ".role"),
        (json!({"role": "user"}), ".content"),
        (user(json!(null)), ".content"),
        (user(json!(7)), ".content"),
        (json!({"role": "system", "content": null}), ".content"),
        (json!({"role": "assistant", "content": null}), ".content"),
        (json!({"role": "assistant", "tool_calls": []}), ".content"),
        (json!({"role": "tool", "tool_call_id": "x"}), ".content"),
        (user(json!(["x"])), ".content[0]"),
        (
            user(json!([{"type": "text", "text": "a"}, {"text": "b"}])),
            ".content[1].type",
        ),
        (user(json!([{"type": "input_audio"}])), ".content[0].type"),
        (user(json!([{"type": "text"}])), ".content[0].text"),
        (
            user(json!([{"type": "refusal", "refusal": 1}])),
            ".content[0].refusal",
        ),
        (json!({"role": "user", "content": "x", "name": 1}), ".name"),
        (
            json!({"role": "tool", "content": "x", "tool_call_id": 1}),
            ".tool_call_id",
        ),
        (
            json!({"role": "assistant", "content": "x", "reasoning": {}}),
            ".reasoning",
        ),
        (
            json!({"role": "assistant", "content": "x", "audio": {"id": "a"}}),
            ".audio",
        ),
    ]);
    let roles = check_messages(&[json!({"role": "bot"})]).unwrap_err();
    assert!(roles.message.contains("developer"), "{}", roles.message);
    assert!(check_messages(&[]).is_err());
}

#[test]
fn what_is_wrong_with_calls_is_named() {
    let calls = |calls: Value| json!({"role": "assistant", "content": null, "tool_calls": calls});
    check_refused(&[
        (
            json!({"role": "user", "content": "x", "tool_calls": [call("a", json!("{}"))]}),
            ".tool_calls",
        ),
        (
            json!({"role": "user", "content": "x", "function_call": {"name": "f"}}),
            ".function_call",
        ),
        (calls(json!({})), ".tool_calls"),
        (calls(json!(["f"])), ".tool_calls[0]"),
        (
            calls(json!([{"id": 1, "function": {"name": "f"}}])),
            ".tool_calls[0].id",
        ),
        (
            calls(json!([{"type": "custom", "custom": {}}])),
            ".tool_calls[0].type",
        ),
        (calls(json!([{"id": "a"}])), ".tool_calls[0].function"),
        (
            calls(json!([{"function": {"name": ""}}])),
            ".tool_calls[0].function.name",
        ),
        (
            calls(json!([call("a", json!("{\"a\":"))])),
            ".tool_calls[0].function.arguments",
        ),
        (
            calls(json!([call("a", json!("[1]"))])),
            ".tool_calls[0].function.arguments",
        ),
        (
            calls(json!([call("a", json!("{}")), call("b", json!(7))])),
            ".tool_calls[1].function.arguments",
        ),
        (
            json!({"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "x"}}),
            ".function_call.arguments",
        ),
    ]);
}

/// Arguments are read only here: their values must be bounded here, too.
#[test]
fn arguments_are_bounded() {
    let many = format!("{{\"a\": [{}0]}}", "0,".repeat(1 << 17));
    let text = format!("{{\"a\": \"{}\"}}", ",[{:".repeat(1 << 17));
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    let message =
        |arguments: &str| json!({"role": "assistant", "tool_calls": [call("a", arguments.into())]});
    for refused_text in [&many, &deep] {
        let param = refused(TOOLS, message(refused_text));
        assert_eq!(param, "messages[0].tool_calls[0].function.arguments");
    }
    normalized(TOOLS, json!([message(&text)]));
}

#[test]
fn history_becomes_what_templates_read() {
    let history = json!([
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "reasoning": "Hm.", "tool_calls": [
            call("call_1", json!("{\"city\": \"Oslo\", \"n\": 1}")), {"function": {"name": "g"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "refusal": "No."},
    ]);
    assert_eq!(
        normalized(TOOLS, history),
        json!([
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [
                call("call_1", json!({"city": "Oslo", "n": 1})),
                {"function": {"name": "g", "arguments": {}}, "id": "call00001", "type": "function"}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "assistant", "content": "No."},
        ])
    );
    let developer = "{% for m in messages %}{% if m.role == 'developer' %}{{ m.content }}{% endif %}{% endfor %}";
    let kept = normalized(developer, json!([{"role": "developer", "content": "x"}]));
    assert_eq!(kept[0]["role"], "developer");
}

#[test]
fn thoughts_have_the_name_that_a_template_reads() {
    // As gpt-oss' template: a thought or a content beside calls.
    let source = "{% for m in messages %}{% if m.tool_calls and m.content and m.thinking %}\
        {{ raise_exception('both') }}{% endif %}{{ m.thinking }}{{ m.content }}{% endfor %}";
    let thinks = |content: Value, calls: Value| json!([{"role": "assistant", "content": content, "reasoning": "Hm.", "tool_calls": calls}]);
    let calls = || json!([call("call_1", json!("{}"))]);
    for (content, calls, thinking) in [
        (json!("Four."), json!([]), json!("Hm.")),
        (json!(null), calls(), json!("Hm.")),
        (json!("I look."), calls(), Value::Null),
    ] {
        let message = &normalized(source, thinks(content, calls))[0];
        assert_eq!(message["thinking"], thinking, "{message}");
        assert_eq!(message["reasoning_content"], "Hm.");
    }
    let others = normalized(TOOLS, thinks(json!("Four."), json!([])));
    assert_eq!(others[0]["thinking"], Value::Null);
}

#[test]
fn older_function_calls_are_calls() {
    let history = json!([
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
    ]);
    assert_eq!(
        normalized(TOOLS, history),
        json!([
            {"role": "assistant", "content": null, "tool_calls": [call("call00001", json!({}))]},
            {"role": "tool", "name": "f", "content": "1", "tool_call_id": "call00001"},
        ])
    );
}

#[test]
fn ids_and_arguments_are_what_a_template_wants() {
    let source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}\
        {% if c.id|length != 9 %}{{ raise_exception('nine') }}{% endif %}\
        {{ c.function.name + c.function.arguments }}{% endfor %}{% if m.role == 'tool' %}{% endif %}{% endfor %}";
    let history = json!([
        {"role": "assistant", "content": "", "tool_calls": [call("call_long", json!({"a": [1]})), call("abcdefghi", json!("{}"))]},
        {"role": "tool", "tool_call_id": "call_long", "content": "1"},
    ]);
    let history = normalized(source, history);
    assert_eq!(
        history[0]["tool_calls"][0],
        call("call00001", json!("{\"a\":[1]}"))
    );
    assert_eq!(history[0]["tool_calls"][1]["id"], "abcdefghi");
    assert_eq!(history[1]["tool_call_id"], "call00001");
}

#[test]
fn templates_without_tools_see_calls_as_text() {
    let history = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call("a", json!("{\"b\": 1}"))]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "user", "content": "So?"},
    ]);
    assert_eq!(
        normalized(PLAIN, history),
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant",
                "content": "Wait.\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"b\":1}}\n</tool_call>"},
            {"role": "user", "content": "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"},
            {"role": "user", "content": "So?"},
        ])
    );
    let mut messages = vec![json!({"role": "user", "content": "Hi"})];
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    tools::offer(&mut messages, &tools);
    let text = messages[0]["content"].as_str().unwrap();
    assert_eq!(messages[0]["role"], "system");
    assert!(
        text.contains(&format!("<tools>\n{}\n</tools>", tools[0])),
        "{text}"
    );
    tools::offer(&mut messages, &[]);
    assert_eq!(messages.len(), 2);
}

#[test]
fn system_messages_are_where_the_template_shows_them() {
    let (a, b, user) = (
        json!({"role": "system", "content": "a"}),
        json!({"role": "developer", "content": "b"}),
        json!({"role": "user", "content": "u"}),
    );
    let all = json!([a, b, user]);
    let system = |text: &str| json!({"role": "system", "content": text});
    assert_eq!(
        normalized(PLAIN, all.clone()),
        json!([a, system("b"), user])
    );
    let one = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('one') }}{% endif %}{{ m.content }}{% endfor %}";
    assert_eq!(
        normalized(one, all.clone()),
        json!([system("a\n\nb"), user])
    );
    let none = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}\
        {% for m in messages %}{{ m.content }}{% endfor %}";
    let folded = json!([{"role": "user", "content": "a\n\nb\n\nu"}]);
    assert_eq!(normalized(none, all), folded);
    let alone = normalized(none, json!([a]));
    assert_eq!(alone, json!([{"role": "user", "content": "a"}]));
}
