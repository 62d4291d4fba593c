//! Files of the Hugging Face hub, in a cache of Ponder's own. Where the hub knows a file's SHA-256,
//! its cache names the file by it: the bytes can be checked later without a network.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo};

use super::fetch::sum;
use super::pull::{Outcome, Progress};
use super::{PullError, home};
use crate::model::gguf::split::PartName;

/// Digits of a SHA-256.
const SUM_DIGITS: usize = 64;

fn folder() -> PathBuf {
    home().join("hub")
}

/// The files that together are one: all parts where one is named.
fn files(file: &str) -> Vec<String> {
    match PartName::parse(file) {
        Some(part) => part.all(),
        None => vec![file.to_owned()],
    }
}

/// Makes sure that a file is on disk, with all parts when it is one of several. Returns its path.
pub(super) fn pull(
    repository: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let mut own = None;
    for name in files(file) {
        let path = fetch(repository, &name, progress)?;
        if name == file {
            own = Some(path);
        }
    }
    own.ok_or_else(|| PullError::BadSpec(format!("hf:{repository}/{file}")))
}

/// As [`pull`], but reads the bytes of all files and fetches those again that are wrong.
pub(super) fn verify(
    repository: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<(PathBuf, Outcome), PullError> {
    let files = files(file);
    let is_here = files.iter().all(|name| cached(repository, name).is_some());
    let mut outcome = match is_here {
        true => Outcome::Verified,
        false => Outcome::Fetched,
    };
    for name in &files {
        let path = fetch(repository, name, progress)?;
        if is_right(&path, progress)? {
            continue;
        }
        forget(repository, name);
        outcome = Outcome::Replaced;
        let path = fetch(repository, name, progress)?;
        if !is_right(&path, progress)? {
            forget(repository, name);
            let message = "its bytes are not those that the hub promises".to_owned();
            return Err(PullError::Hub(format!("{repository}/{name}"), message));
        }
    }
    Ok((pull(repository, file, progress)?, outcome))
}

/// Whether a file has the bytes that its name in the cache promises, where the name is a sum.
fn is_right(path: &Path, progress: &dyn Progress) -> Result<bool, PullError> {
    match sum_of(path) {
        Some(expected) => Ok(sum(path, progress)? == expected),
        None => Ok(true),
    }
}

fn cached(repository: &str, file: &str) -> Option<PathBuf> {
    let repository = Repo::model(repository.to_owned());
    Cache::new(folder()).repo(repository).get(file)
}

/// The sum that a cached file must have, where the hub told one.
fn sum_of(path: &Path) -> Option<String> {
    let blob = fs::canonicalize(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    let is_sum = name.len() == SUM_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_sum.then(|| name.to_ascii_lowercase())
}

/// Hands the downloaded bytes on.
struct Reporter<'a> {
    progress: &'a dyn Progress,
    name: String,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.progress.report(self.done, self.total, &self.name);
    }

    fn finish(&mut self) {}
}

/// One file, from the cache or from the hub.
pub(super) fn fetch(
    repository: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    if let Some(path) = cached(repository, file) {
        return Ok(path);
    }
    let reporter = Reporter {
        progress,
        name: file.to_owned(),
        done: 0,
        total: 0,
    };
    let fetched = ApiBuilder::from_env()
        .with_progress(false)
        .with_cache_dir(folder())
        .build()
        .and_then(|api| {
            let api = api.model(repository.to_owned());
            api.download_with_progress(file, reporter)
        });
    fetched.map_err(|error| {
        let error = match error {
            ApiError::IoError(source) => match PullError::io(&folder())(source) {
                PullError::Io { source, .. } => source.to_string(),
                named => {
                    forget_incomplete(repository);
                    return named;
                }
            },
            error => error.to_string(),
        };
        let one_line = error.split_whitespace().collect::<Vec<_>>().join(" ");
        PullError::Hub(format!("{repository}/{file}"), one_line)
    })
}

/// Removes a file from the cache.
pub(super) fn forget(repository: &str, file: &str) {
    if let Some(path) = cached(repository, file) {
        if let Ok(blob) = fs::canonicalize(&path) {
            let _ = fs::remove_file(blob);
        }
        let _ = fs::remove_file(path);
    }
}

/// Removes the parts of files that fill the disk.
fn forget_incomplete(repository: &str) {
    let folder = folder().join(Repo::model(repository.to_owned()).folder_name());
    let blobs = fs::read_dir(folder.join("blobs")).into_iter().flatten();
    for path in blobs.flatten().map(|entry| entry.path()) {
        if path
            .extension()
            .is_some_and(|extension| extension == "part")
        {
            let _ = fs::remove_file(path);
        }
    }
}
