//! Encoders as a service: texts become vectors, pairs of texts become scores.
//!
//! One thread owns a model (`crate::model::Encoder`). Whoever has texts tokenises them where that
//! delays nobody ([`EncoderTokenizer`]) and hands them over ([`EncoderHandle::run`]): the thread
//! makes batches of the texts of all who wait, in turns of their tenants.

mod handle;
mod queue;
mod request;
mod served;
mod tokens;

pub use handle::{EncoderHandle, EncoderStats, EncodingError, WorkerOptions};
pub use request::Sequence;
pub use served::{EncoderKind, EncoderOptions, EncodingLoadError, ServedEncoder};
pub use tokens::{EncoderTokenizer, Limit};
