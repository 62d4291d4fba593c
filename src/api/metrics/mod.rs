//! Prometheus metrics: our own `ponder_*` names and the `vllm:` names that gateways and dashboards
//! read.

mod encoders;
pub(super) mod recorder;
pub(super) mod scrape;
