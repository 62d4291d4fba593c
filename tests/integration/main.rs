//! The one integration-test binary (one link instead of many). Each module is a room's tests.

mod engine;
mod tidy;
