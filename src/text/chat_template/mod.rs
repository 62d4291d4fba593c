//! Chat templates: the Jinja source in a model's files, rendered as Hugging Face renders it.
//!
//! A template comes with a model and is not trusted; what it is given comes with a request. So
//! source and depth are bounded before the compiler sees them ([`source`]), compiling and rendering
//! run on threads with the stack that their depth needs, instructions and bytes are paid from a
//! budget of fuel, and what a template keeps in variables is measured ([`plain`]).

mod clock;
mod json;
mod knows;
#[cfg(test)]
mod knows_tests;
mod plain;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};

use super::tokenizer::Tokenizer;
use crate::model::ModelFiles;
pub use knows::Knowledge;
use knows::Words;

/// What a rendering may cost: instructions, and 64 bytes that it produces on the way, each cost one. A thousand
/// messages cost some 300,000 in the longest templates known.
const FUEL: u64 = 4_000_000;
/// Bytes of a prompt where the caller does not say.
pub const DEFAULT_MAX_BYTES: usize = 64 << 20;
const NAME: &str = "chat";

/// Stack that the compiler needs for one level of a template, and for everything else; measured, and doubled.
const COMPILE_STACK_PER_LEVEL: usize = if cfg!(debug_assertions) {
    64 << 10
} else {
    16 << 10
};
const COMPILE_STACK: usize = 16 << 20;
/// Stack of a rendering: macros and loops in each other, and values as deep as these can nest them, printed. Memory
/// that is not used is not taken.
const RENDER_STACK: usize = if cfg!(debug_assertions) {
    512 << 20
} else {
    128 << 20
};
/// Frames of loops and macros in each other.
const MAX_RECURSION: usize = 200;

/// Why messages cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the chat template does not parse: {0}")]
    Syntax(String),
    #[error("the chat template is too complex: {0}")]
    TooComplex(String),
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    #[error("the chat template failed: {0}")]
    Render(String),
    #[error("these messages are too much work for the chat template; send less")]
    TooCostly,
    #[error("the messages become a prompt of more than {max_bytes} bytes; send less")]
    TooLarge { max_bytes: usize },
}

/// A compiled template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
    words: Words,
    knowledge: Arc<OnceLock<Knowledge>>,
    bos_token: String,
    eos_token: String,
}

/// How to render messages.
struct Shape<'a> {
    tools: Option<&'a [serde_json::Value]>,
    add_generation_prompt: bool,
    wants_parts: bool,
    max_bytes: usize,
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

    /// Compiles `source`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`], and [`TemplateError::TooComplex`] beyond the limits of [`source`].
    pub fn new(
        source: String,
        bos_token: String,
        eos_token: String,
    ) -> Result<Self, TemplateError> {
        Self::with_fuel(source, bos_token, eos_token, FUEL)
    }

    pub(super) fn with_fuel(
        source: String,
        bos_token: String,
        eos_token: String,
        fuel: u64,
    ) -> Result<Self, TemplateError> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        let prepared = source::prepare(&source, &syntax)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_formatter(plain::write);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        environment.add_function("namespace", plain::namespace);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter(source::KEEP, plain::keep);
        environment.add_filter(source::KEEP_IN_NAMESPACE, plain::keep_in_namespace);
        let stack = COMPILE_STACK + prepared.max_depth * COMPILE_STACK_PER_LEVEL;
        let text = prepared.text;
        let environment = on_stack(stack, move || {
            environment
                .add_template_owned(NAME, text)
                .map_err(|error| TemplateError::Syntax(error.to_string()))?;
            source::check_compiled(&environment, NAME)?;
            Ok(environment)
        })?;
        Ok(Self {
            environment,
            source: source.into(),
            words: prepared.words,
            knowledge: Arc::default(),
            bos_token,
            eos_token,
        })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the template makes of messages; found out once.
    pub fn knows(&self) -> &Knowledge {
        let knowledge = || Knowledge::of(self, &self.words);
        self.knowledge.get_or_init(knowledge)
    }

    /// Whether the template reads a variable that requests may set.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// [`Self::render_within`] the default number of bytes.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        self.render_within(
            messages,
            tools,
            add_generation_prompt,
            variables,
            DEFAULT_MAX_BYTES,
        )
    }

    /// The prompt of `messages` (OpenAI's shape), of `max_bytes` at most. `variables` reach the template beside the
    /// usual ones. Time and memory are bounded by [`FUEL`], whatever the template does.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] is the template's own; [`TemplateError::TooLarge`] and
    /// [`TemplateError::TooCostly`] mean that the messages are too much for it.
    pub fn render_within(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
        max_bytes: usize,
    ) -> Result<String, TemplateError> {
        let shape = Shape {
            tools,
            add_generation_prompt,
            // Only templates that look for parts can want them.
            wants_parts: self.words.has("text") && self.knows().wants_parts,
            max_bytes,
        };
        self.render_shaped(messages, &shape, variables)
    }

    fn render_shaped(
        &self,
        messages: &[serde_json::Value],
        shape: &Shape<'_>,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut context = variables.clone();
        let messages = messages
            .iter()
            .map(|message| content_as(message, shape.wants_parts));
        let messages = messages.collect();
        context.insert("messages".to_owned(), serde_json::Value::Array(messages));
        if let Some(tools) = shape.tools {
            context.insert("tools".to_owned(), serde_json::Value::Array(tools.to_vec()));
        }
        context.insert(
            "add_generation_prompt".to_owned(),
            shape.add_generation_prompt.into(),
        );
        context.insert("bos_token".to_owned(), self.bos_token.clone().into());
        context.insert("eos_token".to_owned(), self.eos_token.clone().into());
        on_stack(RENDER_STACK, || {
            self.render_context(&context, shape.max_bytes)
        })
    }

    fn render_context(
        &self,
        context: &serde_json::Map<String, serde_json::Value>,
        max_bytes: usize,
    ) -> Result<String, TemplateError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        let mut output = Bounded {
            bytes: Vec::new(),
            max_bytes,
            is_over: false,
        };
        let rendered = template
            .render_captured_to(Value::from(Serde(context)), &mut output)
            .map(drop);
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|error| TemplateError::Render(error.to_string())),
            Err(_) if output.is_over => Err(TemplateError::TooLarge { max_bytes }),
            Err(error) => Err(failure(&error)),
        }
    }
}

/// A prompt as it grows, up to its limit.
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
    is_over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max_bytes - self.bytes.len() {
            self.is_over = true;
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` on a thread with a stack of its own size.
fn on_stack<T: Send>(
    stack_bytes: usize,
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    let failed = |what: &str| TemplateError::Render(what.to_owned());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(stack_bytes)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(&format!("no thread for it: {error}")))?;
        thread.join().map_err(|_| failed("it panicked"))?
    })
}

fn failure(error: &Error) -> TemplateError {
    // Calls of macros wrap the errors in them.
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<Error>() {
            let raised = error
                .detail()
                .and_then(|detail| detail.strip_prefix(RAISED));
            if let Some(message) = raised {
                return TemplateError::Refused(message.to_owned());
            }
            if error.kind() == ErrorKind::OutOfFuel {
                return TemplateError::TooCostly;
            }
        }
        source = error.source();
    }
    TemplateError::Render(error.to_string())
}

/// Marks errors that a template raised itself.
const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// Text parts become one string, which the templates of text models expect, or one part.
fn content_as(message: &serde_json::Value, wants_parts: bool) -> serde_json::Value {
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
    if wants_parts && message["content"].is_string() {
        let text = message["content"].take();
        message["content"] = serde_json::json!([{"type": "text", "text": text}]);
    }
    message
}
