//! What a template makes of messages: which roles it has, and which shapes it reads.
//!
//! Words of the source tell which names a template handles. What it does with a message is seen
//! where that is rendered: each question is a conversation with a word to look for.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{ChatTemplate, DEFAULT_MAX_BYTES, Shape};

/// Words of a source that are looked for, among its names and strings.
const WORDS: [&str; 6] = [
    "developer",
    "tool",
    "tools",
    "tool_calls",
    "text",
    "thinking",
];

/// A word that no template has.
const NEEDLE: &str = "ponderneedle";
const SECOND_NEEDLE: &str = "ponderpin";

/// The words of [`WORDS`] that a source has.
#[derive(Debug, Clone, Default)]
pub(super) struct Words(BTreeSet<&'static str>);

impl Words {
    pub fn add(&mut self, word: &str) {
        self.0.extend(WORDS.iter().find(|known| **known == word));
    }

    pub fn has(&self, word: &str) -> bool {
        self.0.contains(word)
    }
}

/// What a template knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knowledge {
    /// The role `developer`.
    pub developer: bool,
    /// The role `system`; without it the template refuses or drops such messages.
    pub system: bool,
    /// Several system messages one after the other.
    pub several_systems: bool,
    /// The tools of a request.
    pub tools: bool,
    /// The role `tool`.
    pub tool_role: bool,
    /// An assistant's `tool_calls`.
    pub tool_calls: bool,
    /// An assistant's thought, under the name `thinking` (gpt-oss).
    pub thinking: bool,
    /// Arguments of calls must be JSON text instead of an object.
    pub wants_string_arguments: bool,
    /// Ids of calls must have nine letters or digits (Mistral).
    pub wants_short_ids: bool,
    /// Content must be a list of parts instead of a string.
    pub wants_parts: bool,
}

impl Knowledge {
    /// Asks a template.
    pub(super) fn of(template: &ChatTemplate, words: &Words) -> Self {
        let asks = Questions {
            template,
            wants_parts: words.has("text") && wants_parts(template),
        };
        let (wants_string_arguments, wants_short_ids) = match words.has("tool_calls") {
            true => asks.calls(),
            false => (false, false),
        };
        let system = asks.system();
        Self {
            developer: words.has("developer"),
            system,
            several_systems: system && asks.several_systems(),
            tools: words.has("tools"),
            tool_role: words.has("tool"),
            tool_calls: words.has("tool_calls"),
            thinking: words.has("thinking"),
            wants_string_arguments,
            wants_short_ids,
            wants_parts: asks.wants_parts,
        }
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn wants_parts(template: &ChatTemplate) -> bool {
    let shows = |wants_parts: bool| {
        let asks = Questions {
            template,
            wants_parts,
        };
        asks.shows(&[message("user", NEEDLE)], &[NEEDLE])
    };
    !shows(false) && shows(true)
}

struct Questions<'a> {
    template: &'a ChatTemplate,
    wants_parts: bool,
}

impl Questions<'_> {
    /// Whether the prompt of messages has all the words.
    fn shows(&self, messages: &[Value], words: &[&str]) -> bool {
        let shape = Shape {
            tools: None,
            add_generation_prompt: true,
            wants_parts: self.wants_parts,
            max_bytes: DEFAULT_MAX_BYTES,
        };
        let rendered = self.template.render_shaped(messages, &shape, &Map::new());
        rendered.is_ok_and(|text| words.iter().all(|word| text.contains(word)))
    }

    /// Templates that show nothing of a user's message, either, have their own mind: their system
    /// messages stay what they are.
    fn system(&self) -> bool {
        let user = message("user", SECOND_NEEDLE);
        let both = [message("system", NEEDLE), user.clone()];
        self.shows(&both, &[NEEDLE, SECOND_NEEDLE]) || !self.shows(&[user], &[SECOND_NEEDLE])
    }

    fn several_systems(&self) -> bool {
        let messages = [
            message("system", NEEDLE),
            message("system", SECOND_NEEDLE),
            message("user", "Hi"),
        ];
        self.shows(&messages, &[NEEDLE, SECOND_NEEDLE])
    }

    /// Whether arguments must be strings, and ids short.
    fn calls(&self) -> (bool, bool) {
        let object = json!({NEEDLE: SECOND_NEEDLE});
        for (wants_strings, wants_short_ids) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let arguments = match wants_strings {
                true => Value::from(object.to_string()),
                false => object.clone(),
            };
            let id = if wants_short_ids {
                "abcdefghi"
            } else {
                "call_0123456789"
            };
            let messages = [
                message("user", "Hi"),
                json!({"role": "assistant", "content": "", "tool_calls": [{"id": id,
                    "type": "function", "function": {"name": "f", "arguments": arguments}}]}),
                json!({"role": "tool", "tool_call_id": id, "name": "f", "content": "1"}),
            ];
            if self.shows(&messages, &[NEEDLE, SECOND_NEEDLE]) {
                return (wants_strings, wants_short_ids);
            }
        }
        (false, false)
    }
}
