//! OpenAI's routes and the requests that they take.

pub(super) mod adaptation;
pub(super) mod chat;
pub(super) mod code;
pub(super) mod completions;
mod continuation;
pub(super) mod field_rules;
mod fill;
mod images;
pub(super) mod known_fields;
pub(super) mod messages;
pub(super) mod models;
pub(super) mod params;
mod prompts;
mod reasoning;
mod restrict;
mod sampling;
mod shape;
pub(super) mod speculation;
pub(super) mod structured;
#[cfg(test)]
mod tests;
mod tools;
