//! Chat templates: any source is a template or an error, and any messages are a prompt or an error.
//! An input is the source, the messages, tools and variables.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder::text::ChatTemplate;
use ponder_fuzz::{mutate, parts, tell, words::Words};
use serde_json::Value;

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::of_seeds("template", 0));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, 0, &WORDS)
});

fuzz_target!(|data: &[u8]| {
    let [source, messages, tools, variables] = parts::first(data);
    let source = String::from_utf8_lossy(source).into_owned();
    let template = ChatTemplate::new(source, "<s>".to_owned(), "</s>".to_owned());
    let template = match template {
        Ok(template) => template,
        Err(error) => return tell(|| error.to_string()),
    };
    let list = |part: &[u8]| match serde_json::from_slice(part) {
        Ok(Value::Array(items)) => Some(items),
        _ => None,
    };
    let variables = match serde_json::from_slice(variables) {
        Ok(Value::Object(variables)) => variables,
        _ => serde_json::Map::new(),
    };
    let messages = list(messages).unwrap_or_default();
    let prompt = template.render(&messages, list(tools).as_deref(), true, &variables);
    tell(|| format!("{prompt:?}"));
});
