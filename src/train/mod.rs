//! Training from searched trees.

mod adamw;
mod batch;
mod calibration;
mod choices;
mod examples;
mod head;
mod logistic;
mod random;
mod traces;
mod value_head;

pub use calibration::{CalibrationReport, calibrate};
pub use choices::Choices;
pub use examples::{Example, Examples, load_examples};
pub use logistic::Quality;
pub use value_head::{Report, TrainError, TrainOptions, cross_validate, evaluate, train};
