//! The key-value section.

use std::collections::HashMap;

use super::GgufError;
use super::reader::Reader;

/// A metadata value; integers of every width become `Int`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Strings),
}

/// Strings, one after the other in one buffer: vocabularies have hundreds of thousands.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Strings {
    text: String,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Strings {
    fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Of all together.
    pub fn num_bytes(&self) -> usize {
        self.text.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.text[*start..*end])
    }
}

/// The metadata of a file, by key.
#[derive(Debug, Default)]
pub struct Metadata {
    entries: HashMap<String, Value>,
}

impl Metadata {
    pub(super) fn read(reader: &mut Reader<'_>, count: usize) -> Result<Self, GgufError> {
        let mut entries = HashMap::with_capacity(count);
        let mut room = MAX_ELEMENTS;
        for _ in 0..count {
            let key = reader.string("a metadata key")?;
            let value_type = reader.u32("a metadata value")?;
            let value = read_value(reader, value_type, &mut room)?;
            if entries.insert(key.clone(), value).is_some() {
                return Err(GgufError::DuplicateKey(key));
            }
        }
        Ok(Self { entries })
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub fn get_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn get_u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub fn get_u32(&self, key: &str) -> Option<u32> {
        self.get_u64(key).and_then(|value| value.try_into().ok())
    }

    pub fn get_f32(&self, key: &str) -> Option<f32> {
        match self.get(key)? {
            Value::Float(value) => Some(*value as f32),
            Value::Int(value) => Some(*value as f32),
            _ => None,
        }
    }

    pub fn get_bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn get_str_array(&self, key: &str) -> Option<&Strings> {
        match self.get(key)? {
            Value::Strs(values) => Some(values),
            _ => None,
        }
    }

    pub fn get_f32_array(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            Value::Floats(values) => Some(values),
            _ => None,
        }
    }

    pub fn get_i64_array(&self, key: &str) -> Option<&[i64]> {
        match self.get(key)? {
            Value::Ints(values) => Some(values),
            _ => None,
        }
    }
}

const WHAT: &str = "a metadata value";

/// Elements of all arrays together. They take up to 24 bytes of memory for one in the file; the largest vocabularies
/// have two million with their types, scores and merges.
const MAX_ELEMENTS: usize = 1 << 24;

fn read_value(
    reader: &mut Reader<'_>,
    value_type: u32,
    room: &mut usize,
) -> Result<Value, GgufError> {
    Ok(match value_type {
        6 => Value::Float(f64::from(f32::from_le_bytes(reader.array(WHAT)?))),
        12 => Value::Float(f64::from_le_bytes(reader.array(WHAT)?)),
        7 => Value::Bool(reader.array::<1>(WHAT)?[0] != 0),
        8 => Value::Str(reader.string(WHAT)?),
        9 => {
            let element_type = reader.u32(WHAT)?;
            read_array(reader, element_type, room)?
        }
        10 => Value::Int(i128::from(reader.u64(WHAT)?)),
        _ => Value::Int(i128::from(read_int(reader, value_type)?)),
    })
}

fn read_int(reader: &mut Reader<'_>, value_type: u32) -> Result<i64, GgufError> {
    Ok(match value_type {
        0 => i64::from(reader.array::<1>(WHAT)?[0]),
        1 => i64::from(reader.array::<1>(WHAT)?[0] as i8),
        2 => i64::from(u16::from_le_bytes(reader.array(WHAT)?)),
        3 => i64::from(i16::from_le_bytes(reader.array(WHAT)?)),
        4 => i64::from(reader.u32(WHAT)?),
        5 => i64::from(i32::from_le_bytes(reader.array(WHAT)?)),
        7 => i64::from(reader.array::<1>(WHAT)?[0] != 0),
        10 | 11 => i64::from_le_bytes(reader.array(WHAT)?),
        other => return Err(GgufError::UnknownValueType(other)),
    })
}

fn read_array(
    reader: &mut Reader<'_>,
    element_type: u32,
    room: &mut usize,
) -> Result<Value, GgufError> {
    let smallest = match element_type {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        8 | 10..=12 => 8,
        4..=6 => 4,
        9 => return Err(GgufError::NestedArray),
        other => return Err(GgufError::UnknownValueType(other)),
    };
    let count = reader.count("a metadata array", smallest)?;
    super::limited("a metadata array", count, *room)?;
    *room -= count;
    Ok(match element_type {
        8 => {
            let mut strings = Strings::default();
            for _ in 0..count {
                strings.push(reader.text(WHAT)?);
            }
            strings.shrink();
            Value::Strs(strings)
        }
        6 => Value::Floats(
            (0..count)
                .map(|_| Ok(f32::from_le_bytes(reader.array(WHAT)?)))
                .collect::<Result<_, GgufError>>()?,
        ),
        12 => Value::Floats(
            (0..count)
                .map(|_| Ok(f64::from_le_bytes(reader.array(WHAT)?) as f32))
                .collect::<Result<_, GgufError>>()?,
        ),
        _ => Value::Ints(
            (0..count)
                .map(|_| read_int(reader, element_type))
                .collect::<Result<_, _>>()?,
        ),
    })
}
