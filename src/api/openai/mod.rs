//! OpenAI's routes and wire types.

pub(super) mod adaptation;
pub mod chat;
pub mod completions;
pub(in crate::api) mod images;
pub mod models;
pub(super) mod params;
pub(super) mod speculation;
