//! Requests and searched trees as data: their record, the values that a finished tree implies, and
//! their store.

mod export;
mod outcome;
mod record;
mod render;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod values;

pub use export::{ExportOptions, Exporter, Format, Level, Made, Pending};
pub use outcome::{LeafOutcome, MAX_LEAVES, OutcomeError, OutcomeUpdate};
pub use record::{
    AdapterIdentity, Identity, InsertedRecord, NodeRecord, PLAIN, SCHEMA, Timings, TraceRecord,
    Usage,
};
pub use render::render;
pub use store::{
    Clock, DEFAULT_MAX_AGE, DEFAULT_MAX_BYTES, Filter, Listing, Order, Owner, PackedResponse, Page,
    Revision, StoreError, StoreOptions, Stored, Summary, Totals, TraceStore, decode_stored,
};
pub use values::{ProcessReward, Target, infer_process_rewards, infer_values};
