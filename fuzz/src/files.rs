//! Folders for the files that a target writes anew each time: in memory where the system has such.

use std::path::Path;

const IN_MEMORY: &str = "/dev/shm";

pub fn folder() -> tempfile::TempDir {
    let made = match Path::new(IN_MEMORY).is_dir() {
        true => tempfile::tempdir_in(IN_MEMORY),
        false => tempfile::tempdir(),
    };
    made.expect("a folder")
}

/// A file of safetensors: its header and `data`, as long as the header says, for any header.
pub fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    let len = header.len() as u64;
    [&len.to_le_bytes(), header, data].concat()
}

/// Longest data of a header's tensors.
const MAX_DATA_BYTES: u64 = 1 << 20;

/// Bytes that a header's tensors take, if it says so and they are few.
pub fn data_bytes(header: &serde_json::Value) -> Option<usize> {
    let tensors = header.as_object()?.values();
    let ends = tensors.filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    let end = ends.max().filter(|end| *end <= MAX_DATA_BYTES)?;
    usize::try_from(end).ok()
}
