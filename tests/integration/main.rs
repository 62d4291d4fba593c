//! The one integration-test binary (one link instead of many). Each module is a room's tests.

mod adaptation;
mod adaptation_engine;
mod api;
mod api_adaptation;
mod api_branches;
mod api_resume;
mod api_search;
mod api_speculative;
mod api_traces;
mod backends;
mod bench_search;
mod constraint;
mod engine;
mod goldens;
mod guarantees;
mod liveness;
mod load;
mod lora;
#[cfg(feature = "mistralrs")]
mod mistralrs;
mod moe;
mod prm;
mod process;
mod sdk;
mod search;
mod search_relative;
mod search_resume;
mod search_table;
mod search_waits;
mod server;
mod speculative;
mod support;
mod tidy;
mod trace_process;
