//! Flags of what connections and their requests may hold.

use std::time::Duration;

use clap::{Args, value_parser};

use super::values::{MAX_SECONDS, parse_bytes};
use crate::api::config as limits;
use crate::api::config::ConnectionLimits;
use crate::api::connections::descriptors;

/// More connections than any system gives descriptors for.
const MAX_CONNECTIONS: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    /// Most connections at once; fewer if the limit of open files is lower
    #[arg(long, env = "PONDER_MAX_CONNECTIONS", default_value_t = limits::DEFAULT_MAX_CONNECTIONS as u64, value_parser = value_parser!(u64).range(1..=MAX_CONNECTIONS), help_heading = "Connections")]
    pub max_connections: u64,
    /// Most requests of one key at once [default: a quarter of the connections if there are several
    /// keys]
    #[arg(long, env = "PONDER_MAX_REQUESTS_PER_KEY", value_parser = value_parser!(u64).range(1..=MAX_CONNECTIONS), help_heading = "Connections")]
    pub max_requests_per_key: Option<u64>,
    /// Memory of the bodies of all unanswered requests, such as 512M; one of several keys may use a
    /// quarter
    #[arg(long, env = "PONDER_MAX_INFLIGHT_BODY_BYTES", value_parser = parse_bytes, help_heading = "Connections")]
    pub max_inflight_body_bytes: Option<usize>,
    /// Seconds within which a request's header must arrive
    #[arg(long, env = "PONDER_HEADER_TIMEOUT", default_value_t = limits::DEFAULT_HEADER_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Connections")]
    pub header_timeout: u64,
    /// Seconds that an idle connection stays open
    #[arg(long, env = "PONDER_KEEP_ALIVE_TIMEOUT", default_value_t = limits::DEFAULT_KEEP_ALIVE_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Connections")]
    pub keep_alive_timeout: u64,
    /// Longest pause while a request's body arrives, in seconds
    #[arg(long, env = "PONDER_BODY_TIMEOUT", default_value_t = limits::DEFAULT_BODY_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Connections")]
    pub body_timeout: u64,
    /// Seconds after which an answer that the client does not read ends
    #[arg(long, env = "PONDER_WRITE_TIMEOUT", default_value_t = limits::DEFAULT_WRITE_TIMEOUT.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Connections")]
    pub write_timeout: u64,
}

impl ConnectionArgs {
    /// The limits, with as many connections as this process may have files open. Raises that limit
    /// as far as it may.
    pub fn limits(&self) -> ConnectionLimits {
        let num_descriptors = descriptors::raise_limit();
        let wanted = usize::try_from(self.max_connections).unwrap_or(usize::MAX);
        let max_connections = descriptors::max_connections(wanted, num_descriptors);
        if max_connections < wanted {
            tracing::warn!(
                "{max_connections} connections at once instead of {wanted}: the limit of open files (ulimit -n) is low"
            );
        }
        let per_key = self.max_requests_per_key;
        ConnectionLimits {
            header_timeout: Duration::from_secs(self.header_timeout),
            keep_alive_timeout: Duration::from_secs(self.keep_alive_timeout),
            body_timeout: Duration::from_secs(self.body_timeout),
            write_timeout: Duration::from_secs(self.write_timeout),
            max_connections,
            max_requests_per_key: per_key.map(|num| usize::try_from(num).unwrap_or(usize::MAX)),
            max_inflight_body_bytes: self
                .max_inflight_body_bytes
                .unwrap_or(limits::DEFAULT_MAX_INFLIGHT_BODY_BYTES),
        }
    }
}
