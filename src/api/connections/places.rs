//! Places for connections, and who has to go when another comes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::activity::Activity;
use crate::api::config::RESERVED_CONNECTIONS;

#[derive(Debug)]
struct Taken {
    activity: Arc<Activity>,
    is_reserved: bool,
}

#[derive(Debug, Default)]
struct Table {
    /// By numbers that grow: the first is the oldest.
    taken: BTreeMap<u64, Taken>,
    num_reserved: usize,
    next_id: u64,
}

impl Table {
    fn num_ordinary(&self) -> usize {
        self.taken.len() - self.num_reserved
    }

    /// The connection whose client has kept the server waiting for the longest time.
    fn longest_waiting(&self, is_reserved: bool, now: Instant) -> Option<u64> {
        let candidates = self.taken.iter();
        let candidates = candidates.filter(|(_, taken)| taken.is_reserved == is_reserved);
        let waiting = candidates.filter_map(|(id, taken)| {
            let since = taken.activity.waits_since(now)?;
            Some((since, *id))
        });
        waiting.min().map(|(_, id)| id)
    }

    fn oldest_reserved(&self) -> Option<u64> {
        let mut taken = self.taken.iter();
        let oldest = taken.find(|(_, taken)| taken.is_reserved);
        oldest.map(|(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<Taken> {
        let taken = self.taken.remove(&id)?;
        self.num_reserved -= usize::from(taken.is_reserved);
        Some(taken)
    }
}

/// The places of a server: the ordinary ones, and a few beyond them in which a probe or a key below
/// its share is still answered.
#[derive(Debug)]
pub(in crate::api) struct Places {
    table: Mutex<Table>,
    max_ordinary: usize,
    num_evicted: AtomicU64,
    num_timed_out: AtomicU64,
}

impl Places {
    pub fn new(max_ordinary: usize) -> Self {
        Self {
            table: Mutex::default(),
            max_ordinary: max_ordinary.max(1),
            num_evicted: AtomicU64::new(0),
            num_timed_out: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection that was accepted now. There always is one: another goes for it,
    /// the one whose client was awaited longest; if none is, the new one gets a reserved place; and
    /// if those are all at work too, the oldest of them goes.
    pub fn take(self: &Arc<Self>, now: Instant) -> Place {
        let mut table = self.lock();
        let is_full = table.num_ordinary() >= self.max_ordinary;
        let is_reserved = is_full && {
            let waiting = table.longest_waiting(false, now);
            !waiting.is_some_and(|id| self.evict(&mut table, id))
        };
        if is_reserved && table.num_reserved >= RESERVED_CONNECTIONS {
            let waiting = table.longest_waiting(true, now);
            if let Some(id) = waiting.or_else(|| table.oldest_reserved()) {
                self.evict(&mut table, id);
            }
        }
        let id = table.next_id;
        table.next_id += 1;
        table.num_reserved += usize::from(is_reserved);
        let activity = Arc::new(Activity::new(now));
        let taken = Taken {
            activity: Arc::clone(&activity),
            is_reserved,
        };
        table.taken.insert(id, taken);
        Place {
            id,
            activity,
            is_reserved: AtomicBool::new(is_reserved),
            places: Arc::clone(self),
        }
    }

    /// Closes the connection that was awaited longest, if there is one: somebody needs what it holds.
    pub fn make_room(&self, now: Instant) {
        let mut table = self.lock();
        let waiting = table.longest_waiting(true, now);
        if let Some(id) = waiting.or_else(|| table.longest_waiting(false, now)) {
            self.evict(&mut table, id);
        }
    }

    fn evict(&self, table: &mut Table, id: u64) -> bool {
        let taken = table.remove(id);
        if let Some(taken) = &taken {
            taken.activity.evict();
            self.num_evicted.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_some()
    }

    /// Makes a reserved place an ordinary one if one is free by now.
    fn promote(&self, id: u64) -> bool {
        let mut table = self.lock();
        if table.num_ordinary() >= self.max_ordinary {
            return false;
        }
        let Some(taken) = table.taken.get_mut(&id) else {
            return false;
        };
        if std::mem::take(&mut taken.is_reserved) {
            table.num_reserved -= 1;
        }
        true
    }

    pub fn max_ordinary(&self) -> usize {
        self.max_ordinary
    }

    /// Connections that have a place, the reserved ones too.
    pub fn num_open(&self) -> usize {
        self.lock().taken.len()
    }

    /// Connections that were closed for others.
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted.load(Ordering::Relaxed)
    }

    /// Connections that were closed because their clients took too long.
    pub fn num_timed_out(&self) -> u64 {
        self.num_timed_out.load(Ordering::Relaxed)
    }

    pub(super) fn timed_out(&self) {
        self.num_timed_out.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(in crate::api) struct Place {
    id: u64,
    pub(super) activity: Arc<Activity>,
    is_reserved: AtomicBool,
    pub(super) places: Arc<Places>,
}

impl Place {
    /// The place is one of those beyond the maximum, and none of the ordinary ones is free.
    pub(super) fn is_reserved(&self) -> bool {
        let is_reserved = self.is_reserved.load(Ordering::Relaxed);
        let is_reserved = is_reserved && !self.places.promote(self.id);
        self.is_reserved.store(is_reserved, Ordering::Relaxed);
        is_reserved
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn ids(places: &Places) -> Vec<u64> {
        places.lock().taken.keys().copied().collect()
    }

    #[test]
    fn the_longest_silent_one_makes_room() {
        let start = Instant::now();
        let places = Arc::new(Places::new(3));
        let held: Vec<Place> = (0..3).map(|at| places.take(after(start, at))).collect();
        // The oldest one works, the second has just been answered.
        held[0].activity.begun(after(start, 3), false);
        held[1].activity.begun(after(start, 3), false);
        held[1].activity.answered(after(start, 4));
        let fourth = places.take(after(start, 5));
        assert_eq!(ids(&places), [0, 1, 3]);
        assert!(!fourth.is_reserved());
        assert_eq!((places.num_open(), places.num_evicted()), (3, 1));
        // Its place is another's: its end frees nothing.
        drop(held);
        assert_eq!(ids(&places), [3]);
    }

    #[test]
    fn thousands_of_silent_ones_take_no_more_than_there_is() {
        let start = Instant::now();
        let places = Arc::new(Places::new(64));
        let held: Vec<Place> = (0..1500).map(|at| places.take(after(start, at))).collect();
        assert_eq!(places.num_open(), 64);
        assert_eq!(places.num_evicted(), 1500 - 64);
        assert!(held.iter().all(|place| !place.is_reserved()));
        // Those that are left came last.
        assert_eq!(ids(&places), (1500 - 64..1500).collect::<Vec<u64>>());
    }

    #[test]
    fn the_reserve_opens_when_all_others_work() {
        let start = Instant::now();
        let places = Arc::new(Places::new(2));
        let work = |place: &Place| place.activity.begun(start, false);
        let ordinary = [places.take(start), places.take(start)];
        ordinary.iter().for_each(work);
        let reserved: Vec<Place> = (0..RESERVED_CONNECTIONS)
            .map(|_| places.take(start))
            .collect();
        assert!(reserved.iter().all(Place::is_reserved));
        assert_eq!(places.num_evicted(), 0);
        // A silent one of the reserve goes before one that works.
        reserved[1..].iter().for_each(work);
        let next = places.take(after(start, 1));
        work(&next);
        assert!(!ids(&places).contains(&2), "{:?}", ids(&places));
        let last = places.take(after(start, 2));
        assert!(!ids(&places).contains(&3), "the oldest of the reserve");
        assert!(ids(&places).contains(&0), "never one at work outside of it");
        assert_eq!(places.num_open(), 2 + RESERVED_CONNECTIONS);
        // Where an ordinary place becomes free, one of the reserve has it.
        let [first, _second] = ordinary;
        drop(first);
        assert!(!last.is_reserved());
        assert!(next.is_reserved());
        assert_eq!(places.num_open(), 1 + RESERVED_CONNECTIONS);
        drop((reserved, next, last));
        assert_eq!(places.lock().num_reserved, 0);
        assert_eq!(places.num_open(), 1);
    }
}
