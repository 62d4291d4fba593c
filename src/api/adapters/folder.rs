//! An adapter's files: where requests may read them, and how much of them.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// No system has longer paths.
const MAX_PATH_BYTES: usize = 4096;

/// Why an adapter's files are not read. Says nothing of what lies outside the roots.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FolderError {
    #[error(
        "lora_path must name an adapter's folder inside one of the server's --lora-root folders"
    )]
    NotInside,
    #[error("the folder has no {0} that can be read")]
    Missing(&'static str),
    #[error("{0} is not a regular file")]
    NotAFile(&'static str),
    #[error("{file} has more than {max_bytes} bytes{hint}")]
    TooLarge {
        file: &'static str,
        max_bytes: u64,
        hint: &'static str,
    },
    #[error("{file} cannot be read: {kind}")]
    Read {
        file: &'static str,
        kind: io::ErrorKind,
    },
}

/// The two files of an adapter in PEFT's format.
#[derive(Debug)]
pub(super) struct AdapterFiles {
    pub config: Vec<u8>,
    pub weights: Vec<u8>,
}

/// A folder whose files may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder {
    /// Without symbolic links.
    path: PathBuf,
    /// Within which everything lies that is read; `None` for what the operator named.
    root: Option<PathBuf>,
    /// As clients may see it.
    pub shown: String,
}

impl Folder {
    /// What a request named: a path from a root, or one that begins with a root.
    pub fn inside(roots: &[PathBuf], named: &Path) -> Result<Self, FolderError> {
        // Nothing outside the roots is looked at unless a link inside leads there.
        let is_plain = named.as_os_str().len() <= MAX_PATH_BYTES
            && !named.components().any(|part| part == Component::ParentDir);
        let found = roots
            .iter()
            .filter(|_| is_plain)
            .find_map(|root| Self::inside_one(root, named));
        found.ok_or(FolderError::NotInside)
    }

    fn inside_one(root: &Path, named: &Path) -> Option<Self> {
        let real_root = root.canonicalize().ok()?;
        let relative = match named.is_absolute() {
            true => named
                .strip_prefix(root)
                .or_else(|_| named.strip_prefix(&real_root))
                .ok()?,
            false => named,
        };
        let path = real_root.join(relative).canonicalize().ok()?;
        let shown = path.strip_prefix(&real_root).ok()?;
        let shown = match shown.as_os_str().is_empty() {
            true => ".".to_owned(),
            false => shown.display().to_string(),
        };
        path.is_dir().then_some(Self {
            path,
            root: Some(real_root),
            shown,
        })
    }

    /// What the operator named: anywhere. Clients see the folder's own name.
    pub fn of_operator(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default();
        Self {
            path: path.to_owned(),
            root: None,
            shown: name.to_string_lossy().into_owned(),
        }
    }

    /// Reads both files, each if it is a regular one of a size that is allowed.
    pub fn read(&self, max_weights_bytes: u64) -> Result<AdapterFiles, FolderError> {
        Ok(AdapterFiles {
            config: self.file(CONFIG_FILE, MAX_CONFIG_BYTES, "")?,
            weights: self.file(
                WEIGHTS_FILE,
                max_weights_bytes,
                ", which is what this key may still load (--max-lora-bytes)",
            )?,
        })
    }

    fn file(
        &self,
        name: &'static str,
        max_bytes: u64,
        hint: &'static str,
    ) -> Result<Vec<u8>, FolderError> {
        let missing = |_| FolderError::Missing(name);
        let failed = |error: io::Error| FolderError::Read {
            file: name,
            kind: error.kind(),
        };
        let check = |metadata: &Metadata| match metadata {
            it if !it.is_file() => Err(FolderError::NotAFile(name)),
            it if it.len() > max_bytes => Err(FolderError::TooLarge {
                file: name,
                max_bytes,
                hint,
            }),
            _ => Ok(()),
        };
        let path = self.path.join(name).canonicalize().map_err(missing)?;
        let is_inside = self.root.as_ref().is_none_or(|root| path.starts_with(root));
        if !is_inside {
            return Err(FolderError::Missing(name));
        }
        // Before it is opened: to open a pipe is to wait for its other end.
        check(&path.symlink_metadata().map_err(missing)?)?;
        let file = open(&path).map_err(missing)?;
        let metadata = file.metadata().map_err(failed)?;
        check(&metadata)?;
        // What was opened lies where it was looked at, or somebody is changing links meanwhile.
        if path.canonicalize().map_err(missing)? != path || !is_at(&metadata, &path) {
            return Err(FolderError::Missing(name));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        let mut limited = file.take(max_bytes.saturating_add(1));
        limited.read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 > max_bytes {
            true => Err(FolderError::TooLarge {
                file: name,
                max_bytes,
                hint,
            }),
            false => Ok(bytes),
        }
    }
}

/// Opens what is no link, and does not wait for anybody.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// An open file is the one at `path`.
#[cfg(unix)]
fn is_at(metadata: &Metadata, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let there = path.symlink_metadata();
    there.is_ok_and(|there| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn is_at(_: &Metadata, path: &Path) -> bool {
    path.is_file()
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `roots/{a,b}`, `outside`, and an adapter in each.
    fn folders() -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["roots/a/one", "roots/a/two", "roots/b/three", "outside"] {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(CONFIG_FILE), "{}").unwrap();
            fs::write(path.join(WEIGHTS_FILE), name).unwrap();
        }
        let roots = ["roots/a", "roots/b"].map(|root| folder.path().join(root));
        (folder, roots.to_vec())
    }

    #[test]
    fn only_what_is_inside_is_found() {
        let (folder, roots) = folders();
        let at = |name: &str| folder.path().join(name);
        symlink(at("outside"), at("roots/a/leads_out")).unwrap();
        symlink("two", at("roots/a/leads_in")).unwrap();
        symlink(at("nothing"), at("roots/a/leads_nowhere")).unwrap();
        let shown = |named: &Path| Folder::inside(&roots, named).map(|found| found.shown);
        for (named, expected) in [
            ("one", "one"),
            ("./two/", "two"),
            ("three", "three"),
            ("leads_in", "two"),
            (".", "."),
        ] {
            assert_eq!(shown(Path::new(named)).as_deref(), Ok(expected), "{named}");
        }
        assert_eq!(shown(&at("roots/b/three")).as_deref(), Ok("three"));
        for named in [
            "leads_out",
            "leads_nowhere",
            "none",
            "one/adapter_config.json",
            "../../outside",
            "one/../two",
            "/",
            "/etc",
            "/nothing",
            "\0",
            &"x".repeat(100_000),
        ] {
            assert_eq!(shown(Path::new(named)), Err(FolderError::NotInside));
        }
        for outside in [at("outside"), at("nothing"), at("roots"), at("roots/aa")] {
            assert_eq!(shown(&outside), Err(FolderError::NotInside));
        }
        assert_eq!(
            Folder::inside(&[], Path::new("one")),
            Err(FolderError::NotInside)
        );
    }

    #[test]
    fn only_regular_files_of_a_fair_size_are_read() {
        let (folder, roots) = folders();
        let at = |name: &str| folder.path().join(name);
        let read = |max| {
            let found = Folder::inside(&roots, Path::new("one")).unwrap();
            found.read(max)
        };
        let weights = at("roots/a/one").join(WEIGHTS_FILE);
        let too_large = |max_bytes| FolderError::TooLarge {
            file: WEIGHTS_FILE,
            max_bytes,
            hint: ", which is what this key may still load (--max-lora-bytes)",
        };
        assert_eq!(read(11).unwrap().weights, b"roots/a/one");
        assert_eq!(read(10).unwrap_err(), too_large(10));
        // A hundred gigabytes of nothing.
        let sparse = File::create(&weights).unwrap();
        sparse.set_len(100 << 30).unwrap();
        assert_eq!(read(1 << 30).unwrap_err(), too_large(1 << 30));
        // Links out, to what is there and to what is not.
        for target in [at("outside").join(WEIGHTS_FILE), at("nothing")] {
            fs::remove_file(&weights).unwrap();
            symlink(target, &weights).unwrap();
            assert_eq!(read(100).unwrap_err(), FolderError::Missing(WEIGHTS_FILE));
        }
        // As the caches of Hugging Face are made.
        fs::remove_file(&weights).unwrap();
        symlink("../two/adapter_model.safetensors", &weights).unwrap();
        assert_eq!(read(100).unwrap().weights, b"roots/a/two");
        // Nobody writes to the pipe: opening it would never end.
        let fifo = rustix::fs::FileType::Fifo;
        fs::remove_file(&weights).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &weights, fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read(100).unwrap_err(), FolderError::NotAFile(WEIGHTS_FILE));
        fs::remove_file(&weights).unwrap();
        fs::create_dir(&weights).unwrap();
        assert_eq!(read(100).unwrap_err(), FolderError::NotAFile(WEIGHTS_FILE));
        // The operator's own may be anything that is a file.
        let zero = at("zero");
        fs::create_dir(&zero).unwrap();
        symlink("/dev/zero", zero.join(CONFIG_FILE)).unwrap();
        let error = Folder::of_operator(&zero).read(u64::MAX).unwrap_err();
        assert_eq!(error, FolderError::NotAFile(CONFIG_FILE));
        let long = fs::File::create(at("outside").join(CONFIG_FILE)).unwrap();
        long.set_len(1 << 30).unwrap();
        let error = Folder::of_operator(&at("outside")).read(u64::MAX);
        assert!(matches!(error, Err(FolderError::TooLarge { .. })));
    }
}
