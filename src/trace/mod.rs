//! Searched trees as data: their record, and the values that a finished tree implies.

mod record;
mod render;
mod values;

pub use record::{NodeRecord, SCHEMA, TraceRecord};
pub use render::render;
pub use values::{Target, infer_values};
