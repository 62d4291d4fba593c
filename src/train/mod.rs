//! Training from searched trees.

mod examples;
mod value_head;

pub use examples::{Example, Examples, load_examples};
pub use value_head::{Report, TrainError, TrainOptions, train};
