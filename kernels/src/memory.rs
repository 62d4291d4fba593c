//! Large zeroed buffers on huge pages.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, Weak};

use memmap2::MmapMut;

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes of a region that several buffers share.
const REGION_BYTES: usize = 64 << 20;
/// Where a buffer of a shared region may begin.
const PAGE_BYTES: usize = 4096;

/// Zeroed, page-aligned bytes straight from the operating system: untouched pages stay uncommitted,
/// and large buffers sit on huge pages where the system has them, so that streaming the weights of a
/// model does not wait for the address translation.
#[derive(Default)]
pub(crate) struct PageBuffer {
    region: Option<Arc<Region>>,
    /// In the region; nobody else has these bytes.
    start: usize,
    len: usize,
}

/// A mapping.
struct Region {
    /// Where its first huge page begins.
    start: *mut u8,
    len: usize,
    _map: MmapMut,
}

// SAFETY: buffers of a region have bytes of their own, and the mapping moves nowhere.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `None` when the memory cannot be had.
    fn new(len: usize) -> Option<Self> {
        let is_huge = len >= HUGE_PAGE_BYTES;
        // Small pages at both ends, where a mapping does not begin with a huge one, are read as
        // slowly as if there were no others.
        let spare = if is_huge { HUGE_PAGE_BYTES } else { 0 };
        let mut map = MmapMut::map_anon(len.checked_add(spare)?).ok()?;
        #[cfg(target_os = "linux")]
        if is_huge {
            // Only a hint: small pages work too.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = map.as_mut_ptr();
        let skipped = match is_huge {
            true => start.align_offset(HUGE_PAGE_BYTES).min(spare),
            false => 0,
        };
        Some(Self {
            start: start.wrapping_add(skipped),
            len,
            _map: map,
        })
    }
}

/// Where a buffer shall lie: [`PageBuffer::zeroed`] or [`PageBuffer::beside_others`].
pub(crate) type Room = fn(usize) -> Option<PageBuffer>;

/// The region that [`PageBuffer::beside_others`] takes from, and how much of it is taken.
static SHARED: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

/// Gives memory that was freed back to the operating system: glibc keeps it for later, also what
/// a start alone needed. Other allocators do as they do.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it has no preconditions and changes no memory that is in use.
        let _ = unsafe { malloc_trim(0) };
    }
}

impl PageBuffer {
    /// `None` when the memory cannot be had.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self::default());
        }
        Some(Self {
            region: Some(Arc::new(Region::new(len)?)),
            start: 0,
            len,
        })
    }

    /// As [`Self::zeroed`], for buffers that live and die together, as the matrices of a model do:
    /// they lie in regions that are freed with the last of their buffers. A matrix is seldom a
    /// whole number of huge pages, and many are smaller than one.
    pub(crate) fn beside_others(len: usize) -> Option<Self> {
        if len == 0 || len >= REGION_BYTES {
            return Self::zeroed(len);
        }
        let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
        let (region, taken) = &mut *shared;
        let existing = region.upgrade().filter(|region| len <= region.len - *taken);
        let region = match existing {
            Some(existing) => existing,
            None => {
                let new = Arc::new(Region::new(REGION_BYTES)?);
                (*region, *taken) = (Arc::downgrade(&new), 0);
                new
            }
        };
        let start = *taken;
        *taken = (start + len).next_multiple_of(PAGE_BYTES).min(region.len);
        Some(Self {
            region: Some(region),
            start,
            len,
        })
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

    /// The buffer as floats.
    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: any bits are valid f32 values, and pages are aligned.
        unsafe { self.align_to::<f32>().1 }
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
        let Some(region) = &self.region else {
            return &[];
        };
        // SAFETY: `start..start + len` lies in the region, whose bytes are initialised, and is
        // ours.
        unsafe { std::slice::from_raw_parts(region.start.wrapping_add(self.start), self.len) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(region) = &self.region else {
            return &mut [];
        };
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(region.start.wrapping_add(self.start), self.len) }
    }
}

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_a_region_are_zeroed_and_their_own() {
        let lens = [
            1,
            4096,
            5000,
            3 << 20,
            0,
            40 << 20,
            30 << 20,
            REGION_BYTES,
            64,
        ];
        let mut buffers: Vec<PageBuffer> = lens
            .into_iter()
            .map(|len| PageBuffer::beside_others(len).unwrap())
            .collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.len(), lens[index]);
            assert!(buffer.iter().all(|byte| *byte == 0));
            assert!(buffer.is_empty() || (buffer.as_ptr() as usize).is_multiple_of(PAGE_BYTES));
            buffer.fill(index as u8 + 1);
        }
        let ends = |index: usize| [buffers[index].first(), buffers[index].last()];
        for index in (0..lens.len()).filter(|index| lens[*index] > 0) {
            assert_eq!(ends(index), [Some(&(index as u8 + 1)); 2]);
        }
    }

    #[test]
    fn a_large_buffer_begins_with_a_huge_page_and_is_freed() {
        let alone = PageBuffer::zeroed(3 << 20).unwrap();
        let region = Arc::downgrade(alone.region.as_ref().unwrap());
        assert!((alone.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES));
        drop(alone);
        assert_eq!(region.strong_count(), 0);
    }
}
