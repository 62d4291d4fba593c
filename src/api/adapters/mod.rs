//! Adapters at run time, with vLLM's routes. A loaded adapter is a model's name.

pub(super) mod load;
pub(super) mod registry;
pub(super) mod routes;
