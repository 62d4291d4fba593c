//! From a checked request to its answer. Producers ([`plain`], and searches in their own room) make
//! typed events; [`deliver`] hands them to a format of [`super::wire`], which writes them.

mod best;
mod choice;
pub(super) mod deliver;
pub(super) mod dispatch;
pub(super) mod event;
mod latency;
pub(super) mod logprobs;
mod outcome;
mod plain;
pub(super) mod producer;
pub(super) mod reader;
mod submit;
pub(super) mod whole;
