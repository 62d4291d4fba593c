//! What is known of a cached file without reading it: a stamp beside the file says when its bytes
//! were last compared with the catalogue's sum, and with what result.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::CachedFile;

/// What is known of a catalogue entry's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    /// The bytes were never compared with the catalogue's sum since the file was put there.
    Unverified,
    /// The bytes were right, and the file has not changed since.
    Verified,
    /// The file has changed since its bytes were compared.
    Changed,
    /// The size is wrong, or the bytes were.
    Damaged,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unverified => "unverified",
            Self::Verified => "verified",
            Self::Changed => "changed",
            Self::Damaged => "damaged",
        }
    }
}

/// The result of a comparison, and which file it was of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Of the file's bytes.
    pub sha256: String,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
}

impl Stamp {
    /// Of a file whose bytes have the sum `sha256`.
    pub(super) fn new(metadata: &Metadata, sha256: String) -> Self {
        Self {
            sha256,
            bytes: metadata.len(),
            modified: modified(metadata),
        }
    }

    fn fits(&self, metadata: &Metadata) -> bool {
        self.bytes == metadata.len() && self.modified == modified(metadata)
    }

    /// Writes the stamp beside the file at `path`.
    pub(super) fn keep(&self, path: &Path) -> io::Result<()> {
        let stamp = stamp_path(path);
        let new = stamp.with_extension("new");
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let kept = fs::write(&new, text).and_then(|()| fs::rename(&new, &stamp));
        if kept.is_err() {
            let _ = fs::remove_file(&new);
        }
        kept
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(stamp_path(path)).ok()?).ok()
    }
}

fn stamp_path(path: &Path) -> PathBuf {
    path.with_extension("verified.json")
}

fn modified(metadata: &Metadata) -> u64 {
    let since = metadata.modified().ok();
    let since = since.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The state of a model's files. The stamp lies beside the first of them and speaks for all.
pub(super) fn state(files: &[CachedFile]) -> State {
    let Some((first, others)) = files.split_first() else {
        return State::Absent;
    };
    let Ok(metadata) = fs::metadata(&first.path) else {
        return State::Absent;
    };
    let has_size =
        |file: &CachedFile| fs::metadata(&file.path).is_ok_and(|found| found.len() == file.bytes);
    if metadata.len() != first.bytes || !others.iter().all(has_size) {
        return State::Damaged;
    }
    match Stamp::read(&first.path) {
        None => State::Unverified,
        Some(stamp) if !stamp.fits(&metadata) => State::Changed,
        Some(stamp) if stamp.sha256 == first.sha256 => State::Verified,
        Some(_) => State::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_counts_only_for_the_file_that_it_was_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let files = [CachedFile {
            path: path.clone(),
            bytes: 6,
            sha256: "right",
        }];
        assert_eq!(state(&files), State::Absent);
        fs::write(&path, "short").unwrap();
        assert_eq!(state(&files), State::Damaged);
        fs::write(&path, "abcdef").unwrap();
        assert_eq!(state(&files), State::Unverified);
        let stamp = |sum: &str| Stamp::new(&fs::metadata(&path).unwrap(), sum.to_owned());
        stamp("right").keep(&path).unwrap();
        assert_eq!(state(&files), State::Verified);
        stamp("wrong").keep(&path).unwrap();
        assert_eq!(state(&files), State::Damaged);
        let later = UNIX_EPOCH + std::time::Duration::from_secs(1);
        let file = fs::File::options().write(true).open(&path).unwrap();
        stamp("right").keep(&path).unwrap();
        file.set_modified(later).unwrap();
        assert_eq!(state(&files), State::Changed);
        // A stamp that cannot be read says nothing.
        fs::write(stamp_path(&path), "{").unwrap();
        assert_eq!(state(&files), State::Unverified);
    }
}
