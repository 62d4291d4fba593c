//! What a program is separated by before its limits are set: a user that only it has, and a tree of
//! files that holds only what it may read. Which of them a machine allows is found out by trial.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Gid, Uid};
use rustix::process::{chdir, getgid, getuid, pivot_root};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Users that no system gives to anybody; one for each process number.
const FIRST_USER: u32 = 2_000_000_000;
/// Covered by the new root while it is built.
const SCAFFOLD: &str = "/tmp";
const OLD_ROOT: &str = "old";
/// Where programs start: always empty.
const WORK: &str = "work";
/// The new root holds names, no contents.
const ROOT_OPTIONS: &str = "size=1m,mode=0755";
const FOLDER_MODE: u32 = 0o755;

/// As whom a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// One that owns nothing and has no other process. Needs root.
    Own,
    /// The server's, in a namespace that counts its threads apart.
    Namespace,
    /// The same where it does not count: for root, and before Linux 5.14. There can be but one.
    Uncounted,
    /// The server's. Nobody counts its threads, so there can be but one.
    Kept,
}

/// What separates a program from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Isolation {
    pub user: User,
    /// It sees a tree of files of its own.
    pub hides_files: bool,
}

impl Isolation {
    /// From the best to the least, with their names on the command line.
    pub const ALL: [(&'static str, Self); 7] = [
        ("own-hidden", Self::of(User::Own, true)),
        ("namespace-hidden", Self::of(User::Namespace, true)),
        ("uncounted-hidden", Self::of(User::Uncounted, true)),
        ("kept-hidden", Self::of(User::Kept, true)),
        ("own", Self::of(User::Own, false)),
        ("namespace", Self::of(User::Namespace, false)),
        ("kept", Self::of(User::Kept, false)),
    ];

    const fn of(user: User, hides_files: bool) -> Self {
        Self { user, hides_files }
    }

    /// Whether the kernel counts the threads of one program.
    pub fn counts_threads(self) -> bool {
        matches!(self.user, User::Own | User::Namespace)
    }

    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, isolation)| *isolation == self);
        found.map_or("", |(name, _)| *name)
    }

    pub fn from_name(name: &OsStr) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(known, _)| *known == name)
            .map(|(_, isolation)| *isolation)
    }

    /// Separates the calling process, which has one thread. In a tree of its own there are
    /// `visible` files and folders, as far as they exist, and an empty working folder; else the
    /// working folder is the root.
    pub fn enter(self, visible: &[&Path]) -> Result<(), String> {
        let told = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        if matches!(self.user, User::Namespace | User::Uncounted) {
            enter_user_namespace().map_err(told("user namespace"))?;
        }
        match self.hides_files {
            true => hide_files(visible).map_err(told("mount namespace"))?,
            false => chdir("/").map_err(|error| told("working folder")(error.into()))?,
        }
        if self.user == User::Own {
            become_nobody().map_err(|error| told("user")(error.into()))?;
        }
        Ok(())
    }
}

fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Takes a user and a group that this process alone has.
fn become_nobody() -> rustix::io::Result<()> {
    let number = FIRST_USER + std::process::id();
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

/// Makes a root of `visible` alone, in a namespace that ends with the process.
fn hide_files(visible: &[&Path]) -> io::Result<()> {
    // Symbolic links are followed while they still lead somewhere.
    let sources: Vec<(&Path, PathBuf)> = outermost(visible)
        .into_iter()
        .filter_map(|path| Some((path, fs::canonicalize(path).ok()?)))
        .collect();
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    // Nothing that is mounted here shows anywhere else.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        SCAFFOLD,
        Some("tmpfs"),
        quiet,
        Some(ROOT_OPTIONS),
    )?;
    chdir(SCAFFOLD)?;
    fs::create_dir(OLD_ROOT)?;
    pivot_root(".", OLD_ROOT)?;
    chdir("/")?;
    for (path, source) in &sources {
        show(path, source)?;
    }
    umount2(OLD_ROOT, MntFlags::MNT_DETACH)?;
    fs::remove_dir(OLD_ROOT)?;
    fs::create_dir(WORK)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only | quiet, none)?;
    Ok(chdir(WORK)?)
}

/// The absolute paths that no other one of them holds.
fn outermost<'a>(paths: &[&'a Path]) -> Vec<&'a Path> {
    let mut paths = paths.to_vec();
    paths.retain(|path| path.is_absolute() && path.parent().is_some());
    paths.sort_unstable();
    let mut kept: Vec<&Path> = Vec::new();
    for path in paths {
        // A folder sorts before what it holds, but others may sort between them.
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

/// Shows what lies at `source` in the old root at `path` in the new one.
fn show(path: &Path, source: &Path) -> io::Result<()> {
    let old = source.strip_prefix("/").unwrap_or(source);
    let old = Path::new("/").join(OLD_ROOT).join(old);
    let folder = match fs::metadata(&old)?.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE).create(folder)?;
    if folder != path {
        File::create(path)?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&old), path, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for (name, isolation) in Isolation::ALL {
            assert_eq!(isolation.name(), name);
            assert_eq!(Isolation::from_name(OsStr::new(name)), Some(isolation));
        }
        assert_eq!(Isolation::from_name(OsStr::new("")), None);
    }

    #[test]
    fn what_lies_in_another_is_shown_with_it() {
        let paths = [
            "/usr/lib/python3",
            "/usr/lib",
            "/usr/lib64",
            ".",
            "/",
            "/usr/lib-x/a",
            "/lib",
        ];
        let paths = paths.map(Path::new);
        let shown = ["/lib", "/usr/lib", "/usr/lib-x/a", "/usr/lib64"].map(Path::new);
        assert_eq!(outermost(&paths), shown);
    }
}
