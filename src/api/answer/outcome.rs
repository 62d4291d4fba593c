//! What became of requests whose answers did not come to their end: each counts once.

use crate::api::error::ApiError;
use crate::api::state::AppState;

/// Counts a request that is being answered, unless its answer becomes whole: choices that end count
/// themselves. Dropped before that, its client has hung up.
pub(super) struct Outcome {
    state: AppState,
    is_known: bool,
}

impl Outcome {
    /// A request that has been admitted.
    pub fn pending(state: &AppState) -> Self {
        Self {
            state: state.clone(),
            is_known: false,
        }
    }

    /// The answer is over.
    pub fn known(mut self, error: Option<&ApiError>) {
        self.is_known = true;
        if let Some(error) = error {
            self.state.metrics().cut_short(reason(error));
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if !self.is_known {
            self.state.metrics().cut_short("abort");
        }
    }
}

fn reason(error: &ApiError) -> &'static str {
    match error.status.as_u16() {
        408 => "timeout",
        _ if error.is_abort() => "abort",
        _ => "error",
    }
}
