//! Tools that a request offers, and which of them an answer may or must call.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::code::{self, CodeSpec, KIND};
use crate::api::error::ApiError;
use crate::grammar::{ToolGrammar, ToolSpec};
use crate::text::ToolFormat;

/// OpenAI's limit.
const MAX_TOOLS: usize = 128;
/// Of all tools, as JSON.
const MAX_TOOLS_BYTES: usize = 1 << 20;
const MAX_NAME_CHARS: usize = 64;

/// The fields of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct ToolFields {
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    /// What OpenAI had before `tools` and `tool_choice`.
    pub functions: Option<Vec<Value>>,
    pub function_call: Option<Value>,
    /// The text that the answer goes on with.
    pub continued: Option<String>,
}

/// What comes of them.
#[derive(Debug, Default)]
pub(super) struct ToolPlan {
    /// What the chat template is shown.
    pub shown: Option<Vec<Value>>,
    /// The calls that an answer may have.
    pub calls: Option<Calls>,
    /// The server runs the code that an answer has.
    pub code: Option<CodeSpec>,
    /// The request has `functions`.
    pub is_legacy: bool,
}

/// The calls that an answer may have.
#[derive(Debug)]
pub(super) struct Calls {
    /// The field that decides about them.
    pub field: &'static str,
    pub grammar: ToolGrammar,
    /// Calls keep to the grammar; otherwise they are what the model makes of it.
    pub is_enforced: bool,
    /// The client named the one tool that is called.
    pub is_named: bool,
}

/// Which tools may be called.
#[derive(Debug, Clone, PartialEq)]
enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
    /// Some of the tools; whether one of them must be called.
    Allowed(Vec<String>, bool),
}

/// The names of the fields, for errors.
struct Names {
    tools: &'static str,
    choice: &'static str,
    /// Where a tool's function is in its tool.
    function: &'static str,
}

const CURRENT: Names = Names {
    tools: "tools",
    choice: "tool_choice",
    function: ".function",
};
const LEGACY: Names = Names {
    tools: "functions",
    choice: "function_call",
    function: "",
};

impl ToolFields {
    /// Checks the fields for a model that writes calls in `format`.
    pub fn plan(self, format: Option<ToolFormat>) -> Result<ToolPlan, ApiError> {
        let is_legacy = self.functions.is_some() || self.function_call.is_some();
        if is_legacy && (self.tools.is_some() || self.tool_choice.is_some()) {
            let field = match self.functions {
                Some(_) => "functions",
                None => "function_call",
            };
            let message = format!("{field} cannot be combined with tools: send tools alone");
            return Err(ApiError::invalid(field, message));
        }
        let (names, tools, choice) = match is_legacy {
            true => {
                let functions = self.functions.unwrap_or_default().into_iter();
                let tool = |function| json!({"type": "function", "function": function});
                (LEGACY, functions.map(tool).collect(), self.function_call)
            }
            false => (CURRENT, self.tools.unwrap_or_default(), self.tool_choice),
        };
        let choice = match is_legacy {
            true => legacy_choice(choice.as_ref())?,
            false => tool_choice(choice.as_ref())?,
        };
        let Offered { shown, specs, code } = read(tools, &names)?;
        check_choice(&choice, &specs, &names)?;
        let plan = ToolPlan {
            is_legacy,
            code: code
                .filter(|_| choice != ToolChoice::None)
                .map(|spec| spec.behind(self.continued)),
            ..ToolPlan::default()
        };
        if specs.is_empty() || choice == ToolChoice::None {
            return Ok(plan);
        }
        let Some(format) = format else {
            let message = format!(
                "this model's calls of tools cannot be read: leave {} out, or start the server with \
                 --tool-call-parser NAME",
                names.tools
            );
            return Err(ApiError::invalid(names.tools, message));
        };
        // One `function_call` is all that a legacy answer has room for.
        let is_parallel = !is_legacy && self.parallel_tool_calls.unwrap_or(true);
        Ok(ToolPlan {
            shown: Some(shown),
            calls: Some(calls(choice, specs, format, is_parallel, &names)),
            ..plan
        })
    }
}

fn calls(
    choice: ToolChoice,
    mut specs: Vec<ToolSpec>,
    format: ToolFormat,
    is_parallel: bool,
    names: &Names,
) -> Calls {
    let is_chosen = choice != ToolChoice::Auto;
    let (is_required, is_named) = match choice {
        ToolChoice::None | ToolChoice::Auto => (false, false),
        ToolChoice::Required => (true, false),
        ToolChoice::Named(name) => {
            specs.retain(|spec| spec.name == name);
            (true, true)
        }
        ToolChoice::Allowed(allowed, is_required) => {
            specs.retain(|spec| allowed.contains(&spec.name));
            (is_required, false)
        }
    };
    Calls {
        field: if is_chosen { names.choice } else { names.tools },
        is_enforced: is_chosen || specs.iter().any(|spec| spec.strict),
        is_named,
        grammar: ToolGrammar {
            format,
            tools: specs,
            is_required,
            // A client that names a tool gets one call of it.
            is_parallel: is_parallel && !is_named,
        },
    }
}

/// The tools of a request.
struct Offered {
    /// Functions, as templates read them.
    shown: Vec<Value>,
    /// The same, as grammars do.
    specs: Vec<ToolSpec>,
    code: Option<CodeSpec>,
}

fn read(tools: Vec<Value>, names: &Names) -> Result<Offered, ApiError> {
    let field = names.tools;
    if tools.len() > MAX_TOOLS {
        let message = format!("{field} takes at most {MAX_TOOLS} tools");
        return Err(ApiError::invalid(field, message));
    }
    let num_bytes: usize = tools.iter().map(|tool| tool.to_string().len()).sum();
    if num_bytes > MAX_TOOLS_BYTES {
        let message =
            format!("{field} has {num_bytes} bytes of JSON; it may have {MAX_TOOLS_BYTES}");
        return Err(ApiError::invalid(field, message));
    }
    let (mut shown, mut specs) = (Vec::new(), Vec::new());
    let mut code = None;
    let mut known = HashSet::new();
    for (index, mut tool) in tools.into_iter().enumerate() {
        let at = format!("{field}[{index}]");
        // It is no function that the template could show.
        if let Some(fields) = tool
            .as_object()
            .filter(|it| it.get("type") == Some(&json!(KIND)))
        {
            if code.replace(code::spec(fields, &at)?).is_some() {
                return Err(code::twice(&at));
            }
            continue;
        }
        let spec = spec(&mut tool, &at, names)?;
        if !known.insert(spec.name.clone()) {
            let at = format!("{at}{}.name", names.function);
            let message = format!("{at}: {:?} is there twice; rename one of them", spec.name);
            return Err(ApiError::invalid(&at, message));
        }
        specs.push(spec);
        shown.push(tool);
    }
    Ok(Offered { shown, specs, code })
}

/// Reads a tool; what templates expect to be there is added to it.
fn spec(tool: &mut Value, at: &str, names: &Names) -> Result<ToolSpec, ApiError> {
    let invalid = |path: &str, message: &str| {
        let at = format!("{at}{path}");
        Err(ApiError::invalid(&at, format!("{at} {message}")))
    };
    let Some(fields) = tool.as_object_mut() else {
        return invalid("", "must be an object");
    };
    match fields.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(_)) => {
            return invalid(
                ".type",
                "must be \"function\" or \"code_interpreter\": this server runs no other tools",
            );
        }
        _ => return invalid(".type", "must be \"function\""),
    }
    let path = |field: &str| match field.is_empty() {
        true => names.function.to_owned(),
        false => format!("{}.{field}", names.function),
    };
    let Some(Value::Object(function)) = fields.get_mut("function") else {
        return invalid(&path(""), "must be an object");
    };
    let name = match function.get("name").and_then(Value::as_str) {
        Some(name) if is_name(name) => name.to_owned(),
        _ => {
            return invalid(
                &path("name"),
                "must be 1 to 64 letters, digits, underscores, dashes and dots",
            );
        }
    };
    match function.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(_) => return invalid(&path("description"), "must be a string"),
    }
    let strict = match function.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => return invalid(&path("strict"), "must be true or false"),
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => Value::Null,
        Some(Value::Object(schema)) => Value::Object(schema.clone()),
        Some(_) => return invalid(&path("parameters"), "must be a JSON schema of an object"),
    };
    if parameters.is_null() {
        let any = json!({"type": "object", "properties": {}});
        function.insert("parameters".to_owned(), any);
    }
    Ok(ToolSpec {
        name,
        parameters,
        strict,
    })
}

fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(is_letter)
}

/// OpenAI's `tool_choice`.
fn tool_choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let invalid = |path: &str, message: &str| {
        let at = format!("tool_choice{path}");
        Err(ApiError::invalid(&at, format!("{at} {message}")))
    };
    let fields = match value {
        None | Some(Value::Null) => return Ok(ToolChoice::Auto),
        Some(Value::Object(fields)) => fields,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => return Ok(ToolChoice::None),
            "auto" => return Ok(ToolChoice::Auto),
            "required" => return Ok(ToolChoice::Required),
            _ => return invalid("", "must be none, auto, required or an object"),
        },
        Some(_) => return invalid("", "must be none, auto, required or an object"),
    };
    match fields.get("type").and_then(Value::as_str) {
        Some("function") => match named(fields) {
            Some(name) => Ok(ToolChoice::Named(name)),
            None => invalid(".function.name", "must be the name of a tool"),
        },
        Some("allowed_tools") => match fields.get("allowed_tools") {
            Some(Value::Object(fields)) => allowed_tools(fields),
            _ => invalid(".allowed_tools", "must be an object"),
        },
        _ => invalid(".type", "must be function or allowed_tools"),
    }
}

fn named(choice: &Map<String, Value>) -> Option<String> {
    Some(choice.get("function")?["name"].as_str()?.to_owned())
}

fn allowed_tools(fields: &Map<String, Value>) -> Result<ToolChoice, ApiError> {
    let invalid = |path: &str, message: &str| {
        let at = format!("tool_choice.allowed_tools.{path}");
        Err(ApiError::invalid(&at, format!("{at} {message}")))
    };
    let is_required = match fields.get("mode").and_then(Value::as_str) {
        Some("auto") => false,
        Some("required") => true,
        _ => return invalid("mode", "must be auto or required"),
    };
    let tools = fields.get("tools").and_then(Value::as_array);
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        return invalid("tools", "must be an array of at least one tool");
    };
    let mut names = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let name = tool.as_object().filter(|_| tool["type"] == "function");
        match name.and_then(named) {
            Some(name) => names.push(name),
            None => {
                let at = format!("tools[{index}]");
                let message = "must be {\"type\": \"function\", \"function\": {\"name\": …}}";
                return invalid(&at, message);
            }
        }
    }
    Ok(ToolChoice::Allowed(names, is_required))
}

/// OpenAI's `function_call`.
fn legacy_choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "none" => Ok(ToolChoice::None),
        Some(Value::String(choice)) if choice == "auto" => Ok(ToolChoice::Auto),
        Some(Value::Object(fields)) if fields.get("name").is_some_and(Value::is_string) => {
            let name = fields["name"].as_str().unwrap_or_default();
            Ok(ToolChoice::Named(name.to_owned()))
        }
        Some(_) => {
            let message = "function_call must be none, auto or {\"name\": …}";
            Err(ApiError::invalid("function_call", message))
        }
    }
}

/// A choice may only name tools that are offered.
fn check_choice(choice: &ToolChoice, specs: &[ToolSpec], names: &Names) -> Result<(), ApiError> {
    let chosen = match choice {
        ToolChoice::None | ToolChoice::Auto => return Ok(()),
        ToolChoice::Required => &[][..],
        ToolChoice::Named(name) => std::slice::from_ref(name),
        ToolChoice::Allowed(allowed, _) => allowed,
    };
    if specs.is_empty() {
        let message = format!("{} needs {}", names.choice, names.tools);
        return Err(ApiError::invalid(names.choice, message));
    }
    let is_unknown = |name: &&String| specs.iter().all(|spec| spec.name != **name);
    match chosen.iter().find(is_unknown) {
        Some(name) => {
            let message = format!("{}: there is no tool {name:?}", names.choice);
            Err(ApiError::invalid(names.choice, message))
        }
        None => Ok(()),
    }
}
