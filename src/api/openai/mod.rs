//! OpenAI's routes and the requests that they take.

pub(super) mod adaptation;
pub(super) mod chat;
pub(super) mod completions;
mod images;
pub(super) mod messages;
pub(super) mod models;
pub(super) mod params;
mod reasoning;
mod shape;
pub(super) mod speculation;
pub(super) mod structured;
#[cfg(test)]
mod tests;
mod tools;
