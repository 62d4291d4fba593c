//! The leaves of an outcome: read one by one, so that a body is no larger in memory than what it
//! says.

use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::trace::{LeafOutcome, MAX_LEAVES};

/// What a body says of single answers, or why it cannot be taken: the error names the parameter, not a place in it.
#[derive(Debug)]
pub(super) struct Leaves(pub Result<Vec<LeafOutcome>, String>);

impl<'de> Deserialize<'de> for Leaves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LeavesVisitor)
    }
}

struct LeavesVisitor;

impl<'de> Visitor<'de> for LeavesVisitor {
    type Value = Leaves;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of objects with node and outcome")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Leaves, A::Error> {
        let mut leaves = Vec::new();
        let mut refused = None;
        while leaves.len() < MAX_LEAVES
            && refused.is_none()
            && let Some(leaf) = list.next_element::<Value>()?
        {
            match serde_json::from_value(leaf) {
                Ok(leaf) => leaves.push(leaf),
                Err(error) => {
                    let message = format!("leaves takes objects with node and outcome: {error}");
                    refused = Some(message);
                }
            }
        }
        // The rest is read, not kept.
        let mut is_more = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            is_more = true;
        }
        if refused.is_none() && is_more {
            refused = Some(format!("leaves takes at most {MAX_LEAVES}"));
        }
        Ok(Leaves(refused.map_or(Ok(leaves), Err)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<LeafOutcome>, String> {
        serde_json::from_str::<Leaves>(text).unwrap().0
    }

    #[test]
    fn leaves_are_read_up_to_their_limit() {
        let leaf = r#"{"node":1,"outcome":1}"#;
        let list = |count: usize| format!("[{}]", vec![leaf; count].join(","));
        assert_eq!(read(&list(2)).unwrap().len(), 2);
        assert_eq!(read(&list(MAX_LEAVES)).unwrap().len(), MAX_LEAVES);
        let error = read(&list(MAX_LEAVES + 1)).unwrap_err();
        assert!(error.contains("at most"), "{error}");
        for text in [r#"[{"node":1}]"#, "[1]", r#"[{"node":-1,"outcome":0}, 2]"#] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Leaves>("{}").is_err());
    }
}
