//! Large zeroed buffers on huge pages.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Below this a buffer is not worth a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Zeroed, page-aligned bytes straight from the operating system: untouched pages stay uncommitted,
/// and large buffers sit on huge pages where the system has them, so that streaming the weights of a
/// model does not wait for the address translation.
#[derive(Default)]
pub(crate) struct PageBuffer {
    map: Option<MmapMut>,
}

impl PageBuffer {
    /// `None` when the memory cannot be had.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { map: None });
        }
        let map = MmapMut::map_anon(len).ok()?;
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE_BYTES {
            // Only a hint: small pages work too.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Some(Self { map: Some(map) })
    }

    /// The buffer as signed bytes.
    pub(crate) fn signed(&self) -> &[i8] {
        // SAFETY: any bits are valid i8 values.
        unsafe { self.align_to::<i8>().1 }
    }

    /// The buffer as signed bytes.
    pub(crate) fn signed_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above.
        unsafe { self.align_to_mut::<i8>().1 }
    }

    /// The buffer as 16-bit words.
    pub(crate) fn words(&self) -> &[u16] {
        // SAFETY: any bits are valid u16 values, and pages are aligned.
        unsafe { self.align_to::<u16>().1 }
    }

    /// The buffer as 16-bit words.
    pub(crate) fn words_mut(&mut self) -> &mut [u16] {
        // SAFETY: as above.
        unsafe { self.align_to_mut::<u16>().1 }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }
}

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.len())
    }
}
