//! Open branch sessions and their leases. A session is a tree over one prompt; its branches share
//! KV blocks through the prefix cache.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use tokio::sync::Notify;

use super::ledger::Account;
use crate::api::admission::quota::Quota;
use crate::api::answer::reader::ReadingRules;
use crate::api::error::ApiError;
use crate::api::tenant::Tenant;
use crate::api::wire::Wire;
use crate::reward::RewardContext;
use crate::search::{EnginePolicy, Tree};

/// Sessions of one API key at once.
const MAX_SESSIONS: usize = 64;

/// One client's own search.
pub(in crate::api) struct Session {
    pub context: RewardContext,
    pub wire: Wire,
    /// How the text of the answer is read.
    pub reading: ReadingRules,
    /// The model's name in the answer.
    pub model: String,
    pub work: tokio::sync::Mutex<Work>,
}

/// What a call changes; calls of one session follow each other.
pub(in crate::api) struct Work {
    pub policy: EnginePolicy,
    pub tree: Tree,
    pub account: Account,
}

/// How long a session lives when nobody calls. It does not run while a call does.
#[derive(Debug)]
struct Lease {
    length: Duration,
    num_calls: usize,
    expires: Instant,
}

impl Lease {
    fn new(length: Duration, now: Instant) -> Self {
        Self {
            length,
            num_calls: 0,
            expires: now + length,
        }
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.num_calls > 0 || self.expires > now
    }

    /// When a look at the lease can find that it has ended; `None` when it has.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        match self.num_calls {
            0 => Some(self.expires).filter(|expires| *expires > now),
            _ => Some(now + self.length),
        }
    }

    fn begin_call(&mut self) {
        self.num_calls += 1;
    }

    fn end_call(&mut self, now: Instant) {
        self.num_calls -= 1;
        self.expires = now + self.length;
    }
}

struct Leased<S> {
    lease: Mutex<Lease>,
    /// Told when the session ends before its lease does.
    closed: Notify,
    session: S,
}

impl<S> Leased<S> {
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call of a session: while it lives, the lease is held; when it ends, however it ends, the lease
/// begins anew.
pub(super) struct Call<S = Session> {
    leased: Arc<Leased<S>>,
}

impl<S> Call<S> {
    fn begin(leased: &Arc<Leased<S>>, now: Instant) -> Option<Self> {
        let mut lease = leased.lease();
        if !lease.is_alive(now) {
            return None;
        }
        lease.begin_call();
        Some(Self {
            leased: Arc::clone(leased),
        })
    }
}

impl<S> Deref for Call<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.leased.session
    }
}

impl<S> Drop for Call<S> {
    fn drop(&mut self) {
        self.leased.lease().end_call(Instant::now());
    }
}

/// All open sessions.
pub(in crate::api) struct Branches<S = Session> {
    /// By tenant: another key's session does not exist.
    tenants: DashMap<Tenant, HashMap<String, Arc<Leased<S>>>>,
    ledger: Arc<Quota>,
}

impl<S> Branches<S> {
    /// What all sessions hold counts against `ledger`.
    pub fn new(ledger: Arc<Quota>) -> Self {
        Self {
            tenants: DashMap::new(),
            ledger,
        }
    }

    /// What a new session will hold is counted there.
    pub(super) fn account(&self, tenant: Tenant) -> Result<Account, ApiError> {
        Account::new(&self.ledger, tenant)
    }

    /// Opens a session and returns its id.
    pub(super) fn open(
        &self,
        tenant: Tenant,
        session: S,
        lease: Duration,
        now: Instant,
    ) -> Result<String, ApiError> {
        let mut sessions = self.tenants.entry(tenant).or_default();
        sessions.retain(|_, leased| leased.lease().is_alive(now));
        if sessions.len() >= MAX_SESSIONS {
            return Err(ApiError::overloaded(format!(
                "{MAX_SESSIONS} branch sessions are open: commit or delete some"
            )));
        }
        let id = format!("branches-{}", uuid::Uuid::new_v4().simple());
        let leased = Leased {
            lease: Mutex::new(Lease::new(lease, now)),
            closed: Notify::new(),
            session,
        };
        sessions.insert(id.clone(), Arc::new(leased));
        Ok(id)
    }

    /// Forgets a session once its lease has ended, whether or not anybody calls again. Returns when
    /// there is no such session any more.
    pub(super) async fn expire(&self, tenant: Tenant, id: &str) {
        let sessions = self.tenants.get(&tenant);
        let leased = sessions.and_then(|sessions| sessions.get(id).cloned());
        let Some(leased) = leased else { return };
        loop {
            let next = leased.lease().next_look(Instant::now());
            let Some(next) = next else { break };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = leased.closed.notified() => return,
            }
        }
        // Nobody can have renewed a lease that has ended.
        let _ = self.close(tenant, id, Instant::now());
    }

    /// Begins a call.
    pub(super) fn call(&self, tenant: Tenant, id: &str, now: Instant) -> Result<Call<S>, ApiError> {
        let sessions = self.tenants.get(&tenant);
        let leased = sessions.as_ref().and_then(|sessions| sessions.get(id));
        let call = leased.and_then(|leased| Call::begin(leased, now));
        call.ok_or_else(|| ApiError::no_session(id))
    }

    /// Ends a session: the one who finds it ends it, once.
    pub(super) fn close(&self, tenant: Tenant, id: &str, now: Instant) -> Result<(), ApiError> {
        let sessions = self.tenants.get_mut(&tenant);
        let closed = sessions.and_then(|mut sessions| sessions.remove(id));
        self.tenants.remove_if(&tenant, |_, rest| rest.is_empty());
        let closed = closed.ok_or_else(|| ApiError::no_session(id))?;
        closed.closed.notify_one();
        match closed.lease().is_alive(now) {
            true => Ok(()),
            false => Err(ApiError::no_session(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::ledger;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ALICE: Tenant = Tenant(1);
    const BOB: Tenant = Tenant(2);

    /// `lease_seconds: 1`, a call of two seconds, then another one.
    #[test]
    fn a_lease_does_not_end_while_a_call_runs() {
        let branches = Branches::new(ledger(0, false));
        let opened = Instant::now() - 10 * SECOND;
        let id = branches.open(ALICE, (), SECOND, opened).unwrap();
        let call = branches.call(ALICE, &id, opened).unwrap();
        let late = opened + 2 * SECOND;
        let other = branches.call(ALICE, &id, late).unwrap();
        drop(call);
        // Still held by the other one; the last one's end renews it.
        assert!(branches.call(ALICE, &id, Instant::now()).is_ok());
        drop(other);
        let ended = Instant::now();
        assert!(branches.call(ALICE, &id, ended).is_ok());
        let after = Instant::now() + SECOND;
        assert!(branches.call(ALICE, &id, after).is_err());
        assert!(branches.close(ALICE, &id, after).is_err());
    }

    #[test]
    fn leases_end_without_calls() {
        let branches = Branches::new(ledger(0, false));
        let now = Instant::now();
        let id = branches.open(ALICE, (), SECOND, now).unwrap();
        assert!(branches.call(ALICE, &id, now + SECOND).is_err());
        assert!(branches.close(ALICE, &id, now + SECOND).is_err());
        assert!(branches.tenants.is_empty(), "nothing is left behind");
        let mut lease = Lease::new(SECOND, now);
        assert_eq!(lease.next_look(now), Some(now + SECOND));
        assert_eq!(lease.next_look(now + SECOND), None);
        lease.begin_call();
        let late = now + 5 * SECOND;
        assert_eq!(lease.next_look(late), Some(late + SECOND), "held by a call");
    }

    #[tokio::test]
    async fn what_has_expired_is_forgotten_though_nobody_calls() {
        let branches = Branches::new(ledger(0, false));
        let lease = Duration::from_millis(2);
        let id = branches.open(ALICE, (), lease, Instant::now()).unwrap();
        branches.expire(ALICE, &id).await;
        assert!(branches.tenants.is_empty());
        branches.expire(ALICE, &id).await;
        // Who waits for a lease's end does not outlive the session.
        let id = branches.open(ALICE, (), 3600 * SECOND, Instant::now());
        let id = id.unwrap();
        let closing = async {
            tokio::task::yield_now().await;
            branches.close(ALICE, &id, Instant::now()).unwrap();
        };
        tokio::join!(branches.expire(ALICE, &id), closing);
    }

    #[test]
    fn sessions_are_their_tenants_own_and_few() {
        let branches = Branches::new(ledger(0, false));
        let now = Instant::now();
        let ids: Vec<String> = (0..MAX_SESSIONS)
            .map(|_| branches.open(ALICE, (), SECOND, now).unwrap())
            .collect();
        assert_eq!(
            branches.open(ALICE, (), SECOND, now).unwrap_err().status,
            429
        );
        assert!(branches.call(BOB, &ids[0], now).is_err());
        assert!(branches.close(BOB, &ids[0], now).is_err());
        assert!(branches.open(BOB, (), SECOND, now).is_ok());
        // A closed session is closed once, also while a call of it runs.
        let call = branches.call(ALICE, &ids[0], now).unwrap();
        assert!(branches.close(ALICE, &ids[0], now).is_ok());
        assert!(branches.close(ALICE, &ids[0], now).is_err());
        drop(call);
        assert!(branches.open(ALICE, (), SECOND, now).is_ok());
        // Those whose lease has ended make room.
        assert!(branches.open(ALICE, (), SECOND, now + SECOND).is_ok());
    }
}
