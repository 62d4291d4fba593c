//! What branch sessions hold in memory, and how much of it there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::error::ApiError;
use crate::api::tenant::Tenant;

/// What one session may hold.
pub(super) const MAX_SESSION_BYTES: usize = 16 << 20;

/// Counts the bytes of all sessions.
#[derive(Debug)]
pub(in crate::api) struct Ledger {
    max_bytes: usize,
    /// What one tenant's sessions may hold.
    max_bytes_of_one: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

impl Ledger {
    /// `is_shared` says whether there are several tenants: one of them gets half.
    pub fn new(max_bytes: usize, is_shared: bool) -> Self {
        Self {
            max_bytes,
            max_bytes_of_one: if is_shared { max_bytes / 2 } else { max_bytes },
            held: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session holds; given back when it ends.
#[derive(Debug)]
pub(in crate::api) struct Account {
    ledger: Arc<Ledger>,
    tenant: Tenant,
    num_bytes: usize,
}

impl Account {
    pub fn new(ledger: &Arc<Ledger>, tenant: Tenant) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            tenant,
            num_bytes: 0,
        }
    }

    /// Holds more, or says why that is too much.
    pub fn take(&mut self, num_bytes: usize) -> Result<(), ApiError> {
        if self.num_bytes + num_bytes > MAX_SESSION_BYTES {
            let message = format!(
                "a branch session holds at most {MAX_SESSION_BYTES} bytes of texts and tokens: \
                 commit it, or open another one"
            );
            return Err(ApiError::too_much_work(message));
        }
        let ledger = &self.ledger;
        let mut held = ledger.lock();
        let own = held.by_tenant.get(&self.tenant).copied().unwrap_or(0);
        if held.all + num_bytes > ledger.max_bytes || own + num_bytes > ledger.max_bytes_of_one {
            let message = "branch sessions hold all the memory that they may (--max-branch-bytes): \
                commit or delete some";
            return Err(ApiError::overloaded(message));
        }
        held.all += num_bytes;
        *held.by_tenant.entry(self.tenant).or_default() += num_bytes;
        self.num_bytes += num_bytes;
        Ok(())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut held = self.ledger.lock();
        held.all -= self.num_bytes;
        if let Some(own) = held.by_tenant.get_mut(&self.tenant) {
            *own -= self.num_bytes;
            if *own == 0 {
                held.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Tenant = Tenant(1);
    const BOB: Tenant = Tenant(2);

    #[test]
    fn sessions_share_what_there_is() {
        let ledger = Arc::new(Ledger::new(100, true));
        let mut first = Account::new(&ledger, ALICE);
        first.take(30).unwrap();
        let mut second = Account::new(&ledger, ALICE);
        // Half of it is one tenant's.
        assert_eq!(second.take(21).unwrap_err().status.as_u16(), 429);
        second.take(20).unwrap();
        let mut other = Account::new(&ledger, BOB);
        other.take(50).unwrap();
        assert!(other.take(1).is_err() && second.take(1).is_err());
        drop(first);
        second.take(30).unwrap();
        drop((second, other));
        let held = ledger.lock();
        assert_eq!((held.all, held.by_tenant.len()), (0, 0));
    }

    #[test]
    fn one_session_is_bounded() {
        let ledger = Arc::new(Ledger::new(usize::MAX, false));
        let mut account = Account::new(&ledger, ALICE);
        account.take(MAX_SESSION_BYTES).unwrap();
        let error = account.take(1).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.code),
            (400, Some("too_much_work"))
        );
    }
}
