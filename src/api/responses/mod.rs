//! `/v1/responses`: OpenAI's Responses API over the chat pipeline.
//!
//! A request's input becomes items, the items become the messages of a chat request, and the chat's
//! answer becomes a response object. What a response is remembered by is in the trace store.

pub(super) mod background;
pub(super) mod count;
pub(super) mod create;
mod deliver;
mod echo;
mod fit;
mod history;
mod items;
mod messages;
mod names;
mod parts;
mod prepare;
pub(super) mod query;
pub(super) mod request;
pub(super) mod routes;
mod run;
mod stored;
mod tools;
mod translate;
