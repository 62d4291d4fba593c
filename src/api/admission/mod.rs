//! What requests may hold at once, all of them and those of one key: places among the requests in
//! progress, and bytes of bodies. Decided before a byte of a body is read.

mod body;
pub(super) mod layer;
pub(super) mod quota;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{KEY_SHARE, ServerConfig};
use quota::Quota;

/// Why a request was turned away.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    /// Every connection is at work, and this request is not one of the most important.
    Connections,
    /// Its key has its share of requests in progress.
    KeyShare,
    /// There is no room for its body.
    BodyBytes,
    /// Its body came too slowly.
    SlowBody,
}

impl Reason {
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::KeyShare,
        Self::BodyBytes,
        Self::SlowBody,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::KeyShare => "key_share",
            Self::BodyBytes => "body_bytes",
            Self::SlowBody => "slow_body",
        }
    }
}

/// What requests hold now.
#[derive(Debug)]
pub(super) struct Admission {
    /// Requests in progress, from their header to the last byte of their answer.
    pub requests: Arc<Quota>,
    /// Bytes of bodies whose requests have no answer yet.
    pub body_bytes: Arc<Quota>,
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Admission {
    pub fn new(config: &ServerConfig) -> Self {
        let limits = &config.connections;
        // One key alone has all that there is.
        let is_shared = config.api_keys.len() + config.trace_keys.len() > 1;
        let share = match is_shared {
            true => (limits.max_connections / KEY_SHARE).max(1),
            false => usize::MAX,
        };
        let per_key = limits.max_requests_per_key.unwrap_or(share);
        // One body of the largest size, and of a common shape, always fits.
        let all_bytes = limits.max_inflight_body_bytes.max(config.max_body_bytes);
        let bytes_per_key = match is_shared {
            true => (all_bytes / KEY_SHARE).max(config.max_body_bytes),
            false => all_bytes,
        };
        Self {
            requests: Arc::new(Quota::new(usize::MAX, per_key)),
            body_bytes: Arc::new(Quota::new(all_bytes, bytes_per_key)),
            refused: Default::default(),
        }
    }

    pub fn refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn num_refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }
}
