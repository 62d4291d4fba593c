//! Keywords that cannot be enforced token by token.

use serde_json::{Map, Value};

/// Known keywords that llguidance does not implement.
const UNSUPPORTED: [&str; 16] = [
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "propertyNames",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];

/// Refuses keywords that cannot be enforced, or takes them out.
pub(super) fn check(
    map: &mut Map<String, Value>,
    strict: bool,
    has_ids: bool,
) -> Result<(), String> {
    for keyword in UNSUPPORTED {
        match map.get(keyword) {
            None => continue,
            // They say nothing.
            Some(Value::Bool(false)) if keyword == "uniqueItems" => {}
            Some(Value::Bool(true)) if keyword.starts_with("unevaluated") => {}
            Some(_) if strict => {
                return Err(format!(
                    "the keyword {keyword:?} is not supported with strict; leave it out, or set strict to false"
                ));
            }
            Some(_) => {}
        }
        map.remove(keyword);
    }
    check_ref(map, has_ids)?;
    check_types(map)?;
    check_repeated_names(map, strict)
}

/// References stay inside the document: nothing is ever fetched.
fn check_ref(map: &Map<String, Value>, has_ids: bool) -> Result<(), String> {
    let Some(reference) = map.get("$ref") else {
        return Ok(());
    };
    let Some(reference) = reference.as_str() else {
        return Err("$ref is a string".to_owned());
    };
    // A schema with names of its own may mean one of them; llguidance looks, and does not fetch.
    if reference.starts_with('#') || has_ids {
        return Ok(());
    }
    Err(format!(
        "$ref {reference:?} points outside of the schema; references are never fetched: put the target into $defs"
    ))
}

fn check_types(map: &Map<String, Value>) -> Result<(), String> {
    const TYPES: [&str; 7] = [
        "null", "boolean", "number", "integer", "string", "array", "object",
    ];
    let types = match map.get("type") {
        None => return Ok(()),
        Some(Value::Array(types)) if types.is_empty() => {
            return Err("the list of types is empty".to_owned());
        }
        Some(Value::Array(types)) => types.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    for name in types {
        if !name.as_str().is_some_and(|name| TYPES.contains(&name)) {
            return Err(format!(
                "unknown type {name}; types are {}",
                TYPES.join(", ")
            ));
        }
    }
    Ok(())
}

/// A name may come twice among the names that a schema does not list, and counts once.
fn check_repeated_names(map: &Map<String, Value>, strict: bool) -> Result<(), String> {
    let least = map.get("minProperties").and_then(Value::as_u64);
    let required = map.get("required").and_then(Value::as_array);
    let num_required = required.map_or(0, Vec::len) as u64;
    if strict && least.is_some_and(|least| least > num_required + 1) {
        return Err(format!(
            "the keyword \"minProperties\" is supported with strict only up to the number of required properties and one more ({})",
            num_required + 1
        ));
    }
    Ok(())
}
