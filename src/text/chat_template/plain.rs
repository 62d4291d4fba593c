//! Values that a template keeps: of bounded depth and size, without cycles, and with nothing left
//! to evaluate.
//!
//! Printing, comparing and dropping a value recurse as deep as it nests, and walk what it holds
//! several times as often as it holds it. So a value is measured when it is put into a variable,
//! whence it could grow with each turn of a loop.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

/// Lists in lists. Requests nest to 128 (serde_json's limit).
const MAX_DEPTH: usize = 160;
/// Items that are looked at for one unit of fuel.
const ITEMS_PER_FUEL: usize = 8;
/// The type behind `namespace()`, which minijinja keeps to itself.
const NAMESPACE: &str = "::Namespace";
/// Where its other types of values live.
const ENGINE: &str = "minijinja::vm::";

/// Where a value is put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Variable,
    Namespace,
}

/// What `{% set name = value %}` assigns.
pub(super) fn keep(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let changed = walk(state, value, Place::Variable, 0)?;
    Ok(changed.unwrap_or_else(|| value.clone()))
}

/// What `{% set namespace.name = value %}` assigns.
pub(super) fn keep_in_namespace(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let changed = walk(state, value, Place::Namespace, 0)?;
    Ok(changed.unwrap_or_else(|| value.clone()))
}

/// `namespace(...)`, whose first values are kept as later ones are.
pub(super) fn namespace(
    state: &mut State<'_, '_>,
    defaults: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let mut kept = Vec::new();
    if let Some(defaults) = defaults {
        for key in defaults.try_iter()? {
            let value = keep_in_namespace(state, &defaults.get_item(&key)?)?;
            kept.push((key, value));
        }
    }
    for name in named.args() {
        let value: Value = named.get(name)?;
        kept.push((Value::from(name), keep_in_namespace(state, &value)?));
    }
    let builtin = Value::from_function(minijinja::functions::namespace);
    builtin.call(state, &[Value::from_pairs(kept)])
}

/// Writes a value into the output, whose items are counted first.
pub(super) fn write(
    output: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    walk(state, value, Place::Variable, 0)?;
    minijinja::escape_formatter(output, state, value)
}

/// Whether the value is a namespace, whose items were kept when they were put there, or a macro or loop, which holds
/// the variables around it.
fn is_engines_own(value: &Value) -> bool {
    let name = value.as_object().map(|object| object.type_name());
    name.is_some_and(|name| name.ends_with(NAMESPACE) || name.starts_with(ENGINE))
}

/// Measures a value; `Some` is what to take instead, when something in it was not evaluated yet.
fn walk(
    state: &State<'_, '_>,
    value: &Value,
    place: Place,
    depth: usize,
) -> Result<Option<Value>, Error> {
    let refused = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_owned()));
    if depth > MAX_DEPTH {
        return refused("lists and maps nest too deeply");
    }
    match value.kind() {
        ValueKind::Plain => match place {
            Place::Variable => Ok(None),
            Place::Namespace => refused("a namespace holds data only"),
        },
        _ if is_engines_own(value) => match place {
            Place::Variable => Ok(None),
            Place::Namespace => refused("a namespace holds no namespaces, macros and loops"),
        },
        ValueKind::Map => walk_map(state, value, place, depth),
        ValueKind::Seq | ValueKind::Iterable => walk_list(state, value, place, depth),
        _ => Ok(None),
    }
}

fn walk_list(
    state: &State<'_, '_>,
    value: &Value,
    place: Place,
    depth: usize,
) -> Result<Option<Value>, Error> {
    // Views of other lists are evaluated, or they would become views of views.
    let mut changed: Option<Vec<Value>> = match value.kind() {
        ValueKind::Iterable => Some(Vec::new()),
        _ => None,
    };
    state.consume_fuel(1)?;
    for (index, item) in value.try_iter()?.enumerate() {
        if index % ITEMS_PER_FUEL == ITEMS_PER_FUEL - 1 {
            state.consume_fuel(1)?;
        }
        let new = walk(state, &item, place, depth + 1)?;
        if new.is_some() && changed.is_none() {
            changed = Some(value.try_iter()?.take(index).collect());
        }
        if let Some(changed) = &mut changed {
            changed.push(new.unwrap_or(item));
        }
    }
    Ok(changed.map(Value::from))
}

fn walk_map(
    state: &State<'_, '_>,
    value: &Value,
    place: Place,
    depth: usize,
) -> Result<Option<Value>, Error> {
    let mut is_changed = false;
    let mut items = Vec::new();
    state.consume_fuel(1)?;
    for key in value.try_iter()? {
        state.consume_fuel(1)?;
        walk(state, &key, place, depth + 1)?;
        let item = value.get_item(&key)?;
        let new = walk(state, &item, place, depth + 1)?;
        is_changed |= new.is_some();
        items.push((key, new.unwrap_or(item)));
    }
    Ok(is_changed.then(|| Value::from_pairs(items)))
}
