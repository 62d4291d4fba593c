//! Traces: taking them down, and the routes that read them.

pub(super) mod access;
pub(super) mod keep;
mod leaves;
pub(super) mod query;
pub(super) mod recorder;
pub(super) mod routes;
pub(super) mod seats;
pub(super) mod store;
pub(super) mod stream;
mod work;
