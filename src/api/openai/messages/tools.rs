//! Tools for models whose templates do not have them, in Hermes' format.

use serde_json::{Value, json};

/// Says in a system message which tools there are and how to call them.
pub(super) fn offer(messages: &mut Vec<Value>, tools: &[Value]) {
    if tools.is_empty() {
        return;
    }
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    let text = format!(
        "# Tools\n\n\
         You can call functions. These are described between <tools> and </tools>:\n\
         <tools>\n{}\n</tools>\n\n\
         To call a function, write its name and its arguments as JSON between <tool_call> and \
         </tool_call>, and wait for its result:\n\
         <tool_call>\n{{\"name\": \"FUNCTION\", \"arguments\": {{\"ARGUMENT\": \"VALUE\"}}}}\n</tool_call>",
        list.join("\n")
    );
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let own = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{own}\n\n{text}").into();
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

/// Calls of an assistant behind what was said.
pub(super) fn calls_as_text(said: &str, calls: &[Value]) -> String {
    let mut text = said.to_owned();
    for call in calls {
        let function = &call["function"];
        let call = json!({"name": function["name"], "arguments": function["arguments"]});
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
    }
    text
}

/// What a tool answered, for the user's side.
pub(super) fn response(text: &str) -> String {
    format!("<tool_response>\n{text}\n</tool_response>")
}
