//! From what clients ask for to what llguidance compiles.

use std::io::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cache::Key;
use super::compile::Source;
use super::lark::literal;
use super::limits::{MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, MAX_TOOLS, check_len};
use super::numbers::NumberScope;
use super::vocabulary::Vocabulary;
use super::{Grammar, GrammarError, ToolGrammar, calls, gbnf, schema, tags};

/// Hashes a grammar, and refuses one that is too large to look at.
///
/// # Errors
/// [`GrammarError::TooMuchWork`].
pub(super) fn key(grammar: &Grammar) -> Result<Key, GrammarError> {
    let mut hash = Hash {
        sha: Sha256::new(),
        num_bytes: 0,
    };
    match grammar {
        Grammar::JsonObject => hash.part("object"),
        Grammar::JsonSchema { schema, strict } => {
            hash.part(if *strict { "strict" } else { "schema" });
            hash.json(schema);
        }
        Grammar::Regex(text) => {
            check_len("the regular expression", text.len(), MAX_REGEX_BYTES)?;
            hash.part("regex");
            hash.part(text);
        }
        Grammar::Choice(choices) => {
            if choices.len() > MAX_CHOICES {
                return Err(GrammarError::TooMuchWork(format!(
                    "there are {} choices; at most {MAX_CHOICES} are allowed",
                    choices.len()
                )));
            }
            hash.part("choice");
            choices.iter().for_each(|choice| hash.part(choice));
        }
        Grammar::Lark(text) => {
            hash.part("lark");
            hash.part(text);
        }
        Grammar::Gbnf(text) => {
            hash.part("gbnf");
            hash.part(text);
        }
        Grammar::Ebnf(text) => {
            hash.part("ebnf");
            hash.part(text);
        }
        Grammar::StructuralTag(value) => {
            hash.part("tag");
            hash.json(value);
        }
        Grammar::Tools(tools) => hash.tools(tools)?,
    }
    check_len("the grammar", hash.num_bytes, MAX_GRAMMAR_BYTES)?;
    Ok(hash.sha.finalize().into())
}

/// Feeds a hash with parts, each behind its length.
struct Hash {
    sha: Sha256,
    num_bytes: usize,
}

impl Hash {
    fn part(&mut self, text: &str) {
        self.sha.update((text.len() as u64).to_le_bytes());
        self.sha.update(text);
        self.num_bytes += text.len();
    }

    /// JSON ends where it ends: it needs no length.
    fn json(&mut self, value: &Value) {
        // Writing to a hash does not fail.
        let _ = serde_json::to_writer(self, value);
    }

    fn tools(&mut self, tools: &ToolGrammar) -> Result<(), GrammarError> {
        if tools.tools.len() > MAX_TOOLS {
            return Err(GrammarError::TooMuchWork(format!(
                "there are {} tools; at most {MAX_TOOLS} are allowed",
                tools.tools.len()
            )));
        }
        self.part("tools");
        self.part(&format!(
            "{:?} {} {}",
            tools.format, tools.is_required, tools.is_parallel
        ));
        for tool in &tools.tools {
            self.part(&tool.name);
            self.part(if tool.strict { "strict" } else { "" });
            self.json(&tool.parameters);
        }
        Ok(())
    }
}

impl Write for &mut Hash {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.sha.update(bytes);
        self.num_bytes += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What llguidance compiles. Walks grammars recursively: on a thread with a large stack.
///
/// # Errors
/// The grammar's own faults.
pub(super) fn source(grammar: &Grammar, vocabulary: &Vocabulary) -> Result<Source, GrammarError> {
    match grammar {
        Grammar::JsonObject => json_source(&json!({"type": "object"}), false),
        Grammar::JsonSchema { schema, strict } => json_source(schema, *strict),
        Grammar::Regex(text) => {
            check_pattern(text).map_err(GrammarError::Invalid)?;
            Ok(lark_source(format!("start: {}", pattern(text))))
        }
        Grammar::Choice(choices) if choices.is_empty() => {
            Err(GrammarError::Invalid("there are no choices".to_owned()))
        }
        Grammar::Choice(choices) => {
            let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            Ok(lark_source(format!(
                "start: CHOICE\nCHOICE: {}",
                choices.join(" | ")
            )))
        }
        Grammar::Lark(text) => Ok(lark_source(text.clone())),
        Grammar::Gbnf(text) => Ok(lark_source(gbnf::to_lark(text)?)),
        Grammar::Ebnf(text) => Ok(lark_source(ebnf(text)?)),
        Grammar::StructuralTag(value) => tags::source(value, vocabulary),
        Grammar::Tools(tools) => calls::source(tools, vocabulary),
    }
}

/// A regular expression in Lark. Classes are ASCII's, as in Python's ASCII mode: models write no
/// other digits.
pub(super) fn pattern(text: &str) -> String {
    match regex_to_lark(text, "dws").as_str() {
        "" => "\"\"".to_owned(),
        pattern => format!("/{pattern}/"),
    }
}

pub(super) fn check_pattern(text: &str) -> Result<(), String> {
    if text.len() > MAX_REGEX_BYTES {
        return Err(format!(
            "the regular expression has {} bytes; at most {MAX_REGEX_BYTES} are allowed",
            text.len()
        ));
    }
    let parsed = regex_syntax::parse(text);
    let _ = parsed.map_err(|error| format!("the regular expression is not supported: {error}"))?;
    Ok(())
}

/// llguidance's errors about schemas have no places.
pub(super) fn with_place(grammar: &Grammar, error: GrammarError) -> GrammarError {
    let (Grammar::JsonSchema { schema, .. }, GrammarError::Invalid(message)) = (grammar, &error)
    else {
        return error;
    };
    let explained = [
        (
            "oneOf constraints are not supported",
            "oneOf",
            "is supported with strict only if no value can match two of its schemas; use anyOf",
        ),
        (
            "min/maxProperties only supported",
            "minProperties",
            "is supported with strict only if all properties are required",
        ),
        (
            "min/maxProperties only supported",
            "maxProperties",
            "is supported with strict only if all properties are required",
        ),
    ];
    for (part, keyword, meaning) in explained {
        if message.contains(part)
            && let Some(place) = schema::place_of(schema, keyword)
        {
            return GrammarError::Invalid(format!(
                "the schema at {place:?}: the keyword {keyword:?} {meaning}"
            ));
        }
    }
    error
}

/// Lark, made of what may be GBNF: only GBNF has `::=`.
pub(super) fn ebnf(text: &str) -> Result<String, GrammarError> {
    match text.contains("::=") {
        true => gbnf::to_lark(text),
        false => Ok(text.to_owned()),
    }
}

fn lark_source(lark: String) -> Source {
    Source {
        num_bytes: lark.len(),
        grammar: TopLevelGrammar::from_lark(lark),
        numbers: NumberScope::None,
    }
}

fn json_source(schema: &Value, strict: bool) -> Result<Source, GrammarError> {
    let prepared = schema::prepare(schema, strict)?;
    Ok(Source {
        num_bytes: prepared.to_string().len(),
        grammar: TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(prepared)),
        numbers: NumberScope::Whole,
    })
}
