//! Responses that are made without a connection: which there are, where they stand, and the events
//! that they keep for readers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::admission::quota::{Full, Hold, Quota};
use crate::api::config::{KEY_SHARE, MAX_BACKGROUND_RESPONSES, MAX_EVENT_LOG_BYTES};
use crate::api::error::ApiError;
use crate::api::tenant::Tenant;
use crate::api::wire::format::Frame;

/// Finished responses whose events can still be read.
const MAX_FINISHED_LOGS: usize = 16;

/// The background responses of a server.
pub(in crate::api) struct Background {
    table: Mutex<Table>,
    places: Arc<Quota>,
    log_bytes: Arc<Quota>,
    num_running: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    running: HashMap<String, Arc<Running>>,
    /// Those with events, the newest last.
    finished: VecDeque<Arc<Running>>,
}

/// One response while it is made, and shortly after.
pub(in crate::api) struct Running {
    id: String,
    tenant: Tenant,
    state: watch::Sender<Standing>,
    pub cancel: CancellationToken,
    /// Of a response that was asked for with a stream.
    pub log: Option<EventLog>,
}

/// The response as it is now.
struct Standing {
    response: Value,
    is_over: bool,
}

/// The place of a background response, held by the task that makes it.
pub(in crate::api) struct Seat {
    background: Arc<Background>,
    pub running: Arc<Running>,
    _place: Hold,
}

impl Background {
    /// `is_shared`: several keys share the server.
    pub fn new(is_shared: bool) -> Self {
        let share = |all: usize| if is_shared { all / KEY_SHARE } else { all };
        let quota = |all: usize| Arc::new(Quota::new(all, share(all)));
        Self {
            table: Mutex::default(),
            places: quota(MAX_BACKGROUND_RESPONSES),
            log_bytes: quota(MAX_EVENT_LOG_BYTES),
            num_running: watch::Sender::new(0),
        }
    }

    /// A place for one more.
    pub fn start(
        self: &Arc<Self>,
        id: &str,
        tenant: Tenant,
        response: Value,
        keeps_events: bool,
    ) -> Result<Seat, ApiError> {
        let place = self.places.take(tenant.0, 1).map_err(|full| {
            let whose = match full {
                Full::ForAll => "",
                Full::ForKey => "of this key ",
            };
            ApiError::overloaded(format!(
                "too many background responses {whose}are being made already: wait for some, or cancel them"
            ))
        })?;
        let log = match keeps_events {
            true => self.log_bytes.take(tenant.0, 0).ok().map(EventLog::new),
            false => None,
        };
        let running = Arc::new(Running {
            id: id.to_owned(),
            tenant,
            state: watch::Sender::new(Standing {
                response,
                is_over: false,
            }),
            cancel: CancellationToken::new(),
            log,
        });
        let mut table = self.lock();
        table.running.insert(id.to_owned(), Arc::clone(&running));
        drop(table);
        self.num_running.send_modify(|count| *count += 1);
        Ok(Seat {
            background: Arc::clone(self),
            running,
            _place: place,
        })
    }

    /// A response that is being made.
    pub fn find(&self, id: &str, tenant: Tenant) -> Option<Arc<Running>> {
        let table = self.lock();
        let running = table.running.get(id);
        running.filter(|running| running.tenant == tenant).cloned()
    }

    /// A response whose events are there, or will be.
    pub fn with_events(&self, id: &str, tenant: Tenant) -> Option<Arc<Running>> {
        let has_events = |running: &Arc<Running>| running.log.is_some();
        let running = self.find(id, tenant).filter(has_events);
        running.or_else(|| {
            let table = self.lock();
            let mut finished = table.finished.iter();
            let found = finished.find(|it| it.id == id && it.tenant == tenant);
            found.cloned()
        })
    }

    /// Forgets the events of a response.
    pub fn forget(&self, id: &str, tenant: Tenant) {
        let is_it = |running: &Arc<Running>| running.id == id && running.tenant == tenant;
        self.lock().finished.retain(|running| !is_it(running));
    }

    /// Until none is being made.
    pub async fn idle(&self) {
        let mut count = self.num_running.subscribe();
        let _ = count.wait_for(|count| *count == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    pub fn response(&self) -> Value {
        self.state.borrow().response.clone()
    }

    pub fn set(&self, response: Value) {
        self.state.send_modify(|state| state.response = response);
    }

    /// Until the response is what it stays, and is stored.
    pub async fn over(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.is_over).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let running = &self.running;
        let mut table = self.background.lock();
        table.running.remove(&running.id);
        if let Some(log) = &running.log {
            log.close();
            table.finished.push_back(Arc::clone(running));
            if table.finished.len() > MAX_FINISHED_LOGS {
                table.finished.pop_front();
            }
        }
        drop(table);
        running.state.send_modify(|state| state.is_over = true);
        self.background.num_running.send_modify(|count| *count -= 1);
    }
}

/// The events of a response, for any number of readers.
pub(in crate::api) struct EventLog {
    entries: Mutex<Entries>,
    /// How many there are, and whether those are all.
    changed: watch::Sender<(usize, bool)>,
}

struct Entries {
    /// With their sequence numbers.
    frames: Vec<(u64, Arc<Frame>)>,
    next: u64,
    hold: Hold,
}

impl EventLog {
    fn new(hold: Hold) -> Self {
        Self {
            entries: Mutex::new(Entries {
                frames: Vec::new(),
                next: 0,
                hold,
            }),
            changed: watch::Sender::new((0, false)),
        }
    }

    /// Adds events. Where there is no room for more, they are left out: the last one, which
    /// `is_last` says, has everything in it.
    pub fn push(&self, frames: Vec<Frame>, is_last: bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in frames {
            let number = entries.next;
            entries.next += 1;
            let has_room = entries.hold.grow(frame.data.len()).is_ok();
            if has_room || is_last {
                entries.frames.push((number, Arc::new(frame)));
            }
        }
        let count = entries.frames.len();
        drop(entries);
        self.changed.send_modify(|(known, _)| *known = count);
    }

    fn close(&self) {
        self.changed.send_modify(|(_, is_over)| *is_over = true);
    }

    /// Events from a place on, at least one; empty when no more follow.
    pub async fn read(&self, place: usize, most: usize) -> Vec<(u64, Arc<Frame>)> {
        let mut changed = self.changed.subscribe();
        let _ = changed
            .wait_for(|(count, is_over)| *count > place || *is_over)
            .await;
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = entries.frames.get(place..).unwrap_or_default();
        rest.iter().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame(text: &str) -> Frame {
        Frame {
            name: Some("x"),
            data: text.to_owned(),
        }
    }

    #[tokio::test]
    async fn one_key_leaves_places_to_others() {
        let background = Arc::new(Background::new(true));
        let start = |tenant| background.start("r", Tenant(tenant), json!({}), false);
        let most = MAX_BACKGROUND_RESPONSES / KEY_SHARE;
        let seats: Vec<Seat> = (0..most).map(|_| start(1).unwrap()).collect();
        let error = start(1).err().unwrap();
        assert_eq!(error.status.as_u16(), 429);
        assert!(error.message.contains("of this key"), "{}", error.message);
        assert!(start(2).is_ok());
        drop(seats);
        background.idle().await;
        assert!(start(1).is_ok());
    }

    #[tokio::test]
    async fn events_are_read_while_they_come_and_after() {
        let background = Arc::new(Background::new(false));
        let seat = background.start("r", Tenant(1), json!({}), true).unwrap();
        let log = |seat: &Seat| seat.running.log.as_ref().map(|log| log.changed.subscribe());
        assert!(log(&seat).is_some());
        assert!(background.with_events("r", Tenant(2)).is_none());
        let reader = background.with_events("r", Tenant(1)).unwrap();
        let events = reader.log.as_ref().unwrap();
        events.push(vec![frame("a"), frame("b")], false);
        let read = events.read(1, 9).await;
        assert_eq!((read.len(), read[0].0, &*read[0].1.data), (1, 1, "b"));
        drop(seat);
        assert!(events.read(2, 9).await.is_empty());
        let again = background.with_events("r", Tenant(1)).unwrap();
        assert_eq!(again.log.as_ref().unwrap().read(0, 1).await.len(), 1);
        background.forget("r", Tenant(1));
        assert!(background.with_events("r", Tenant(1)).is_none());
        reader.over().await;
    }

    #[tokio::test]
    async fn a_full_log_still_gets_the_last_event() {
        let quota = Arc::new(Quota::new(3, 3));
        let log = EventLog::new(quota.take(0, 0).unwrap());
        log.push(vec![frame("ab"), frame("cd")], false);
        log.push(vec![frame("all")], true);
        log.close();
        let read = log.read(0, 9).await;
        let numbers: Vec<u64> = read.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 2]);
    }
}
