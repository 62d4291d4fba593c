//! Who waits for the encoder, and whose text is next.

use std::collections::{BTreeMap, VecDeque};

/// What waits: texts of known lengths that are taken one after the other.
pub(super) trait Texts {
    /// Tokens of the next text; `None` when all were taken.
    fn next_len(&self) -> Option<usize>;

    /// Takes the next text.
    fn take(&mut self);

    /// Texts that were not taken yet.
    fn num_left(&self) -> usize;
}

struct Lane<R> {
    requests: VecDeque<R>,
    /// Tokens taken so far, in virtual time: a tenant that comes back is owed nothing.
    used: u64,
}

/// Requests of many tenants. The tenant that has used the fewest tokens is next; the requests of
/// one tenant take turns, so that a short one does not wait for the end of a long one.
pub(super) struct TextQueue<R> {
    lanes: BTreeMap<u64, Lane<R>>,
    /// Virtual time: what the tenant that was served last had used.
    now: u64,
}

impl<R: Texts> TextQueue<R> {
    pub fn new() -> Self {
        Self {
            lanes: BTreeMap::new(),
            now: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Texts of all tenants.
    pub fn num_waiting(&self) -> usize {
        self.lanes
            .keys()
            .map(|tenant| self.num_waiting_of(*tenant))
            .sum()
    }

    pub fn num_waiting_of(&self, tenant: u64) -> usize {
        let requests = self.lanes.get(&tenant).map(|lane| lane.requests.iter());
        requests.into_iter().flatten().map(R::num_left).sum()
    }

    pub fn push(&mut self, tenant: u64, request: R) {
        let now = self.now;
        let lane = self.lanes.entry(tenant).or_insert_with(|| Lane {
            requests: VecDeque::new(),
            used: now,
        });
        lane.requests.push_back(request);
    }

    /// Removes a tenant's requests that match.
    pub fn remove(&mut self, tenant: u64, matches: impl Fn(&R) -> bool) {
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.requests.retain(|request| !matches(request));
            if lane.requests.is_empty() {
                self.lanes.remove(&tenant);
            }
        }
    }

    /// Takes all out.
    pub fn drain(&mut self) -> impl Iterator<Item = R> {
        let lanes = std::mem::take(&mut self.lanes).into_values();
        lanes.flat_map(|lane| lane.requests)
    }

    /// Hands texts to `take` until they have `max_tokens` together; the first one goes whatever its
    /// length.
    pub fn take_batch(&mut self, max_tokens: usize, mut take: impl FnMut(&R)) {
        let mut num_tokens = 0;
        loop {
            let ready = self
                .lanes
                .iter()
                .min_by_key(|(tenant, lane)| (lane.used, **tenant));
            let Some(tenant) = ready.map(|(tenant, _)| *tenant) else {
                return;
            };
            let Some(lane) = self.lanes.get_mut(&tenant) else {
                return;
            };
            let Some(mut request) = lane.requests.pop_front() else {
                self.lanes.remove(&tenant);
                continue;
            };
            let Some(len) = request.next_len() else {
                continue;
            };
            if num_tokens > 0 && num_tokens + len > max_tokens {
                lane.requests.push_front(request);
                return;
            }
            take(&request);
            request.take();
            num_tokens += len;
            self.now = self.now.max(lane.used);
            lane.used += len as u64;
            if request.next_len().is_some() {
                lane.requests.push_back(request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str, VecDeque<usize>);

    impl Texts for Named {
        fn next_len(&self) -> Option<usize> {
            self.1.front().copied()
        }

        fn take(&mut self) {
            self.1.pop_front();
        }

        fn num_left(&self) -> usize {
            self.1.len()
        }
    }

    fn batch(queue: &mut TextQueue<Named>, max_tokens: usize) -> String {
        let mut names = Vec::new();
        queue.take_batch(max_tokens, |named| names.push(named.0));
        names.join(" ")
    }

    #[test]
    fn tenants_and_their_requests_take_turns() {
        let mut queue = TextQueue::new();
        queue.push(1, Named("a", [10; 5].into()));
        queue.push(1, Named("b", [10].into()));
        assert_eq!(batch(&mut queue, 20), "a b");
        queue.push(2, Named("c", [5, 5, 30].into()));
        assert_eq!((queue.num_waiting(), queue.num_waiting_of(1)), (7, 4));
        // Who comes later is owed nothing of the time before.
        assert_eq!(batch(&mut queue, 40), "c c a");
        assert_eq!(batch(&mut queue, 25), "c");
        assert_eq!(batch(&mut queue, 25), "a a");
        assert_eq!(batch(&mut queue, 25), "a");
        assert_eq!(batch(&mut queue, 25), "");
        assert!(queue.is_empty(), "nothing is kept of tenants");
    }

    #[test]
    fn a_text_longer_than_a_batch_goes_alone() {
        let mut queue = TextQueue::new();
        queue.push(1, Named("a", [100, 2, 100].into()));
        assert_eq!(batch(&mut queue, 50), "a");
        assert_eq!(batch(&mut queue, 50), "a");
        assert_eq!(batch(&mut queue, 50), "a");
    }

    #[test]
    fn what_is_removed_is_not_taken() {
        let mut queue = TextQueue::new();
        queue.push(1, Named("a", [1].into()));
        queue.push(1, Named("b", [1].into()));
        queue.remove(1, |named| named.0 == "a");
        queue.remove(2, |_| true);
        assert_eq!(batch(&mut queue, 9), "b");
        queue.push(1, Named("a", [1].into()));
        queue.remove(1, |_| true);
        assert!(queue.is_empty());
    }
}
