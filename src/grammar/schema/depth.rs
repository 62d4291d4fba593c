//! How deep a schema nests when its references are followed, as llguidance does recursively.

use std::collections::HashSet;

use serde_json::Value;

use super::super::GrammarError;
use super::super::limits::MAX_REFERENCED_DEPTH;
use super::finite::target;

pub(super) fn check(root: &Value) -> Result<(), GrammarError> {
    let mut walk = Walk {
        root,
        seen: HashSet::new(),
    };
    match walk.fits(root, MAX_REFERENCED_DEPTH) {
        true => Ok(()),
        false => Err(GrammarError::TooMuchWork(format!(
            "the schema nests more than {MAX_REFERENCED_DEPTH} levels deep through its references"
        ))),
    }
}

struct Walk<'a> {
    root: &'a Value,
    /// References that were followed before: each is compiled once.
    seen: HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn fits(&mut self, value: &'a Value, levels: usize) -> bool {
        let Some(below) = levels.checked_sub(1) else {
            return false;
        };
        match value {
            Value::Object(map) => {
                let reference = map.get("$ref").and_then(Value::as_str);
                let target = reference
                    .filter(|reference| self.seen.insert(reference))
                    .and_then(|reference| target(self.root, reference));
                target.is_none_or(|target| self.fits(target, below))
                    && map.values().all(|value| self.fits(value, below))
            }
            Value::Array(items) => items.iter().all(|value| self.fits(value, below)),
            _ => true,
        }
    }
}
