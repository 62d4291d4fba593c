//! Why a file is no GGUF file that Ponder reads.

use std::path::PathBuf;

/// Why a file is not a GGUF file that Ponder can read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    #[error("not a regular file")]
    NoFile,
    #[error("not a GGUF file: {0}")]
    Mistaken(String),
    #[error("not a GGUF file: it begins with {0}")]
    BadMagic(String),
    #[error("the GGUF file is of a big-endian machine: fetch the little-endian one")]
    BigEndian,
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    UnsupportedVersion(u32),
    #[error("the file ends inside {0}: it is incomplete; fetch it again")]
    Truncated(&'static str),
    #[error(
        "the file is incomplete: the last {missing} of its {whole} bytes are missing; fetch it again"
    )]
    Incomplete { missing: u64, whole: u64 },
    #[error(
        "{what} claims {count} entries, more than the file has room for: it is incomplete or damaged"
    )]
    HugeCount { what: &'static str, count: u64 },
    #[error("{what} has {count} entries, more than the {limit} that any model has")]
    TooMany {
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("{0} is not valid UTF-8")]
    InvalidUtf8(&'static str),
    #[error("unknown metadata value type {0}")]
    UnknownValueType(u32),
    #[error("arrays nest too deeply")]
    NestedArray,
    #[error("metadata key {0:?} appears twice")]
    DuplicateKey(String),
    #[error("tensor {0:?} appears twice")]
    DuplicateTensor(String),
    #[error("tensor {name:?} has unsupported type number {type_id}")]
    UnsupportedTensorType { name: String, type_id: u32 },
    #[error("tensor {name:?} has an impossible shape {dimensions:?}")]
    BadShape { name: String, dimensions: Vec<u64> },
    #[error("tensor {name:?} lies outside the file or is misaligned (offset {offset})")]
    BadOffset { name: String, offset: u64 },
    #[error("tensors {0:?} and {1:?} overlap")]
    Overlap(String, String),
    #[error("alignment {0} is not a power of two")]
    BadAlignment(u64),
    #[error("{key} is {value}, which is impossible in a part of a model")]
    BadSplit { key: &'static str, value: String },
    #[error(
        "the file is part {part} of {count}, but is not named NAME-{part:05}-of-{count:05}.gguf: its other parts cannot be found"
    )]
    PartName { part: usize, count: usize },
    #[error(
        "the model has {count} parts, of which {missing} missing: put them into the same folder"
    )]
    MissingParts { count: usize, missing: String },
    #[error("{}: {what}", path.display())]
    OtherModel { path: PathBuf, what: String },
    #[error("{}: {source}", path.display())]
    Part {
        path: PathBuf,
        source: Box<GgufError>,
    },
}
