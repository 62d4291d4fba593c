//! `/v1/branches`: the parts of a search, for people who write their own.

pub(super) mod ledger;
mod nodes;
pub(super) mod open;
pub(super) mod routes;
pub(super) mod session;
