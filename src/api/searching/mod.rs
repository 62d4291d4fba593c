//! Requests with a `search` object, from their checks to their answers.

pub(super) mod answer;
pub(super) mod policy;
pub(super) mod record;
mod resume;
mod run;
