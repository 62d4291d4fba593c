//! `/v1/responses`: OpenAI's response object, and the named events of its stream.
//!
//! One state machine writes both: a whole response is what its events add up to.

mod code_item;
mod head;
mod item;
mod object;
#[cfg(test)]
mod tests;
mod writer;

pub(in crate::api) use head::{ResponseHead, response_id};
pub(in crate::api) use item::decode_thought;
pub(in crate::api) use object::{failed_object, in_progress_object};
pub(in crate::api) use writer::ResponseWriter;
