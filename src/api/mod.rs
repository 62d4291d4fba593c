//! The HTTP room: routes, wire types, errors, auth, limits, metrics.
//!
//! A request is checked into a [`generation::Generation`], answered by a producer of typed events
//! ([`answer`], [`searching`]) and written by a format ([`wire`]). Files of this room import each
//! other in one direction only: handlers see [`state`], and what the state holds sees no handler.

mod adapters;
mod admission;
mod aliases;
mod answer;
mod auth;
mod body;
mod branches;
mod causes;
mod clock;
pub mod config;
pub mod connections;
mod deadline;
mod document;
mod embeddings;
pub mod error;
mod error_map;
mod generation;
mod guarded;
mod health;
mod keys;
mod metrics;
mod openai;
mod page;
mod pooling;
mod presets;
mod request_id;
mod rerank;
mod responses;
mod router;
mod score;
mod searching;
mod serve;
mod served;
mod served_encoders;
mod state;
mod tenant;
mod tokenize;
mod traces;
mod wire;

pub use config::ServerConfig;
pub use openai::adaptation::default_adaptation;
pub use openai::field_rules::{CHAT, COMPLETIONS, KnownField, Rule};
pub use openai::known_fields::known_fields;
pub use presets::strategy_names;
pub use router::{document_json, router};
pub use serve::{listen, serve};
pub use served::{Served, ServedGrammars, detect_output};
pub use served_encoders::ServedEncoders;
pub use state::AppState;
#[doc(hidden)]
pub use traces::query::check_query;
