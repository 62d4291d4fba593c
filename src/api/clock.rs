//! The wall clock of answers.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in Unix seconds.
pub(super) fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs())
}
