//! Which files of a folder hold a model's weights, and what a file is that is no safetensors file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::{MAX_JSON_BYTES, read_bounded};
use super::mistaken::mistaken;
use super::safetensors::SafetensorsError;

const INDEX: &str = "model.safetensors.index.json";
const EXTENSION: &str = "safetensors";
/// Shards of a model.
const MAX_SHARDS: usize = 10_000;
/// Bytes of a header that says how long its file should be.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// The files that hold the weights, in order: those of the index, where there is one.
///
/// # Errors
/// Names the files that are missing.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, SafetensorsError> {
    let index = folder.join(INDEX);
    let names = match index.exists() {
        true => indexed(&index)?,
        false => with_siblings(present(folder)?),
    };
    if names.is_empty() {
        return Err(SafetensorsError::NoWeights(instead(folder)));
    }
    let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    let missing: Vec<&String> = (names.iter().zip(&paths))
        .filter(|(_, path)| !path.exists())
        .map(|(name, _)| name)
        .collect();
    match missing.first() {
        None => Ok(paths),
        Some(first) => Err(SafetensorsError::MissingShard {
            path: folder.join(first),
            num_others: missing.len() - 1,
            count: names.len(),
        }),
    }
}

/// The files that an index names.
fn indexed(index: &Path) -> Result<BTreeSet<String>, SafetensorsError> {
    let text = read_bounded(index, MAX_JSON_BYTES).map_err(|source| SafetensorsError::Io {
        path: index.to_owned(),
        source,
    })?;
    let bad = |message: String| SafetensorsError::Format {
        path: index.to_owned(),
        message,
    };
    let json: Value = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let map = json["weight_map"].as_object();
    let map = map.ok_or_else(|| bad("it has no weight_map".to_owned()))?;
    map.values()
        .map(|name| match name.as_str() {
            // A name that leads out of the folder is none of its files.
            Some(name) if Path::new(name).file_name() == Some(name.as_ref()) => Ok(name.to_owned()),
            _ => Err(bad(format!("{name} is not the name of a file"))),
        })
        .collect()
}

/// The `*.safetensors` files that are there.
fn present(folder: &Path) -> Result<BTreeSet<String>, SafetensorsError> {
    let entries = std::fs::read_dir(folder).map_err(|source| SafetensorsError::Io {
        path: folder.to_owned(),
        source,
    })?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let names = paths.filter(|path| path.extension().is_some_and(|e| e == EXTENSION));
    Ok(names
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect())
}

/// With the shards that `NAME-00001-of-00003.safetensors` announces.
fn with_siblings(names: BTreeSet<String>) -> BTreeSet<String> {
    let mut all = names.clone();
    for name in &names {
        let Some((prefix, count)) = shard_of(name) else {
            continue;
        };
        let shards =
            (1..=count).map(|shard| format!("{prefix}-{shard:05}-of-{count:05}.{EXTENSION}"));
        all.extend(shards);
    }
    all
}

/// The prefix and the number of shards in a shard's name.
fn shard_of(name: &str) -> Option<(&str, usize)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, shard) = rest.rsplit_once('-')?;
    let number = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<usize>().ok()).flatten()
    };
    let count = number(count).filter(|count| *count <= MAX_SHARDS)?;
    number(shard)
        .is_some_and(|shard| (1..=count).contains(&shard))
        .then_some((prefix, count))
}

/// What a folder without weights holds, and what to do with it.
pub(super) fn instead(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let ends = |end: &str| names.iter().find(|name| name.ends_with(end));
    if let Some(name) = ends(".gguf") {
        return format!(
            ": give the path of the GGUF file in it, {}",
            folder.join(name).display()
        );
    }
    if let Some(name) = ends(".bin").or(ends(".pt")).or(ends(".pth")) {
        return format!(
            ": it holds {name}, a PyTorch checkpoint; fetch the model as safetensors or GGUF"
        );
    }
    String::new()
}

/// What is wrong with a file whose header cannot be read, in words.
pub(super) fn explain(bytes: &[u8], error: &str) -> String {
    if let Some(what) = mistaken(bytes) {
        return format!("not a safetensors file: {what}");
    }
    if bytes.starts_with(b"GGUF") {
        return "not a safetensors file: it is a GGUF file; name it NAME.gguf and give its path"
            .to_owned();
    }
    match whole_len(bytes) {
        Some(whole) if whole > bytes.len() as u64 => {
            let missing = whole - bytes.len() as u64;
            format!(
                "the file is incomplete: the last {missing} of its {whole} bytes are missing; \
                 fetch it again"
            )
        }
        _ => format!("not a safetensors file, or damaged: {error}"),
    }
}

/// The length that a file should have by its header.
fn whole_len(bytes: &[u8]) -> Option<u64> {
    let len = u64::from_le_bytes(*bytes.first_chunk()?);
    let header_len = usize::try_from(len)
        .ok()
        .filter(|len| *len <= MAX_HEADER_BYTES)?;
    let Some(header) = bytes.get(8..8 + header_len) else {
        // A number that is no length has other bytes behind it.
        return (bytes.get(8) == Some(&b'{')).then_some(8 + len);
    };
    let header: Value = serde_json::from_slice(header).ok()?;
    let ends = header.as_object()?.values();
    let end = ends
        .filter_map(|entry| entry["data_offsets"][1].as_u64())
        .max()?;
    end.checked_add(8 + len)
}
