//! A queue in which tenants take turns by what they have used.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What one tenant has in a [`FairQueue`].
#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<(u64, T)>,
    num_running: usize,
    /// Time used so far, in virtual time: a tenant that comes back does not get what it left unused.
    used: Duration,
}

/// Items of many tenants. The tenant with the fewest running items is next; of equals, the one that
/// has used the least time.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    lanes: HashMap<u64, Lane<T>>,
    num_waiting: usize,
    next_id: u64,
    /// Virtual time: what the tenant that was served last had used.
    now: Duration,
}

impl<T> FairQueue<T> {
    pub fn new() -> Self {
        Self {
            lanes: HashMap::new(),
            num_waiting: 0,
            next_id: 0,
            now: Duration::ZERO,
        }
    }

    pub fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// How many items of a tenant wait.
    pub fn num_waiting_of(&self, tenant: u64) -> usize {
        self.lanes.get(&tenant).map_or(0, |lane| lane.waiting.len())
    }

    /// Adds an item at the end of its tenant's line and returns its number.
    pub fn push(&mut self, tenant: u64, item: T) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let now = self.now;
        let lane = self.lanes.entry(tenant).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            num_running: 0,
            used: now,
        });
        lane.waiting.push_back((id, item));
        self.num_waiting += 1;
        id
    }

    /// Takes an item out that waits.
    pub fn remove(&mut self, tenant: u64, id: u64) -> Option<T> {
        let lane = self.lanes.get_mut(&tenant)?;
        let at = lane.waiting.iter().position(|(other, _)| *other == id)?;
        let (_, item) = lane.waiting.remove(at)?;
        self.num_waiting -= 1;
        self.forget(tenant);
        Some(item)
    }

    /// The next item, which runs from now on, of a tenant with fewer than `max_running` running.
    pub fn pop(&mut self, max_running: usize) -> Option<(u64, T)> {
        let lanes = self.lanes.iter();
        let ready =
            lanes.filter(|(_, lane)| !lane.waiting.is_empty() && lane.num_running < max_running);
        // The number of the item breaks ties, so that the order does not depend on hashes.
        let (tenant, _) = ready.min_by_key(|(_, lane)| {
            let first = lane.waiting.front().map(|(id, _)| *id);
            (lane.num_running, lane.used, first)
        })?;
        let tenant = *tenant;
        let lane = self.lanes.get_mut(&tenant)?;
        let (_, item) = lane.waiting.pop_front()?;
        lane.num_running += 1;
        self.now = self.now.max(lane.used);
        self.num_waiting -= 1;
        Some((tenant, item))
    }

    /// An item of a tenant no longer runs; it has used this much.
    pub fn done(&mut self, tenant: u64, used: Duration) {
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.num_running = lane.num_running.saturating_sub(1);
            lane.used += used;
        }
        self.forget(tenant);
    }

    /// Lanes live as long as they hold something: nobody can fill the map with names.
    fn forget(&mut self, tenant: u64) {
        let lane = self.lanes.get(&tenant);
        if lane.is_some_and(|lane| lane.waiting.is_empty() && lane.num_running == 0) {
            self.lanes.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Serves one item at a time, each of one second, until nothing waits.
    fn order(queue: &mut FairQueue<&'static str>) -> Vec<&'static str> {
        let mut order = Vec::new();
        while let Some((tenant, item)) = queue.pop(usize::MAX) {
            order.push(item);
            queue.done(tenant, SECOND);
        }
        order
    }

    #[test]
    fn tenants_take_turns() {
        let mut queue = FairQueue::new();
        for item in ["a1", "a2", "a3", "a4"] {
            queue.push(1, item);
        }
        assert_eq!(queue.pop(usize::MAX), Some((1, "a1")));
        queue.push(2, "b1");
        queue.push(2, "b2");
        queue.done(1, SECOND);
        assert_eq!(order(&mut queue), ["b1", "a2", "b2", "a3", "a4"]);
        assert!(queue.lanes.is_empty(), "nothing is kept of tenants");
    }

    #[test]
    fn who_comes_back_is_owed_nothing() {
        let mut queue = FairQueue::new();
        queue.push(2, "b0");
        assert_eq!(order(&mut queue), ["b0"]);
        for item in ["a1", "a2", "a3"] {
            queue.push(1, item);
        }
        for _ in 0..2 {
            let (tenant, _) = queue.pop(1).unwrap();
            queue.done(tenant, SECOND);
        }
        queue.push(2, "b1");
        queue.push(2, "b2");
        assert_eq!(order(&mut queue), ["b1", "a3", "b2"]);
    }

    #[test]
    fn no_tenant_has_more_than_its_share_running() {
        let mut queue = FairQueue::new();
        for item in ["a1", "a2", "a3"] {
            queue.push(1, item);
        }
        assert!(queue.pop(2).is_some() && queue.pop(2).is_some());
        assert_eq!(queue.pop(2), None);
        queue.push(2, "b1");
        assert_eq!(queue.pop(2), Some((2, "b1")));
        queue.done(1, SECOND);
        assert_eq!(queue.pop(2), Some((1, "a3")));
    }

    #[test]
    fn what_is_removed_does_not_run() {
        let mut queue = FairQueue::new();
        let (first, second) = (queue.push(1, "a1"), queue.push(1, "a2"));
        assert_eq!(queue.remove(1, first), Some("a1"));
        assert_eq!(queue.remove(1, first), None);
        assert_eq!(queue.remove(2, second), None);
        assert_eq!((queue.num_waiting(), queue.num_waiting_of(1)), (1, 1));
        assert_eq!(order(&mut queue), ["a2"]);
        assert_eq!(queue.num_waiting(), 0);
    }
}
