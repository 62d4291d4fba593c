//! What branch sessions hold in memory, and how much of it there may be.

use std::sync::Arc;

use crate::api::admission::quota::{Hold, Quota};
use crate::api::error::ApiError;
use crate::api::tenant::Tenant;

/// What one session may hold.
pub(super) const MAX_SESSION_BYTES: usize = 16 << 20;

/// The bytes that all sessions may hold. `is_shared` says whether there are several tenants: one of
/// them gets half.
pub(in crate::api) fn ledger(max_bytes: usize, is_shared: bool) -> Arc<Quota> {
    let of_one = if is_shared { max_bytes / 2 } else { max_bytes };
    Arc::new(Quota::new(max_bytes, of_one))
}

/// What one session holds; given back when it ends.
#[derive(Debug)]
pub(in crate::api) struct Account(Hold);

impl Account {
    pub fn new(ledger: &Arc<Quota>, tenant: Tenant) -> Result<Self, ApiError> {
        let hold = ledger.take(tenant.0, 0);
        hold.map(Self).map_err(|_| full())
    }

    /// Holds more, or says why that is too much.
    pub fn take(&mut self, num_bytes: usize) -> Result<(), ApiError> {
        if self.0.amount() + num_bytes > MAX_SESSION_BYTES {
            let message = format!(
                "a branch session holds at most {MAX_SESSION_BYTES} bytes of texts and tokens: \
                 commit it, or open another one"
            );
            return Err(ApiError::too_much_work(message));
        }
        self.0.grow(num_bytes).map_err(|_| full())
    }
}

fn full() -> ApiError {
    ApiError::overloaded(
        "branch sessions hold all the memory that they may (--max-branch-bytes): commit or delete \
         some",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Tenant = Tenant(1);
    const BOB: Tenant = Tenant(2);

    #[test]
    fn sessions_share_what_there_is() {
        let ledger = ledger(100, true);
        let mut first = Account::new(&ledger, ALICE).unwrap();
        first.take(30).unwrap();
        let mut second = Account::new(&ledger, ALICE).unwrap();
        // Half of it is one tenant's.
        assert_eq!(second.take(21).unwrap_err().status.as_u16(), 429);
        second.take(20).unwrap();
        let mut other = Account::new(&ledger, BOB).unwrap();
        other.take(50).unwrap();
        assert!(other.take(1).is_err() && second.take(1).is_err());
        drop(first);
        second.take(30).unwrap();
        drop((second, other));
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn one_session_is_bounded() {
        let ledger = ledger(usize::MAX, false);
        let mut account = Account::new(&ledger, ALICE).unwrap();
        account.take(MAX_SESSION_BYTES).unwrap();
        let error = account.take(1).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.code),
            (400, Some("too_much_work"))
        );
    }
}
