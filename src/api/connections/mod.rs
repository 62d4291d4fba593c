//! Connections: how many there are, how long each may keep the server waiting, and which one goes
//! when there is no place for another.
//!
//! A connection is served by one task ([`attend`]). What it does is told by an
//! [`activity::Activity`], which its socket and its requests keep up to date; deadlines and the
//! choice of whom to close ([`places`]) read it.

mod activity;
mod attend;
pub mod descriptors;
pub(super) mod places;
mod requests;
mod socket;
#[cfg(test)]
mod tests;

pub(super) use activity::Timeouts;
pub(super) use attend::attend;
pub(super) use requests::Arrival;
