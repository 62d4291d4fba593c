//! What a connection does: whom it waits for, and since when.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::config::ConnectionLimits;

/// A client in the middle of a request that has been silent for so long may be closed for another.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may keep its connection waiting.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Timeouts {
    pub header: Duration,
    pub keep_alive: Duration,
    pub write: Duration,
}

impl From<&ConnectionLimits> for Timeouts {
    fn from(limits: &ConnectionLimits) -> Self {
        Self {
            header: limits.header_timeout,
            keep_alive: limits.keep_alive_timeout,
            write: limits.write_timeout,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For the first byte of a request.
    Waiting,
    /// For the rest of a request's header.
    Header,
    /// A request is being read and answered.
    Busy,
}

/// How much of a request's body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestBody {
    /// Its reader waits for more.
    Coming,
    /// Nobody wants the rest.
    Abandoned,
    Whole,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    has_answered: bool,
    /// Of the last request.
    body: RequestBody,
    /// The handler waits for the rest of the body.
    body_waits_since: Option<Instant>,
    /// The socket takes nothing.
    write_waits_since: Option<Instant>,
    is_evicted: bool,
}

/// Shared by a connection's socket, its requests, its task and the table of places.
#[derive(Debug)]
pub(super) struct Activity {
    inner: Mutex<Inner>,
    /// Wakes the connection's task when its place is given to another.
    evicted: Notify,
}

impl Activity {
    /// Of a connection that was accepted now.
    pub fn new(now: Instant) -> Self {
        Self {
            inner: Mutex::new(Inner {
                phase: Phase::Waiting,
                since: now,
                has_answered: false,
                body: RequestBody::Whole,
                body_waits_since: None,
                write_waits_since: None,
                is_evicted: false,
            }),
            evicted: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came. The first ones of a request begin its header; a connection's first header has
    /// been awaited since the connection began.
    pub fn received(&self, now: Instant) {
        let mut inner = self.lock();
        if inner.phase == Phase::Waiting {
            inner.phase = Phase::Header;
            if inner.has_answered {
                inner.since = now;
            }
        }
    }

    /// A request's header is there.
    pub fn begun(&self, now: Instant, has_body: bool) {
        let mut inner = self.lock();
        inner.phase = Phase::Busy;
        inner.since = now;
        inner.body = match has_body {
            true => RequestBody::Coming,
            false => RequestBody::Whole,
        };
    }

    pub fn body_waits(&self, now: Instant) {
        self.lock().body_waits_since.get_or_insert(now);
    }

    pub fn body_came(&self) {
        self.lock().body_waits_since = None;
    }

    pub fn body_ended(&self) {
        let mut inner = self.lock();
        inner.body_waits_since = None;
        inner.body = RequestBody::Whole;
    }

    /// Its reader is gone.
    pub fn body_dropped(&self) {
        let mut inner = self.lock();
        inner.body_waits_since = None;
        if inner.body == RequestBody::Coming {
            inner.body = RequestBody::Abandoned;
        }
    }

    /// The answer is complete or given up.
    pub fn answered(&self, now: Instant) {
        let mut inner = self.lock();
        inner.phase = Phase::Waiting;
        inner.since = now;
        inner.has_answered = true;
        inner.body_waits_since = None;
    }

    pub fn write_waits(&self, now: Instant) {
        self.lock().write_waits_since.get_or_insert(now);
    }

    pub fn wrote(&self, now: Instant) {
        let mut inner = self.lock();
        // The wait for the next request begins when this answer has left.
        if inner.write_waits_since.take().is_some() && inner.phase == Phase::Waiting {
            inner.since = now;
        }
    }

    /// The body of the request that is being answered, unless somebody still reads it: what the
    /// socket brings now is for later, or its end.
    pub fn answering(&self) -> Option<RequestBody> {
        let inner = self.lock();
        let is_answering = inner.phase == Phase::Busy && inner.body != RequestBody::Coming;
        is_answering.then_some(inner.body)
    }

    /// The client may still be sending the body of a request that is answered already.
    pub fn has_unread_body(&self) -> bool {
        self.lock().body != RequestBody::Whole
    }

    /// When the client has kept this connection waiting for too long. `None` while the server works.
    pub fn deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        let inner = self.lock();
        if let Some(since) = inner.write_waits_since {
            return since.checked_add(timeouts.write);
        }
        let timeout = match inner.phase {
            Phase::Waiting if inner.has_answered => timeouts.keep_alive,
            Phase::Waiting | Phase::Header => timeouts.header,
            Phase::Busy => return None,
        };
        inner.since.checked_add(timeout)
    }

    /// Since when the client is awaited, if that is long enough for another to have the place.
    pub fn waits_since(&self, now: Instant) -> Option<Instant> {
        let inner = self.lock();
        if inner.is_evicted {
            return None;
        }
        let stalled = inner.write_waits_since.or(inner.body_waits_since);
        match (inner.phase, stalled) {
            (Phase::Waiting | Phase::Header, None) => Some(inner.since),
            (_, Some(since)) if now.saturating_duration_since(since) >= PATIENCE => Some(since),
            _ => None,
        }
    }

    /// Another has this connection's place.
    pub fn evict(&self) {
        self.lock().is_evicted = true;
        self.evicted.notify_one();
    }

    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts() -> Timeouts {
        Timeouts {
            header: 10 * SECOND,
            keep_alive: 75 * SECOND,
            write: 300 * SECOND,
        }
    }

    /// Each state with the deadline that it has, in seconds after the beginning.
    #[test]
    fn the_client_has_a_deadline_whenever_it_is_waited_for() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        let activity = Activity::new(start);
        let check = |expected: Option<u32>| {
            assert_eq!(activity.deadline(&timeouts()), expected.map(at));
        };
        check(Some(10));
        // Byte by byte: the deadline stays.
        for second in 1..10 {
            activity.received(at(second));
            check(Some(10));
        }
        activity.begun(at(9), true);
        check(None);
        assert_eq!(activity.answering(), None);
        assert!(activity.has_unread_body());
        activity.body_ended();
        assert_eq!(activity.answering(), Some(RequestBody::Whole));
        activity.write_waits(at(20));
        activity.write_waits(at(30));
        check(Some(320));
        activity.wrote(at(40));
        check(None);
        activity.write_waits(at(50));
        activity.answered(at(60));
        check(Some(350));
        activity.wrote(at(70));
        check(Some(145));
        activity.received(at(100));
        check(Some(110));
        activity.received(at(109));
        check(Some(110));
    }

    #[test]
    fn whoever_is_waited_for_may_be_closed() {
        let start = Instant::now();
        let activity = Activity::new(start);
        assert_eq!(activity.waits_since(start), Some(start));
        activity.received(start + SECOND);
        assert_eq!(activity.waits_since(start + SECOND), Some(start));
        activity.begun(start + SECOND, true);
        assert_eq!(activity.waits_since(start + 100 * SECOND), None);
        activity.body_waits(start + 2 * SECOND);
        assert_eq!(activity.waits_since(start + 6 * SECOND), None);
        let silent = start + 2 * SECOND;
        assert_eq!(activity.waits_since(start + 7 * SECOND), Some(silent));
        activity.body_came();
        assert_eq!(activity.waits_since(start + 100 * SECOND), None);
        activity.write_waits(start + 10 * SECOND);
        activity.answered(start + 11 * SECOND);
        assert_eq!(activity.waits_since(start + 12 * SECOND), None);
        let silent = start + 10 * SECOND;
        assert_eq!(activity.waits_since(start + 15 * SECOND), Some(silent));
        activity.evict();
        assert_eq!(activity.waits_since(start + 15 * SECOND), None, "once");
    }
}
