//! Where the traces of a soak lie.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A new folder, gone when this is dropped.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new() -> anyhow::Result<Self> {
        let name = format!("ponder-soak-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        let created = std::fs::create_dir(&path);
        created.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
