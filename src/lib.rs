//! Ponder: an inference and test-time-compute server. ARCHITECTURE.md describes the rooms.

pub mod api;
pub mod cli;
pub mod encoding;
pub mod engine;
pub mod grammar;
pub mod model;
pub mod reward;
pub mod search;
pub mod text;
pub mod tool;
pub mod trace;
pub mod train;
pub mod work;
