//! A mutator for inputs whose parts are JSON: it changes values, not only bytes, so that most of
//! what it makes is still JSON and reaches what is behind the parser.

use serde_json::{Number, Value};

use crate::parts;
use crate::words::Words;

/// One of so many changes is libFuzzer's own, of bytes.
const BYTES_ONE_IN: u64 = 4;
/// Most changes at once.
const MAX_CHANGES: u64 = 4;
/// Most levels that are put around a value at once: more than a parser may take.
const MAX_LEVELS: u64 = 140;
/// Most times that an item is repeated at once.
const MAX_REPEATS: u64 = 40;
/// More bytes than these are libFuzzer's alone: to parse them takes too long.
const MAX_JSON_BYTES: usize = 64 << 10;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.index(items.len()))
    }
}

/// Changes one part of `data[..size]`; JSON begins behind the first `prefix` bytes of a part.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    prefix: usize,
    words: &Words,
) -> usize {
    let mut random = Random(u64::from(seed));
    let max_size = max_size.min(data.len());
    if random.below(BYTES_ONE_IN) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mut all: Vec<Vec<u8>> = parts::split(&data[..size]).map(<[u8]>::to_vec).collect();
    let which = random.index(all.len());
    let room = max_size - size + all[which].len();
    let Some(changed) = change_part(&all[which], room, prefix, words, &mut random) else {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    };
    all[which] = changed;
    let joined = parts::join(&all);
    match joined.len() <= max_size {
        true => {
            data[..joined.len()].copy_from_slice(&joined);
            joined.len()
        }
        false => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
}

/// The part with some values changed, or with its bytes changed where it is no JSON.
fn change_part(
    part: &[u8],
    room: usize,
    prefix: usize,
    words: &Words,
    random: &mut Random,
) -> Option<Vec<u8>> {
    let (head, json) = part.split_at(prefix.min(part.len()));
    let value = (json.len() <= MAX_JSON_BYTES)
        .then(|| serde_json::from_slice::<Value>(json).ok())
        .flatten();
    let Some(mut value) = value else {
        let mut bytes = part.to_vec();
        bytes.resize(room, 0);
        let len = libfuzzer_sys::fuzzer_mutate(&mut bytes, part.len(), room);
        bytes.truncate(len);
        return Some(bytes);
    };
    for _ in 0..=random.below(MAX_CHANGES) {
        change(&mut value, words, random);
    }
    let json = serde_json::to_vec(&value).ok()?;
    Some([head, &json].concat())
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(entries) => entries.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at a place in the order of a walk.
fn at<'v>(value: &'v mut Value, place: &mut usize) -> Option<&'v mut Value> {
    if *place == 0 {
        return Some(value);
    }
    *place -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| at(item, place)),
        Value::Object(entries) => entries.values_mut().find_map(|item| at(item, place)),
        _ => None,
    }
}

fn change(root: &mut Value, words: &Words, random: &mut Random) {
    let mut from = random.index(count(root));
    let other = at(root, &mut from).map(|value| value.clone());
    let mut place = random.index(count(root));
    let Some(target) = at(root, &mut place) else {
        return;
    };
    match random.below(8) {
        0 => replace(target, random.pick(&words.odd)),
        1 => replace(target, random.pick(&words.texts)),
        2 => replace(target, other.as_ref()),
        3 => nest(target, random),
        4 => turn(target, random),
        _ => match target {
            Value::Array(items) => change_items(items, other, words, random),
            Value::Object(entries) if random.below(4) == 0 => {
                let name = entries.keys().nth(random.index(entries.len())).cloned();
                name.map(|name| entries.shift_remove(&name));
            }
            Value::Object(entries) => {
                if let Some((name, value)) = random.pick(&words.entries) {
                    let odd = random.pick(&words.odd).cloned();
                    let is_odd = value.is_null() || random.below(4) == 0;
                    let value = if is_odd { odd } else { Some(value.clone()) };
                    entries.insert(name.clone(), value.unwrap_or_default());
                }
            }
            scalar => turn(scalar, random),
        },
    }
}

fn replace(target: &mut Value, by: Option<&Value>) {
    if let Some(by) = by {
        *target = by.clone();
    }
}

fn nest(target: &mut Value, random: &mut Random) {
    let levels = match random.below(8) {
        0 => random.below(MAX_LEVELS),
        _ => 1,
    };
    for _ in 0..levels {
        let inner = target.take();
        *target = Value::Array(vec![inner]);
    }
}

fn change_items(items: &mut Vec<Value>, other: Option<Value>, words: &Words, random: &mut Random) {
    let index = random.index(items.len());
    match random.below(4) {
        0 if !items.is_empty() => {
            items.remove(index);
        }
        1 if !items.is_empty() => {
            let item = items[index].clone();
            let times = random.below(MAX_REPEATS) as usize;
            items.extend(std::iter::repeat_n(item, times));
        }
        2 => items.extend(random.pick(&words.odd).cloned()),
        _ => items.insert(index, other.unwrap_or_default()),
    }
}

/// Another value of the same kind.
fn turn(target: &mut Value, random: &mut Random) {
    match target {
        Value::Bool(is) => *is = !*is,
        Value::Number(number) => {
            let old = number.as_f64().unwrap_or(0.0);
            let new = match random.below(6) {
                0 => old + 1.0,
                1 => old - 1.0,
                2 => old * 2.0,
                3 => -old,
                4 => old / 3.0,
                _ => random.below(300) as f64,
            };
            *number = match new.fract() == 0.0 && new.abs() < 1e15 {
                true => Number::from(new as i64),
                false => Number::from_f64(new).unwrap_or_else(|| Number::from(0)),
            };
        }
        Value::String(text) => {
            let mut bytes = std::mem::take(text).into_bytes();
            let len = bytes.len();
            bytes.resize(2 * len + 8, 0);
            let max = bytes.len();
            let len = libfuzzer_sys::fuzzer_mutate(&mut bytes, len, max);
            *text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        }
        other => {
            if let Value::Object(entries) = other {
                let name = entries.keys().nth(random.index(entries.len())).cloned();
                let value = name.and_then(|name| entries.get(&name).cloned());
                replace(other, value.as_ref());
            }
        }
    }
}
