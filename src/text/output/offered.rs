//! The tools that a request offers.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Names of tools; nothing is known of them until they are given.
#[derive(Debug, Clone, Default)]
pub(super) struct Offered {
    names: Option<Arc<BTreeSet<String>>>,
}

impl Offered {
    pub fn new(names: BTreeSet<String>) -> Self {
        Self {
            names: Some(Arc::new(names)),
        }
    }

    pub fn is_known(&self) -> bool {
        self.names.is_some()
    }

    /// Whether a name may be called; every name, where nothing is known.
    pub fn has(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    /// Whether a name that begins so may be called.
    pub fn may_begin(&self, start: &str) -> bool {
        self.names.as_ref().is_none_or(|names| {
            let range = (std::ops::Bound::Included(start), std::ops::Bound::Unbounded);
            let next = names.range::<str, _>(range).next();
            next.is_some_and(|name| name.starts_with(start))
        })
    }
}
