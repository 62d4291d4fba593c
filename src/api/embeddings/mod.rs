//! `/v1/embeddings`: vectors of texts, by an encoder or by the served model's own states.

pub(in crate::api) mod answer;
mod decoder;
pub(in crate::api) mod embed;
pub(in crate::api) mod request;
pub(in crate::api) mod route;
pub(in crate::api) mod target;
