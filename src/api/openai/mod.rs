//! OpenAI's routes and wire types.

pub(super) mod adaptation;
pub mod chat;
pub mod completions;
pub mod models;
pub(super) mod params;
pub(super) mod speculation;
