//! The mapped files of a model, and a thread that reads them before their tensors are packed.
//!
//! Threads that pack take the places of a file in turns. With no page of it in memory each waits
//! for pages of its own, and the disk sees no order. One reader in the order of the file has it at
//! the disk's full speed, also while the tokenizer is made.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ponder_kernels::MappedFile;

/// Bytes that are read before the place is looked at again.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces read before what is packed now: more could be forgotten again before it is packed.
const MAX_PIECES_AHEAD: usize = 1024;

/// The mapped files of a model.
#[derive(Debug)]
pub(super) struct Maps {
    files: Arc<Files>,
}

#[derive(Debug)]
struct Files {
    maps: Vec<MappedFile>,
    place: Mutex<Place>,
    moved: Condvar,
}

/// What is packed now.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    file: usize,
    at: usize,
    is_over: bool,
}

impl Maps {
    pub(super) fn new(maps: Vec<MappedFile>) -> Self {
        let files = Files {
            maps,
            place: Mutex::default(),
            moved: Condvar::new(),
        };
        Self {
            files: Arc::new(files),
        }
    }

    /// Bytes of a tensor, which is read next.
    ///
    /// # Panics
    /// When the file has no such bytes.
    pub(super) fn bytes(&self, file: usize, start: usize, len: usize) -> &[u8] {
        let mut place = self.files.place();
        (place.file, place.at) = (file, start);
        drop(place);
        self.files.moved.notify_all();
        &self.files.maps[file][start..start + len]
    }

    /// Lets the operating system drop pages; they are read again when they are asked for.
    pub(super) fn release(&self, file: usize, start: usize, len: usize) {
        self.files.maps[file].release(start, len);
    }

    /// Reads the files before what [`Self::bytes`] was last asked for, as long as the result lives.
    /// Without a thread for that, pages come as they are asked for.
    pub(super) fn read_ahead(&self) -> ReadAhead {
        let files = Arc::clone(&self.files);
        files.place().is_over = false;
        let reader = thread::Builder::new().name("ponder-reader".to_owned());
        let thread = reader.spawn(move || files.read_ahead()).ok();
        ReadAhead {
            files: Arc::clone(&self.files),
            thread,
        }
    }
}

/// A thread that reads a model's files; dropped, it ends.
#[derive(Debug)]
pub struct ReadAhead {
    files: Arc<Files>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.files.place().is_over = true;
        self.files.moved.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Files {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_ahead(&self) {
        let lens = self.maps.iter().map(|map| map.len());
        let mut pieces = Pieces::new(lens);
        let mut place = self.place();
        while !place.is_over {
            let Some((file, piece)) = pieces.next(*place) else {
                place = (self.moved.wait(place)).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(place);
            self.maps[file].touch(piece * PIECE_BYTES, PIECE_BYTES);
            place = self.place();
        }
    }
}

/// Which pieces of which files are read.
struct Pieces {
    /// Of all files, one after the other.
    is_read: Vec<bool>,
    /// Of each file the first piece; and how many there are in all.
    firsts: Vec<usize>,
}

impl Pieces {
    fn new(lens: impl Iterator<Item = usize>) -> Self {
        let mut firsts = vec![0];
        let mut num_pieces = 0;
        for len in lens {
            num_pieces += len.div_ceil(PIECE_BYTES);
            firsts.push(num_pieces);
        }
        Self {
            is_read: vec![false; num_pieces],
            firsts,
        }
    }

    /// The next piece from a place on, which counts as read now: its file, and which one of it.
    /// Behind the last file comes the first.
    fn next(&mut self, place: Place) -> Option<(usize, usize)> {
        let first = self.firsts[place.file] + place.at / PIECE_BYTES;
        let num_pieces = self.is_read.len();
        let ahead = (first..first + MAX_PIECES_AHEAD.min(num_pieces)).map(|at| at % num_pieces);
        let piece = { ahead }.find(|piece| !self.is_read[*piece])?;
        self.is_read[piece] = true;
        let file = self.firsts.partition_point(|first| *first <= piece) - 1;
        Some((file, piece - self.firsts[file]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_once_from_the_place_on() {
        let mut pieces = Pieces::new([2 * PIECE_BYTES + 1, 5, 2 * PIECE_BYTES].into_iter());
        let place = |file, at| Place {
            file,
            at,
            is_over: false,
        };
        assert_eq!(pieces.next(place(0, 10)), Some((0, 0)));
        assert_eq!(pieces.next(place(2, PIECE_BYTES)), Some((2, 1)));
        let rest: Vec<_> = std::iter::from_fn(|| pieces.next(place(0, PIECE_BYTES))).collect();
        assert_eq!(rest, [(0, 1), (0, 2), (1, 0), (2, 0)]);
        let none = Pieces::new([].into_iter()).next(place(0, 0));
        assert_eq!(none, None);
    }

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let len = 3 * MAX_PIECES_AHEAD * PIECE_BYTES;
        let mut pieces = Pieces::new([len].into_iter());
        let mut place = Place::default();
        let mut count = |place| std::iter::from_fn(|| pieces.next(place)).count();
        assert_eq!(count(place), MAX_PIECES_AHEAD);
        place.at = 100 * PIECE_BYTES;
        assert_eq!(count(place), 100);
        // The end is followed by what is read already, and the middle is passed over.
        place.at = len - PIECE_BYTES;
        assert_eq!(count(place), 1);
    }

    #[test]
    fn bytes_are_the_same_with_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 77)
            .map(|at| (at / 100) as u8)
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        let maps = Maps::new(vec![MappedFile::open(&path).unwrap()]);
        for _ in 0..2 {
            let reader = maps.read_ahead();
            for start in [2 * PIECE_BYTES, 0, 3 * PIECE_BYTES] {
                assert_eq!(maps.bytes(0, start, 77), &bytes[start..start + 77]);
                maps.release(0, start, 77);
            }
            drop(reader);
        }
        assert_eq!(maps.bytes(0, 0, bytes.len()), bytes);
    }
}
