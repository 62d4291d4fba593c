//! Schemas that no finite text can satisfy: an object that must contain itself.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::GrammarError;

/// Larger searches are given up; then the schema counts as one that ends.
const MAX_STEPS: usize = 200_000;

pub(super) fn check(root: &Value) -> Result<(), GrammarError> {
    let mut search = Search {
        root,
        ending: HashSet::new(),
        open: Vec::new(),
        num_steps: 0,
    };
    if search.ends(root) || search.num_steps > MAX_STEPS {
        return Ok(());
    }
    Err(GrammarError::Invalid(
        "the schema is recursive without end: each value would have to contain another one of its kind; make the reference optional".to_owned(),
    ))
}

struct Search<'a> {
    root: &'a Value,
    /// References whose targets end.
    ending: HashSet<&'a str>,
    /// References on the way to here: going through one of them again ends nothing.
    open: Vec<&'a str>,
    num_steps: usize,
}

impl<'a> Search<'a> {
    /// Whether a finite value may satisfy the schema, as far as its structure is concerned.
    fn ends(&mut self, schema: &'a Value) -> bool {
        self.num_steps += 1;
        if self.num_steps > MAX_STEPS {
            return true;
        }
        let Value::Object(map) = schema else {
            return true;
        };
        if map.contains_key("const") || map.contains_key("enum") {
            return true;
        }
        self.reference_ends(map)
            && self.one_ends(map, "anyOf")
            && self.one_ends(map, "oneOf")
            && list(map, "allOf").iter().all(|item| self.ends(item))
            && self.own_ends(map)
    }

    fn reference_ends(&mut self, map: &'a Map<String, Value>) -> bool {
        let Some(reference) = map.get("$ref").and_then(Value::as_str) else {
            return true;
        };
        if self.ending.contains(reference) {
            return true;
        }
        if self.open.contains(&reference) {
            return false;
        }
        let Some(target) = target(self.root, reference) else {
            return true;
        };
        self.open.push(reference);
        let ends = self.ends(target);
        self.open.pop();
        if ends {
            self.ending.insert(reference);
        }
        ends
    }

    fn one_ends(&mut self, map: &'a Map<String, Value>, keyword: &str) -> bool {
        let options = list(map, keyword);
        options.is_empty() || options.iter().any(|item| self.ends(item))
    }

    /// An object's required properties and an array's first items.
    fn own_ends(&mut self, map: &'a Map<String, Value>) -> bool {
        let is_only = |name: &str| match map.get("type") {
            Some(Value::Array(types)) => types.iter().all(|kind| kind == name),
            Some(kind) => kind == name,
            None => false,
        };
        if is_only("object") {
            let properties = map.get("properties").and_then(Value::as_object);
            let required = list(map, "required").iter().filter_map(Value::as_str);
            let mut required = required.filter_map(|name| properties?.get(name));
            return required.all(|schema| self.ends(schema));
        }
        let least = map.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
        if is_only("array") && least > 0 {
            let first = list(map, "prefixItems");
            let rest = map.get("items").filter(|_| least > first.len());
            let mut needed = first.iter().take(least).chain(rest);
            return needed.all(|schema| self.ends(schema));
        }
        true
    }
}

fn list<'a>(map: &'a Map<String, Value>, keyword: &str) -> &'a [Value] {
    map.get(keyword)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Where a reference points to; others than pointers are llguidance's to follow.
pub(in crate::grammar) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(&decode(reference.strip_prefix('#')?))
}

/// Pointers in fragments have percent escapes; the usual ones are a slash and a space.
fn decode(pointer: &str) -> String {
    pointer
        .replace("%20", " ")
        .replace("%24", "$")
        .replace("%25", "%")
}
