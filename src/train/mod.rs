//! Training from searched trees.

mod batch;
mod choices;
mod examples;
mod head;
mod random;
mod value_head;

pub use choices::Choices;
pub use examples::{Example, Examples, load_examples};
pub use value_head::{Report, TrainError, TrainOptions, cross_validate, evaluate, train};
