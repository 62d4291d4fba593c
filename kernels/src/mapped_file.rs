//! A read-only memory map behind a safe wrapper.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// No page is smaller.
const PAGE_BYTES: usize = 4096;

/// A file mapped read-only. The file must not be truncated while it is mapped (the operating system
/// would end the process); model files are replaced by rename, never rewritten in place.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a whole file. An empty file is an `UnexpectedEof` error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is empty",
            ));
        }
        // SAFETY: the map is read-only and private to this struct; see the type's note on truncation.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// Waits for `len` bytes from `start` on, or those of them that the file has: afterwards they
    /// are in memory, as long as there is room.
    pub fn touch(&self, start: usize, len: usize) {
        let start = start.min(self.map.len());
        let end = start.saturating_add(len).min(self.map.len());
        let pages = self.map[start..end].iter().step_by(PAGE_BYTES);
        std::hint::black_box(pages.fold(0, |sum, byte| sum ^ byte));
    }

    /// Tells the operating system that `len` bytes from `start` on are not needed any more (after
    /// repacking).
    pub fn release(&self, start: usize, len: usize) {
        let len = len.min(self.map.len().saturating_sub(start));
        #[cfg(unix)]
        // SAFETY: the mapping is file-backed and read-only, so dropped pages are read again on demand.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len)
        };
        #[cfg(not(unix))]
        let _ = len;
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
