//! Who may hold a stream open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::error::ApiError;
use crate::api::tenant::TraceScope;

/// Streams at once.
const MAX_READERS: usize = 64;
/// Those of one key.
const MAX_READERS_PER_KEY: usize = 16;
/// Those of all keys together that read every key's traces: the others keep some.
const MAX_READERS_OF_ALL: usize = 48;

/// The open streams of traces.
#[derive(Debug, Default)]
pub(in crate::api) struct Seats {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    num_all: usize,
    /// By key; `None` for those that read all.
    num_of: HashMap<TraceScope, usize>,
}

/// A stream, while it lives.
#[derive(Debug)]
pub(in crate::api) struct Seat {
    seats: Arc<Seats>,
    scope: TraceScope,
}

impl Seats {
    pub fn num_taken(&self) -> usize {
        self.lock().num_all
    }

    /// A seat, or why there is none. `has_keys`: clients are told apart by their keys; without them all are one, who may
    /// take every seat.
    pub fn take(self: &Arc<Self>, scope: TraceScope, has_keys: bool) -> Result<Seat, ApiError> {
        let mut taken = self.lock();
        if taken.num_all >= MAX_READERS {
            let message = format!("{MAX_READERS} readers of traces are connected already");
            return Err(ApiError::overloaded(message));
        }
        let most = match scope.0 {
            _ if !has_keys => MAX_READERS,
            Some(_) => MAX_READERS_PER_KEY,
            None => MAX_READERS_OF_ALL,
        };
        let num_own = taken.num_of.entry(scope).or_default();
        if *num_own >= most {
            let message = format!(
                "this key reads traces over {most} connections already, of {MAX_READERS} in all: close one"
            );
            return Err(ApiError::overloaded(message));
        }
        *num_own += 1;
        taken.num_all += 1;
        Ok(Seat {
            seats: Arc::clone(self),
            scope,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.num_all = taken.num_all.saturating_sub(1);
        if let Some(num_own) = taken.num_of.get_mut(&self.scope) {
            *num_own = num_own.saturating_sub(1);
            if *num_own == 0 {
                taken.num_of.remove(&self.scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many seats as there are for a scope.
    fn fill(seats: &Arc<Seats>, scope: Option<u64>, has_keys: bool) -> Vec<Seat> {
        let scope = TraceScope(scope);
        let taken = std::iter::from_fn(|| seats.take(scope, has_keys).ok());
        taken.take(1000).collect()
    }

    #[test]
    fn no_key_takes_all_seats() {
        let seats = Arc::<Seats>::default();
        let mut of_one = fill(&seats, Some(1), true);
        assert_eq!(of_one.len(), MAX_READERS_PER_KEY);
        let error = seats.take(TraceScope(Some(1)), true).unwrap_err();
        assert_eq!(error.status.as_u16(), 429);
        assert!(error.message.contains("this key"), "{}", error.message);
        let of_readers = fill(&seats, None, true);
        assert_eq!(of_readers.len(), MAX_READERS - MAX_READERS_PER_KEY);
        assert!(seats.take(TraceScope(Some(2)), true).is_err());
        of_one.pop();
        let of_two = fill(&seats, Some(2), true);
        assert_eq!((of_two.len(), seats.num_taken()), (1, MAX_READERS));
        drop((of_one, of_readers, of_two));
        assert_eq!(seats.num_taken(), 0);
        assert!(seats.lock().num_of.is_empty());
        assert_eq!(fill(&seats, None, true).len(), MAX_READERS_OF_ALL);
    }

    #[test]
    fn without_keys_all_seats_are_for_everybody() {
        let seats = Arc::<Seats>::default();
        assert_eq!(fill(&seats, None, false).len(), MAX_READERS);
    }
}
