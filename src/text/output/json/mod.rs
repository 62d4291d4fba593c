//! Calls that are written as JSON, read character by character.

mod arguments;
mod call;
mod list;
mod value;

pub(super) use arguments::Arguments;
pub(super) use call::Rules;
pub(super) use list::{CallList, Took};
pub(super) use value::Scan;
