//! `tojson` as Python's `json.dumps(ensure_ascii=False)` writes it.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Lists in lists.
const MAX_DEPTH: usize = 256;
const MAX_INDENT: usize = 16;
/// Bytes that are written for one unit of fuel: walking values costs more than copying.
const BYTES_PER_FUEL: usize = 16;

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    text: String,
    /// Bytes of `text` that are paid for.
    paid: usize,
    /// Spaces a level; `None` writes one line, with `, ` and `: ` between items.
    indent: Option<usize>,
}

/// The filter. It knows `indent`; other options of Python's are what it does anyway, or ignored.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    options: Kwargs,
) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut writer = Writer {
        state,
        text: String::new(),
        paid: 0,
        indent: indent.map(|indent| indent.min(MAX_INDENT)),
    };
    writer.value(value, 0)?;
    Ok(writer.text)
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            let message = "lists and maps nest too deeply for JSON";
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
        match value.kind() {
            ValueKind::Map => self.map(value, depth),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::Plain => self.string(&value.to_string()),
            _ => match value.as_str() {
                Some(text) => self.string(text),
                None => {
                    let scalar = serde_json::to_string(value).map_err(failed)?;
                    self.write(&scalar)
                }
            },
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.write("[")?;
        let mut is_empty = true;
        for item in value.try_iter()? {
            self.between(is_empty, depth + 1)?;
            is_empty = false;
            self.value(&item, depth + 1)?;
        }
        self.end(is_empty, depth)?;
        self.write("]")
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.write("{")?;
        let mut is_empty = true;
        for key in value.try_iter()? {
            self.between(is_empty, depth + 1)?;
            is_empty = false;
            match key.as_str() {
                Some(text) => self.string(text)?,
                None if matches!(key.kind(), ValueKind::Number | ValueKind::Bool) => {
                    let scalar = serde_json::to_string(&key).map_err(failed)?;
                    self.string(&scalar)?;
                }
                None => {
                    let message = format!("a key of JSON is a string, not a {}", key.kind());
                    return Err(Error::new(ErrorKind::BadSerialization, message));
                }
            }
            self.write(": ")?;
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.end(is_empty, depth)?;
        self.write("}")
    }

    /// What stands before an item.
    fn between(&mut self, is_first: bool, depth: usize) -> Result<(), Error> {
        match (is_first, self.indent) {
            (true, None) => Ok(()),
            (false, None) => self.write(", "),
            (true, Some(_)) => self.line(depth),
            (false, Some(_)) => {
                self.write(",")?;
                self.line(depth)
            }
        }
    }

    fn end(&mut self, is_empty: bool, depth: usize) -> Result<(), Error> {
        match is_empty || self.indent.is_none() {
            true => Ok(()),
            false => self.line(depth),
        }
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        self.write("\n")?;
        self.write(&" ".repeat(self.indent.unwrap_or(0) * depth))
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        let quoted = serde_json::to_string(text).map_err(failed)?;
        self.write(&quoted)
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        self.text.push_str(text);
        let fuel = (self.text.len() - self.paid) / BYTES_PER_FUEL;
        if fuel > 0 {
            self.paid += fuel * BYTES_PER_FUEL;
            self.state.consume_fuel(fuel as u64)?;
        }
        Ok(())
    }
}

fn failed(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, error.to_string())
}
