//! Structural tags: free text, and parts of it that have a form.
//!
//! Both of vLLM's notations: the older `{"structures": […], "triggers": […]}`, and xgrammar's
//! `{"type": "structural_tag", "format": {…}}`.

mod fields;

use serde_json::{Map, Value};

use fields::{begin_of, elements, flag, invalid, list, text};

use super::compile::Source;
use super::lark::{Lark, Mark, mark, split};
use super::limits::{MAX_DEPTH, MAX_TAGS};
use super::numbers::NumberScope;
use super::vocabulary::Vocabulary;
use super::{GrammarError, schema, source};

type Lines = Result<String, GrammarError>;

/// # Errors
/// What the tag's own parts have wrong, by their place.
pub(super) fn source(tag: &Value, vocabulary: &Vocabulary) -> Result<Source, GrammarError> {
    let parsed;
    let tag = match tag {
        // Some clients send the tag as a string of JSON.
        Value::String(text) => {
            parsed = serde_json::from_str(text)
                .map_err(|error| invalid("", format!("not JSON: {error}")))?;
            &parsed
        }
        tag => tag,
    };
    let mut builder = Builder {
        lark: Lark::default(),
        vocabulary,
        begins: Vec::new(),
        ends: Vec::new(),
        num_tags: 0,
    };
    let start = match (tag.get("structures"), tag.get("format")) {
        (Some(structures), None) => builder.structures(structures, tag.get("triggers"))?,
        (None, Some(format)) => builder.format(format, "format", None, 0)?,
        _ => {
            return Err(invalid(
                "",
                "it has either \"structures\" and \"triggers\", or \"format\"",
            ));
        }
    };
    Ok(Source {
        num_bytes: builder.lark.num_bytes(),
        grammar: builder.lark.finish(&start),
        numbers: NumberScope::Between {
            begins: builder.begins,
            ends: builder.ends,
        },
    })
}

struct Builder<'a> {
    lark: Lark,
    vocabulary: &'a Vocabulary,
    /// What stands before and behind JSON.
    begins: Vec<Vec<u8>>,
    ends: Vec<Vec<u8>>,
    num_tags: usize,
}

/// A tag whose begin is known apart from what follows.
struct Tag {
    begin: String,
    /// The content and the end.
    rest: String,
}

impl Builder<'_> {
    fn mark(&self, text: &str) -> Result<Mark, GrammarError> {
        split(text, self.vocabulary)
    }

    fn count(&mut self, path: &str) -> Result<(), GrammarError> {
        self.num_tags += 1;
        match self.num_tags > MAX_TAGS {
            true => Err(GrammarError::TooMuchWork(format!(
                "the structural tag's {path}: it has more than {MAX_TAGS} parts"
            ))),
            false => Ok(()),
        }
    }

    /// The older notation.
    fn structures(&mut self, structures: &Value, triggers: Option<&Value>) -> Lines {
        let mut tags = Vec::new();
        for (index, one) in list(Some(structures), "structures", "")?.iter().enumerate() {
            let path = format!("structures[{index}]");
            self.count(&path)?;
            let Value::Object(map) = one else {
                return Err(invalid(&path, "it is an object"));
            };
            let own = map
                .get("schema")
                .ok_or_else(|| invalid(&path, "\"schema\" is missing"))?;
            let content = self.json(own, &path)?;
            let (begin, end) = (text(map, "begin", &path)?, text(map, "end", &path)?);
            tags.push(self.tag(begin, content, end)?);
        }
        self.triggered(&tags, triggers, "", false, false)
    }

    /// A tag around JSON or another content.
    fn tag(&mut self, begin: &str, content: String, end: &str) -> Result<Tag, GrammarError> {
        if !begin.is_empty() {
            self.begins.push(begin.as_bytes().to_vec());
        }
        if !end.is_empty() {
            self.ends.push(end.as_bytes().to_vec());
        }
        let rest = format!("{content} {}", mark(&self.mark(end)?));
        Ok(Tag {
            begin: begin.to_owned(),
            rest,
        })
    }

    fn json(&mut self, own: &Value, path: &str) -> Lines {
        let prepared = schema::prepare(own, false).map_err(|error| match error {
            GrammarError::Invalid(message) => invalid(path, message),
            error => error,
        })?;
        Ok(self.lark.schema(prepared))
    }

    /// Text in which each trigger begins one of the tags that begin with the trigger.
    fn triggered(
        &mut self,
        tags: &[Tag],
        triggers: Option<&Value>,
        path: &str,
        at_least_one: bool,
        stop_after_first: bool,
    ) -> Lines {
        let mut parts = Vec::new();
        let mut spelled = Vec::new();
        let mut is_used = vec![false; tags.len()];
        for trigger in list(triggers, "triggers", path)? {
            self.count(path)?;
            let Some(trigger) = trigger.as_str().filter(|text| !text.is_empty()) else {
                return Err(invalid(path, "a trigger is a string that is not empty"));
            };
            let mut options = Vec::new();
            for (index, tag) in tags.iter().enumerate() {
                if let Some(more) = tag.begin.strip_prefix(trigger) {
                    is_used[index] = true;
                    options.push(format!("{} {}", mark(&self.mark(more)?), tag.rest));
                }
            }
            if options.is_empty() {
                return Err(invalid(
                    path,
                    format!("no tag begins with the trigger {trigger:?}"),
                ));
            }
            let options = self.lark.rule(&options.join(" | "));
            let pieces = self.mark(trigger)?;
            let until = self.lark.text_until(&pieces);
            parts.push(format!("{until} {options}"));
            spelled.push(trigger);
        }
        if let Some(index) = is_used.iter().position(|is_used| !is_used) {
            let begin = &tags[index].begin;
            return Err(invalid(
                path,
                format!("no trigger begins the tag {begin:?}"),
            ));
        }
        let part = self.lark.rule(&parts.join(" | "));
        let rest = self.lark.text_without(&spelled);
        Ok(match (at_least_one, stop_after_first) {
            (true, true) => part,
            (true, false) => format!("{part}+ {rest}"),
            (false, true) => format!("({part} | {rest})"),
            (false, false) => format!("{part}* {rest}"),
        })
    }

    /// xgrammar's notation. `next` is the text that ends free text.
    fn format(&mut self, format: &Value, path: &str, next: Option<&str>, depth: usize) -> Lines {
        self.count(path)?;
        if depth > MAX_DEPTH {
            let message = format!("the structural tag nests more than {MAX_DEPTH} levels deep");
            return Err(GrammarError::TooMuchWork(message));
        }
        let Value::Object(map) = format else {
            return Err(invalid(path, "it is an object"));
        };
        match text(map, "type", path)? {
            "const_string" => Ok(mark(&self.mark(text(map, "value", path)?)?)),
            "json_schema" => {
                let own = map.get("json_schema");
                let own = own.ok_or_else(|| invalid(path, "\"json_schema\" is missing"))?;
                self.json(own, path)
            }
            "regex" => {
                let pattern = text(map, "pattern", path)?;
                source::check_pattern(pattern).map_err(|error| invalid(path, error))?;
                Ok(self.lark.terminal(&source::pattern(pattern)))
            }
            "grammar" => {
                let lark = source::ebnf(text(map, "grammar", path)?)?;
                Ok(self.lark.grammar(lark))
            }
            "sequence" => self.sequence(map, path, next, depth),
            "or" => {
                let mut options = Vec::new();
                for (index, one) in elements(map, path)?.iter().enumerate() {
                    let path = format!("{path}.elements[{index}]");
                    options.push(self.format(one, &path, next, depth + 1)?);
                }
                Ok(format!("({})", options.join(" | ")))
            }
            "any_text" => Ok(match next {
                Some(next) => self.lark.text_without(&[next]),
                None => self.lark.text_without(&[]),
            }),
            "tag" => {
                let tag = self.tag_format(map, path, depth)?;
                let begin = mark(&self.mark(&tag.begin)?);
                Ok(format!("({begin} {})", tag.rest))
            }
            "triggered_tags" => {
                let tags = self.tags(map, path, depth)?;
                let (least, stop) = (
                    flag(map, "at_least_one", path)?,
                    flag(map, "stop_after_first", path)?,
                );
                let lines = self.triggered(&tags, map.get("triggers"), path, least, stop)?;
                Ok(self.lark.rule(&lines))
            }
            "tags_with_separator" => self.separated(map, path, depth),
            other => Err(invalid(
                path,
                format!(
                    "the type {other:?} is not supported; supported are const_string, json_schema, regex, grammar, any_text, sequence, or, tag, triggered_tags and tags_with_separator"
                ),
            )),
        }
    }

    /// Free text in a sequence ends where the next fixed text begins.
    fn sequence(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
        next: Option<&str>,
        depth: usize,
    ) -> Lines {
        let elements = elements(map, path)?;
        let mut parts = Vec::new();
        let mut index = 0;
        while let Some(one) = elements.get(index) {
            let own = format!("{path}.elements[{index}]");
            let following = elements.get(index + 1);
            index += 1;
            let is_text = one.get("type").is_some_and(|kind| kind == "any_text");
            match (is_text, following) {
                (true, Some(following)) => {
                    let Some(begin) = begin_of(following) else {
                        return Err(invalid(
                            &own,
                            "any_text stands last, or before a const_string or a tag",
                        ));
                    };
                    self.count(&own)?;
                    let pieces = self.mark(begin)?;
                    parts.push(self.lark.text_until(&pieces));
                    // The begin is written already.
                    let path = format!("{path}.elements[{index}]");
                    parts.push(self.behind_begin(following, &path, depth + 1)?);
                    index += 1;
                }
                _ => parts.push(self.format(one, &own, next, depth + 1)?),
            }
        }
        Ok(format!("({})", parts.join(" ")))
    }

    /// What follows the fixed text that a format begins with.
    fn behind_begin(&mut self, format: &Value, path: &str, depth: usize) -> Lines {
        match format {
            Value::Object(map) if map.get("type").is_some_and(|kind| kind == "tag") => {
                Ok(self.tag_format(map, path, depth)?.rest)
            }
            _ => Ok(String::new()),
        }
    }

    fn tag_format(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Tag, GrammarError> {
        let begin = text(map, "begin", path)?;
        let ends = match map.get("end") {
            Some(Value::Array(ends)) => ends.as_slice(),
            Some(end) => std::slice::from_ref(end),
            None => &[],
        };
        let [Value::String(end)] = ends else {
            return Err(invalid(path, "\"end\" is one string"));
        };
        let content = map.get("content");
        let content = content.ok_or_else(|| invalid(path, "\"content\" is missing"))?;
        let inner = format!("{path}.content");
        let is_text = content.get("type").is_some_and(|kind| kind == "any_text");
        if is_text && !end.is_empty() {
            self.count(&inner)?;
            let pieces = self.mark(end)?;
            let rest = self.lark.text_until(&pieces);
            let begin = begin.to_owned();
            return Ok(Tag { begin, rest });
        }
        let next = Some(end.as_str()).filter(|end| !end.is_empty());
        let content = self.format(content, &inner, next, depth + 1)?;
        self.tag(begin, content, end)
    }

    fn tags(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Vec<Tag>, GrammarError> {
        let mut tags = Vec::new();
        for (index, one) in list(map.get("tags"), "tags", path)?.iter().enumerate() {
            let path = format!("{path}.tags[{index}]");
            self.count(&path)?;
            let Value::Object(tag) = one else {
                return Err(invalid(&path, "it is an object"));
            };
            tags.push(self.tag_format(tag, &path, depth + 1)?);
        }
        Ok(tags)
    }

    fn separated(&mut self, map: &Map<String, Value>, path: &str, depth: usize) -> Lines {
        let separator = mark(&self.mark(text(map, "separator", path)?)?);
        let mut options = Vec::new();
        for tag in self.tags(map, path, depth)? {
            options.push(format!("{} {}", mark(&self.mark(&tag.begin)?), tag.rest));
        }
        let one = self.lark.rule(&options.join(" | "));
        let several = match flag(map, "stop_after_first", path)? {
            true => one,
            false => self.lark.rule(&format!("{one} ({separator} {one})*")),
        };
        Ok(match flag(map, "at_least_one", path)? {
            true => several,
            false => format!("{several}?"),
        })
    }
}
