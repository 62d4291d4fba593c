//! File descriptors: how many connections they allow.

use crate::api::config::RESERVED_CONNECTIONS;

/// Descriptors for everything but connections: the model, the store, sandboxed programs and their
/// pipes, calls of a reward server.
const RESERVED_DESCRIPTORS: usize = 64;
/// Connections whose place is another's already and whose task has not ended yet.
pub(in crate::api) const MAX_CLOSING_CONNECTIONS: usize = 32;
/// Fewer places than these are not worth a server.
const MIN_CONNECTIONS: usize = 8;

/// How many ordinary connections `num_descriptors` allow of the `wanted` ones.
pub fn max_connections(wanted: usize, num_descriptors: Option<u64>) -> usize {
    let Some(num_descriptors) = num_descriptors else {
        return wanted;
    };
    let others = RESERVED_DESCRIPTORS + RESERVED_CONNECTIONS + MAX_CLOSING_CONNECTIONS;
    let num_descriptors = usize::try_from(num_descriptors).unwrap_or(usize::MAX);
    let allowed = num_descriptors.saturating_sub(others).max(MIN_CONNECTIONS);
    wanted.min(allowed)
}

/// Raises this process's limit of open files as far as it may. `None` when there is no limit.
#[cfg(unix)]
pub fn raise_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

#[cfg(not(unix))]
pub fn raise_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_everything_else() {
        for (num_descriptors, expected) in [
            (None, 1024),
            (Some(u64::MAX), 1024),
            (Some(1024), 896),
            (Some(256), 128),
            (Some(100), MIN_CONNECTIONS),
            (Some(0), MIN_CONNECTIONS),
        ] {
            assert_eq!(max_connections(1024, num_descriptors), expected);
        }
        assert_eq!(max_connections(5, Some(1024)), 5);
        let limit = raise_limit();
        assert_eq!(raise_limit(), limit, "raised as far as it may be");
    }
}
