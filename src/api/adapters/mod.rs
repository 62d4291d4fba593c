//! Adapters at run time, with vLLM's routes. A loaded adapter is a model's name.

mod folder;
pub(super) mod load;
pub(super) mod registry;
pub(super) mod routes;
