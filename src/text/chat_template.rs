//! Chat templates: the Jinja source in a model's files, rendered as Hugging Face renders it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};

use super::tokenizer::Tokenizer;
use crate::model::ModelFiles;

/// Instructions a template may run before it is refused.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat";

/// Why messages cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the chat template does not parse: {0}")]
    Syntax(String),
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    #[error("the chat template failed: {0}")]
    Render(String),
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template of a model's files, or `source` instead of it; `None` when there is neither.
    pub fn from_files(
        files: &ModelFiles,
        tokenizer: &Tokenizer,
        source: Option<&str>,
    ) -> Result<Option<Self>, TemplateError> {
        let own = || match files {
            ModelFiles::Gguf(file) => file
                .metadata()
                .get_str("tokenizer.chat_template")
                .map(str::to_owned),
            ModelFiles::Safetensors(folder) => {
                let beside = std::fs::read_to_string(folder.path().join("chat_template.jinja"));
                beside.ok().or_else(|| {
                    let text = std::fs::read(folder.path().join("tokenizer_config.json")).ok()?;
                    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
                    config["chat_template"].as_str().map(str::to_owned)
                })
            }
        };
        let Some(source) = source.map(str::to_owned).or_else(own) else {
            return Ok(None);
        };
        let token = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        let (bos, eos) = (
            token(tokenizer.bos_token_id()),
            token(tokenizer.eos_token_id()),
        );
        Self::new(source, bos, eos).map(Some)
    }

    pub fn new(
        source: String,
        bos_token: String,
        eos_token: String,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        Ok(Self {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// The prompt of `messages` (OpenAI's shape). `variables` reach the template beside the usual ones.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut context = variables.clone();
        let messages = messages.iter().map(flatten_content).collect();
        context.insert("messages".to_owned(), serde_json::Value::Array(messages));
        if let Some(tools) = tools {
            context.insert("tools".to_owned(), serde_json::Value::Array(tools.to_vec()));
        }
        context.insert(
            "add_generation_prompt".to_owned(),
            add_generation_prompt.into(),
        );
        context.insert("bos_token".to_owned(), self.bos_token.clone().into());
        context.insert("eos_token".to_owned(), self.eos_token.clone().into());
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        template
            .render(Value::from(Serde(&context)))
            .map_err(|error| {
                match error
                    .detail()
                    .and_then(|detail| detail.strip_prefix(RAISED))
                {
                    Some(message) => TemplateError::Refused(message.to_owned()),
                    None => TemplateError::Render(error.to_string()),
                }
            })
    }
}

/// Marks errors that a template raised itself.
const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it: `, ` and `: ` between items.
fn tojson(json: Serde<serde_json::Value>, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let Serde(json) = json;
    if let Some(indent) = indent {
        let spaces = " ".repeat(indent.min(16));
        let mut bytes = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        serde::Serialize::serialize(&json, &mut serializer).map_err(failed)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let mut text = String::new();
    write_python_json(&json, &mut text);
    Ok(text)
}

fn write_python_json(value: &serde_json::Value, text: &mut String) {
    match value {
        serde_json::Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_python_json(item, text);
            }
            text.push(']');
        }
        serde_json::Value::Object(entries) => {
            text.push('{');
            for (index, (key, item)) in entries.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                text.push_str(&serde_json::Value::from(key.as_str()).to_string());
                text.push_str(": ");
                write_python_json(item, text);
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// Text parts become one string: the templates of text models expect strings.
fn flatten_content(message: &serde_json::Value) -> serde_json::Value {
    let mut message = message.clone();
    if let Some(parts) = message.get("content").and_then(serde_json::Value::as_array) {
        let text: String = parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect();
        message["content"] = text.into();
    } else if message["content"].is_null() && message.is_object() {
        // An assistant's message that only calls tools has none; templates add to it as a string.
        message["content"] = "".into();
    }
    message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &[serde_json::Value]) -> Result<String, TemplateError> {
        ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?.render(
            messages,
            None,
            true,
            &serde_json::Map::new(),
        )
    }

    #[test]
    fn renders_as_python_does() {
        let source = "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}{% endif %}\
            <{{ m['role'].upper() }}>{{ m.content.strip() }}\n{% endfor %}\
            {% if add_generation_prompt %}>{% endif %}{{ {'a': [1, 'é<']} | tojson }}";
        let parts = json!({"role": "user", "content": [{"type": "text", "text": " hi "}]});
        let result = render(source, &[parts, json!({"role": "b", "content": "c"})]).unwrap();
        let calls = json!({"role": "assistant", "content": null, "tool_calls": []});
        let absent = json!({"role": "assistant", "tool_calls": []});
        let added = render(
            "{% for m in messages %}{{ '<' + m['content'] }}{% endfor %}",
            &[calls, absent],
        );
        assert_eq!(added.unwrap(), "<<");
        assert_eq!(result, "<s><USER>hi\n<B>c\n>{\"a\": [1, \"é<\"]}");
    }

    #[test]
    fn failures_are_typed() {
        assert!(matches!(
            render("{% if %}", &[]),
            Err(TemplateError::Syntax(_))
        ));
        let raised = render("{{ raise_exception('no system') }}", &[]).unwrap_err();
        assert!(matches!(raised, TemplateError::Refused(message) if message == "no system"));
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(
            render(endless, &[]),
            Err(TemplateError::Render(_))
        ));
    }
}
