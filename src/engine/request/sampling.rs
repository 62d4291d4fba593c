//! How a request's tokens are drawn.

use super::TokenId;

/// How tokens are drawn from logits. Field names and meanings are vLLM's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// 0 means no limit.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    /// 1.0 means off; counts prompt and output tokens.
    pub repetition_penalty: f32,
    /// Counts output tokens only, as does `frequency_penalty`.
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Added to the logits before anything else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Key of the counter-based generator. The same seed and request give the same answer.
    pub seed: u64,
    /// Upper bound on generated tokens per choice; the engine also stops at its context length.
    pub max_tokens: usize,
    /// End-of-sequence and stop tokens are masked until this many tokens are out.
    pub min_tokens: usize,
    /// Keep going past the model's end-of-generation tokens (benchmarks).
    pub ignore_eos: bool,
    /// The model's end-of-generation tokens, filled in by the caller (the engine has no tokenizer).
    pub eos_token_ids: Vec<TokenId>,
    /// Extra stop tokens chosen by the client.
    pub stop_token_ids: Vec<TokenId>,
    /// `Some(k)`: report the sampled token's logprob and the top k alternatives.
    pub logprobs: Option<usize>,
    /// `Some(k)`: report logprobs of the prompt's own tokens and the top k alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Report hidden states, see [`StreamEvent::Token`].
    pub hidden_state: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            hidden_state: false,
        }
    }
}
