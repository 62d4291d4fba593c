//! GGUF files: header, metadata and tensor directory over a memory map.
//!
//! Every count and offset of the file is checked against the bytes that are there before anything
//! is allocated or read. Format: ggml's `docs/gguf.md`.

mod error;
mod file;
mod metadata;
mod reader;
pub mod split;

use std::collections::HashMap;

use ponder_kernels::DType;

use super::mistaken::{first_bytes, mistaken};
pub use error::GgufError;
pub use file::GgufFile;
pub use metadata::{Metadata, Strings, Value};
use reader::Reader;

const MAGIC: [u8; 4] = *b"GGUF";
const SUPPORTED_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
/// Entries take more memory than bytes in the file, so their numbers are bounded by what models have: with every expert
/// alone, some 60,000 tensors.
const MAX_TENSORS: usize = 1 << 18;
const MAX_ENTRIES: usize = 1 << 16;

/// A tensor's entry in the directory.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub dtype: DType,
    /// Innermost first, as in the file: a matrix is `[in_features, out_features]`.
    pub dimensions: Vec<usize>,
    start: usize,
    len: usize,
}

/// Metadata and directory of a file's bytes.
pub fn parse(bytes: &[u8]) -> Result<(Metadata, HashMap<String, TensorInfo>), GgufError> {
    let mut reader = Reader::new(bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err(not_gguf(bytes));
    }
    reader.take(MAGIC.len(), "the magic")?;
    let version = reader.u32("the version")?;
    if SUPPORTED_VERSIONS.contains(&version.swap_bytes()) {
        return Err(GgufError::BigEndian);
    }
    if !SUPPORTED_VERSIONS.contains(&version) {
        return Err(GgufError::UnsupportedVersion(version));
    }
    // A directory entry takes at least 24 bytes, a metadata entry at least 13.
    let num_tensors = reader.count("the tensor directory", 24)?;
    let num_entries = reader.count("the metadata", 13)?;
    limited("the tensor directory", num_tensors, MAX_TENSORS)?;
    limited("the metadata", num_entries, MAX_ENTRIES)?;
    let metadata = Metadata::read(&mut reader, num_entries)?;
    let alignment = metadata
        .get_u64("general.alignment")
        .unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(GgufError::BadAlignment(alignment));
    }
    let mut directory = Vec::with_capacity(num_tensors);
    for _ in 0..num_tensors {
        directory.push(read_entry(&mut reader)?);
    }
    let data_start = (reader.position() as u64)
        .checked_next_multiple_of(alignment)
        .ok_or(GgufError::BadAlignment(alignment))?;
    let mut tensors = HashMap::with_capacity(num_tensors);
    for (name, dimensions, dtype, offset) in directory {
        let info = place(&name, &dimensions, dtype, offset, data_start, alignment)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(GgufError::DuplicateTensor(name));
        }
    }
    check_places(&tensors, data_start, alignment, bytes.len())?;
    Ok((metadata, tensors))
}

/// What a file is that does not begin as GGUF files do.
fn not_gguf(bytes: &[u8]) -> GgufError {
    if let Some(what) = mistaken(bytes) {
        return GgufError::Mistaken(what);
    }
    if bytes.get(8) == Some(&b'{') {
        return GgufError::Mistaken(
            "the file is a safetensors file: give the folder that holds it, with its config.json \
             and tokenizer.json"
                .to_owned(),
        );
    }
    GgufError::BadMagic(first_bytes(bytes))
}

fn limited(what: &'static str, count: usize, limit: usize) -> Result<(), GgufError> {
    match count <= limit {
        true => Ok(()),
        false => Err(GgufError::TooMany { what, count, limit }),
    }
}

type Entry = (String, Vec<u64>, DType, u64);

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, GgufError> {
    let name = reader.string("a tensor's name")?;
    let num_dimensions = reader.u32("a tensor's shape")?;
    if num_dimensions > MAX_DIMENSIONS {
        return Err(GgufError::BadShape {
            name,
            dimensions: vec![u64::from(num_dimensions)],
        });
    }
    let mut dimensions = Vec::new();
    for _ in 0..num_dimensions {
        dimensions.push(reader.u64("a tensor's shape")?);
    }
    let type_id = reader.u32("a tensor's type")?;
    let offset = reader.u64("a tensor's offset")?;
    let dtype = DType::from_ggml(type_id).ok_or_else(|| GgufError::UnsupportedTensorType {
        name: name.clone(),
        type_id,
    })?;
    Ok((name, dimensions, dtype, offset))
}

/// Where a tensor says that it lies.
fn place(
    name: &str,
    dimensions: &[u64],
    dtype: DType,
    offset: u64,
    data_start: u64,
    alignment: u64,
) -> Result<TensorInfo, GgufError> {
    let bad_shape = || GgufError::BadShape {
        name: name.to_owned(),
        dimensions: dimensions.to_vec(),
    };
    let sizes: Option<Vec<usize>> = dimensions
        .iter()
        .map(|size| usize::try_from(*size).ok().filter(|size| *size > 0))
        .collect();
    let sizes = sizes
        .filter(|sizes| !sizes.is_empty())
        .ok_or_else(bad_shape)?;
    // Blocks never straddle rows.
    let row_bytes = dtype.byte_count(sizes[0]).ok_or_else(bad_shape)?;
    let len = sizes[1..]
        .iter()
        .try_fold(row_bytes, |len, size| len.checked_mul(*size))
        .ok_or_else(bad_shape)?;
    let bad_offset = || GgufError::BadOffset {
        name: name.to_owned(),
        offset,
    };
    if !offset.is_multiple_of(alignment) {
        return Err(bad_offset());
    }
    let start = data_start
        .checked_add(offset)
        .and_then(|start| usize::try_from(start).ok())
        .ok_or_else(bad_offset)?;
    start.checked_add(len).ok_or_else(bad_offset)?;
    Ok(TensorInfo {
        dtype,
        dimensions: sizes,
        start,
        len,
    })
}

/// Tensors neither overlap nor lie outside the file of `file_len` bytes. One whose tensors follow
/// each other without gaps is cut off; others make claims that no writer makes.
fn check_places(
    tensors: &HashMap<String, TensorInfo>,
    data_start: u64,
    alignment: u64,
    file_len: usize,
) -> Result<(), GgufError> {
    let mut ranges: Vec<_> = tensors
        .iter()
        .map(|(name, info)| (info.start, info.start + info.len, name))
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(GgufError::Overlap(pair[0].2.clone(), pair[1].2.clone()));
        }
    }
    let Some((start, end, name)) = ranges.iter().find(|(_, end, _)| *end > file_len) else {
        return Ok(());
    };
    let mut expected = data_start;
    let has_gaps = ranges.iter().any(|(start, end, _)| {
        let is_next = *start as u64 == expected;
        expected = (*end as u64).next_multiple_of(alignment);
        !is_next
    });
    let whole = ranges.last().map_or(*end, |(_, end, _)| *end);
    match has_gaps {
        true => Err(GgufError::BadOffset {
            name: (*name).clone(),
            offset: *start as u64 - data_start,
        }),
        false => Err(GgufError::Incomplete {
            missing: (whole - file_len) as u64,
            whole: whole as u64,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::testing::GgufWriter;

    fn sample() -> Vec<u8> {
        let mut writer = GgufWriter::new();
        writer.string("general.architecture", "llama");
        writer.u32("llama.block_count", 2);
        writer.strings("tokenizer.ggml.tokens", &["a", "b"]);
        writer.f32_tensor("x", &[4, 2], &[1.0; 8]);
        writer.f32_tensor("y", &[3], &[2.0; 3]);
        writer.finish()
    }

    #[test]
    fn reads_what_the_writer_wrote() {
        let bytes = sample();
        let (metadata, tensors) = parse(&bytes).unwrap();
        assert_eq!(metadata.get_str("general.architecture"), Some("llama"));
        assert_eq!(metadata.get_u64("llama.block_count"), Some(2));
        let tokens = metadata.get_str_array("tokenizer.ggml.tokens").unwrap();
        assert!(tokens.iter().eq(["a", "b"]));
        assert_eq!(tensors["x"].dimensions, [4, 2]);
        assert_eq!(tensors["y"].len, 12);
    }

    #[test]
    fn malformed_headers_are_typed_errors() {
        let good = sample();
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&bad).unwrap_err()
        };
        assert!(matches!(with(0, b"GGML"), GgufError::BadMagic(_)));
        assert!(matches!(
            with(4, &[9, 0, 0, 0]),
            GgufError::UnsupportedVersion(9)
        ));
        assert!(matches!(with(8, &[0xff; 8]), GgufError::HugeCount { .. }));
        assert!(matches!(with(16, &[0xff; 8]), GgufError::HugeCount { .. }));
        let y = good
            .windows(9)
            .position(|w| w == b"\x01\0\0\0\0\0\0\0y")
            .unwrap()
            + 9;
        assert!(matches!(
            with(y + 12, &[77, 0, 0, 0]),
            GgufError::UnsupportedTensorType { .. }
        ));
        assert!(matches!(with(y + 16, &[0; 8]), GgufError::Overlap(..)));
        assert!(matches!(
            with(y + 16, &[1, 0, 0, 0, 0, 0, 0, 0]),
            GgufError::BadOffset { .. }
        ));
        assert!(matches!(
            with(y + 16, &[0, 0, 0, 0, 0, 0, 0, 0x70]),
            GgufError::BadOffset { .. }
        ));
        assert!(matches!(
            with(y + 4, &[0xff; 8]),
            GgufError::BadShape { .. }
        ));
    }

    /// A file may have room for the entries that it claims, and still take many times its size in memory.
    #[test]
    fn numbers_of_entries_that_no_model_has_are_refused() {
        let header = |num_tensors: u64, num_entries: u64| {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(num_tensors.to_le_bytes());
            bytes.extend(num_entries.to_le_bytes());
            bytes
        };
        let mut tensors = header(1 << 19, 0);
        tensors.resize(tensors.len() + (24 << 19), 0);
        let mut entries = header(0, 1 << 17);
        entries.resize(entries.len() + (13 << 17), 0);
        let mut array = header(0, 1);
        array.extend(1_u64.to_le_bytes());
        array.extend(b"k");
        array.extend(9_u32.to_le_bytes());
        array.extend(0_u32.to_le_bytes());
        array.extend((17_u64 << 20).to_le_bytes());
        array.resize(array.len() + (17 << 20), 0);
        for bytes in [tensors, entries, array] {
            assert!(matches!(parse(&bytes), Err(GgufError::TooMany { .. })));
        }
    }

    /// Every length of a file that was cut says what is missing, and never that it is another
    /// thing.
    #[test]
    fn a_cut_file_says_how_much_is_missing() {
        let good = sample();
        let whole = good.len();
        for len in 4..whole {
            let told = parse(&good[..len]).unwrap_err().to_string();
            assert!(told.contains("incomplete"), "{len}: {told}");
        }
        let told = parse(&good[..whole - 7]).unwrap_err().to_string();
        assert!(
            told.contains(&format!("the last 7 of its {whole} bytes")),
            "{told}"
        );
        assert!(matches!(parse(&[]), Err(GgufError::Mistaken(_))));
    }

    #[test]
    fn other_files_are_named() {
        let told = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert!(told(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(told(b"\x10\0\0\0\0\0\0\0{\"a\":1}").contains("safetensors"));
        assert!(told(b"GGUF\0\0\0\x03").contains("big-endian"));
        assert_eq!(
            told(b"GGML"),
            "not a GGUF file: it begins with the text \"GGML\""
        );
    }

    proptest! {
        #[test]
        fn damage_never_panics(cut in 0_usize..400, at in 0_usize..400, byte: u8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = parse(&bytes);
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }
    }
}
