//! What a request causes: who asks, until when, and how much it brought.

use super::deadline::Deadline;
use super::error::ApiError;
use super::state::AppState;
use super::tenant::Tenant;
use crate::work::Budget;

/// Work on behalf of a request, of which more comes with more bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Causes {
    pub tenant: Tenant,
    pub deadline: Deadline,
    /// Of what is worked on.
    pub num_bytes: usize,
}

impl Causes {
    /// The work of compiling a pattern, if there is one: its length says nothing of what it takes.
    pub fn of_pattern(pattern: Option<&str>, tenant: Tenant, deadline: Deadline) -> Self {
        Self {
            tenant,
            deadline,
            num_bytes: if pattern.is_some() { usize::MAX } else { 0 },
        }
    }

    /// Does the work where it delays nobody, as [`crate::work`] has it. `what` names it in errors.
    pub async fn run<T: Send + 'static>(
        self,
        state: &AppState,
        what: &'static str,
        job: impl FnOnce(&Budget) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (tenant, deadline) = (self.tenant.0, self.deadline.instant());
        let pool = state.work();
        pool.run_sized(self.num_bytes, what, tenant, deadline, job)
            .await
    }
}
