//! `/v1/branches`: the parts of a search, for people who write their own.

mod nodes;
pub(super) mod routes;
pub(super) mod session;
