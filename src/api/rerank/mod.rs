//! How well texts answer a query: `/v1/rerank` in Jina's and Cohere's shape, `/score` in vLLM's.

mod relevance;
pub(in crate::api) mod routes;
pub(in crate::api) mod score;
