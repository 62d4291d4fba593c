//! Making sure that a model is on disk, and that its bytes are the right ones.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::fetch::{fetch, sum};
use super::stamp::{Stamp, State};
use super::{Entry, PullError, Source, home, hub};

/// Hears how far a pull is, and says whether it should go on.
pub trait Progress {
    /// `done` of `total` bytes, and what is going on.
    fn report(&self, done: u64, total: u64, what: &str);

    /// Whether the pull should end.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What [`verify`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A file of the user's own: nothing is known of its bytes.
    OwnFile,
    /// The cached bytes are right.
    Verified,
    /// There was nothing.
    Fetched,
    /// The cached bytes were wrong.
    Replaced,
}

/// Makes sure that a model is on disk and returns its path. The bytes of a cached one are not read:
/// a file that was found damaged before is fetched again.
pub fn pull(source: &Source, progress: &dyn Progress) -> Result<PathBuf, PullError> {
    match source {
        Source::Path(path) => Ok(path.clone()),
        Source::Hub { repository, file } => hub::pull(repository, file, progress),
        Source::Catalogue(entry) if is_good(entry) => Ok(entry.path()),
        Source::Catalogue(entry) => {
            let _lock = lock(entry, progress)?;
            // Another process may have fetched it meanwhile.
            match is_good(entry) {
                true => Ok(entry.path()),
                false => fetch(entry, progress),
            }
        }
    }
}

fn is_good(entry: &Entry) -> bool {
    !matches!(entry.state(), State::Absent | State::Damaged)
}

/// As [`pull`], but reads the bytes of a cached model and fetches it again when they are wrong.
pub fn verify(source: &Source, progress: &dyn Progress) -> Result<(PathBuf, Outcome), PullError> {
    let entry = match source {
        Source::Path(path) => return Ok((path.clone(), Outcome::OwnFile)),
        Source::Hub { repository, file } => return hub::verify(repository, file, progress),
        Source::Catalogue(entry) => *entry,
    };
    if !entry.is_cached() {
        return Ok((pull(source, progress)?, Outcome::Fetched));
    }
    // A folder that cannot be written to can be read.
    let lock = match lock(entry, progress) {
        Err(PullError::ReadOnly { .. }) => None,
        lock => Some(lock?),
    };
    if check(entry, progress)? == State::Verified {
        return Ok((entry.path(), Outcome::Verified));
    }
    let path = fetch(entry, progress)?;
    drop(lock);
    Ok((path, Outcome::Replaced))
}

/// Reads cached files, compares their bytes with the catalogue's sums, and remembers the result.
pub fn check(entry: &Entry, progress: &dyn Progress) -> Result<State, PullError> {
    let files = entry.cached_files();
    let Some(first) = files.first() else {
        return Ok(State::Absent);
    };
    let Ok(before) = fs::metadata(&first.path) else {
        return Ok(State::Absent);
    };
    let mut found = first.sha256.to_owned();
    for file in &files {
        let sha256 = match file.path.exists() {
            true => sum(&file.path, progress)?,
            false => "missing".to_owned(),
        };
        if sha256 != file.sha256 {
            found = sha256;
        }
    }
    let is_right = found == first.sha256;
    // Where nothing can be written, the next check reads the bytes again.
    let _ = Stamp::new(&before, found).keep(&first.path);
    Ok(match is_right {
        true => State::Verified,
        false => State::Damaged,
    })
}

/// Waits until no other process pulls into the entry's folder. The operating system drops the lock
/// with the file handle, also when the process dies.
fn lock(entry: &Entry, progress: &dyn Progress) -> Result<File, PullError> {
    let folder = home().join("models").join(entry.name);
    fs::create_dir_all(&folder).map_err(PullError::io(&folder))?;
    lock_in(&folder, entry.bytes, progress)
}

fn lock_in(folder: &Path, bytes: u64, progress: &dyn Progress) -> Result<File, PullError> {
    const POLL: std::time::Duration = std::time::Duration::from_millis(100);
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(PullError::io(&path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if progress.is_cancelled() => {
                return Err(PullError::Interrupted);
            }
            Err(TryLockError::WouldBlock) => {
                progress.report(0, bytes, "another process fetches it; waiting");
                std::thread::sleep(POLL);
            }
            // A file system without locks: two pulls at once would each write the same bytes.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => return Err(PullError::io(&path)(error)),
        }
    }
}
