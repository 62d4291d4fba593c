//! The nouns that cross the engine's door: what a client submits and what it receives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::backend::Capability;
use super::speculative::{DraftCounts, Drafter, Speculative, SpeculativeConfig};
pub use crate::model::{AdaptationConfig, AdaptationReport, AdapterId, Steering};

/// Index into the model's vocabulary.
pub type TokenId = u32;

/// Identifies one submitted request for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Identifies requests that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId(pub u64);

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

/// A [`TokenWatcher`]'s word on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    Continue,
    /// Go on, and report this token's hidden state when the request asks for hidden states.
    Tap,
    /// End the continuation with [`FinishReason::Watcher`].
    End,
}

/// Watches the tokens of one continuation on the engine's thread, so that it ends (at a step of the answer,
/// say) before one more token is computed.
pub trait TokenWatcher: std::fmt::Debug + Send {
    /// Takes the newest token.
    fn push(&mut self, token_id: TokenId) -> Watch;

    /// A watcher in the same state, for a sibling.
    fn boxed_clone(&self) -> Box<dyn TokenWatcher>;
}

impl Clone for Box<dyn TokenWatcher> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// Tokens that several requests may generate together: a hard limit, taken from before each token.
#[derive(Debug)]
pub struct TokenBudget {
    limit: u64,
    spent: AtomicU64,
}

impl TokenBudget {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: AtomicU64::new(0),
        }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Acquire)
    }

    pub fn remaining(&self) -> u64 {
        self.limit - self.spent()
    }

    /// Takes tokens that were generated elsewhere, as far as any are left.
    pub fn charge(&self, num_tokens: u64) {
        let charge = |spent: u64| Some(spent.saturating_add(num_tokens).min(self.limit));
        let _ = self
            .spent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, charge);
    }

    /// Takes one token if one is left.
    pub fn take(&self) -> bool {
        let spend = |spent: u64| (spent < self.limit).then_some(spent + 1);
        self.spent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, spend)
            .is_ok()
    }
}

/// Makes a request one that reads the model at positions of its prompt instead of continuing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolingParams {
    /// Ascending positions in the prompt; each answers with a [`StreamEvent::Pooled`].
    pub positions: Vec<usize>,
    /// Tokens whose logits are reported.
    pub token_ids: Vec<TokenId>,
    /// Report the final hidden state.
    pub hidden_state: bool,
}

/// A conversation with images, for a backend that sees ([`super::Capability::Vision`]). The backend renders it itself, since images
/// become tokens that only it knows; the prompt's tokens are those of the text alone.
#[derive(Debug, Clone)]
pub struct Media {
    pub turns: Vec<MediaTurn>,
}

/// One message of a conversation with images.
#[derive(Debug, Clone)]
pub struct MediaTurn {
    pub role: String,
    pub text: String,
    /// Encoded images (PNG, JPEG, WebP, GIF), which come before the text.
    pub images: Vec<Vec<u8>>,
}

/// One request: a prompt and `n` independent continuations of it that share the prompt's KV blocks.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub prompt_token_ids: Vec<TokenId>,
    pub params: SamplingParams,
    /// Read the prompt instead of continuing it; `n` is 1 then.
    pub pooling: Option<PoolingParams>,
    /// Number of continuations.
    pub n: usize,
    /// Key of the random generator beside the seed; continuation `index` samples with `[..branch_path, index]`.
    pub branch_path: Vec<u32>,
    /// Each continuation gets a clone.
    pub watcher: Option<Box<dyn TokenWatcher>>,
    /// Shared with other requests of the same search; spent, it ends them with [`FinishReason::Budget`].
    pub budget: Option<Arc<TokenBudget>>,
    /// Salt of the prefix cache: requests share cached blocks only under the same salt.
    pub cache_salt: u64,
    /// See [`super::Backend::load_adapter`].
    pub adapter: Option<AdapterId>,
    /// Adapt to the prompt before the first token, and again as it says.
    pub adaptation: Option<Arc<AdaptationConfig>>,
    /// What an adaptation found before ([`StreamEvent::Adapted`]): tokens are computed under it.
    pub steering: Option<Arc<Steering>>,
    /// The first token that is; those before keep the keys and values of the model alone.
    pub steering_from: usize,
    /// Under KV pressure the lowest is computed again later, the newest of equals first. 1 for plain requests, a
    /// branch's value in a search: a tree sheds its own worst branches before it disturbs anyone.
    pub priority: f32,
    /// Requests of one search: together they count as one when waiting requests take turns. Others are on their
    /// own. See [`super::Backend::new_group`].
    pub group: Option<GroupId>,
    /// Who drafts its tokens; the engine's default when `None`. It never changes a token.
    pub speculative: Option<Speculative>,
    /// Text that the answer is expected to repeat: prompt lookup looks here too.
    pub prediction: Vec<TokenId>,
    /// What the prompt shows.
    pub media: Option<Arc<Media>>,
    /// Past this instant every unfinished continuation ends with [`FinishReason::Deadline`].
    pub deadline: Option<Instant>,
}

impl GenerateRequest {
    /// Reads the model at positions of a prompt.
    pub fn pooling(prompt_token_ids: Vec<TokenId>, pooling: PoolingParams) -> Self {
        let params = SamplingParams {
            max_tokens: 0,
            ..SamplingParams::default()
        };
        Self {
            pooling: Some(pooling),
            ..Self::new(prompt_token_ids, params)
        }
    }

    /// One continuation, alone, without a deadline.
    pub fn new(prompt_token_ids: Vec<TokenId>, params: SamplingParams) -> Self {
        Self {
            prompt_token_ids,
            params,
            pooling: None,
            n: 1,
            branch_path: Vec::new(),
            watcher: None,
            budget: None,
            cache_salt: 0,
            adapter: None,
            adaptation: None,
            steering: None,
            steering_from: 0,
            priority: 1.0,
            group: None,
            speculative: None,
            prediction: Vec::new(),
            media: None,
            deadline: None,
        }
    }
}

/// A token's logprob with the most likely alternatives at its position, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token_id: TokenId,
    /// Natural log of the probability under the model's unmodified logits (temperature 1).
    pub logprob: f32,
    /// `(token_id, logprob)`, descending.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-generation token; it is reported as a token event too.
    Eos,
    /// One of `stop_token_ids`.
    StopToken(TokenId),
    /// `max_tokens` or the context length is reached.
    Length,
    /// The client aborted or dropped its stream.
    Abort,
    /// The request's deadline passed.
    Deadline,
    /// The request's [`TokenWatcher`] ended it.
    Watcher,
    /// The request's [`TokenBudget`] is spent.
    Budget,
    /// All positions of the request's [`PoolingParams`] were reported.
    Pooled,
}

/// What a client receives, in order. `index` is the continuation, `0..n`.
#[derive(Debug, Clone)]
pub enum StreamEvent {
    /// Once per request, before its first token.
    PromptDone {
        num_prompt_tokens: usize,
        num_cached_tokens: usize,
        /// One entry per prompt token when asked for; the first token has none.
        prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    },
    Token {
        index: usize,
        token_id: TokenId,
        logprobs: Option<TokenLogprobs>,
        /// `[hidden_size]`, what the token was sampled from: of a continuation's last token and of those that
        /// its watcher taps, when the request asks for hidden states.
        hidden_state: Option<Vec<f32>>,
    },
    /// A phase of adaptation is over. Before `PromptDone` it is the prompt's, and counts for all continuations.
    Adapted {
        index: usize,
        report: AdaptationReport,
        steering: Arc<Steering>,
    },
    /// What a pooling request reads at `position` of its prompt, in order.
    Pooled {
        position: usize,
        /// One of each of [`PoolingParams::token_ids`].
        logits: Vec<f32>,
        /// `[hidden_size]`
        hidden_state: Option<Vec<f32>>,
    },
    Finished {
        index: usize,
        reason: FinishReason,
        /// What came of the drafts of this continuation.
        drafts: DraftCounts,
    },
    /// The request failed; no event follows.
    Error(EngineError),
}

/// Why the engine refused or failed a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the waiting queue is full ({waiting} of {limit} sequences wait)")]
    Overloaded { waiting: usize, limit: usize },
    #[error("the prompt has {num_tokens} tokens; this model serves at most {max_model_len}")]
    PromptTooLong {
        num_tokens: usize,
        max_model_len: usize,
    },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("n is {n}; this server runs at most {limit} sequences per request")]
    TooManySequences { n: usize, limit: usize },
    #[error(
        "pooling positions must ascend and lie in the prompt of {num_tokens} tokens; n must be 1"
    )]
    PoolingPositions { num_tokens: usize },
    #[error("token id {token_id} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        token_id: TokenId,
        vocab_size: usize,
    },
    #[error("the KV cache holds {available} tokens in all; this request needs {needed}")]
    KvCacheTooSmall { needed: usize, available: usize },
    #[error("the engine is shutting down")]
    ShuttingDown,
    #[error("request {0} is not running")]
    UnknownRequest(u64),
    #[error("the adapter was unloaded")]
    UnknownAdapter,
    #[error("{field} {message}")]
    Adaptation {
        field: &'static str,
        message: String,
    },
    #[error(
        "the {backend} backend lacks the capability {}, which this needs: leave it out, or serve the model by a \
         backend that has it",
        capability.name()
    )]
    Unsupported {
        backend: &'static str,
        capability: Capability,
    },
    #[error("image {index} of the request: {message}")]
    Image { index: usize, message: String },
    #[error("the model failed: {0}")]
    Model(String),
}

impl EngineError {
    pub(super) fn not_finite() -> Self {
        Self::Model("the model's logits are not finite numbers".to_owned())
    }
}

/// Sizes of the engine; every limit is fixed when it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Prompt plus output of one sequence.
    pub max_model_len: usize,
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Rows (tokens) in one step; prefill is chunked to fit.
    pub max_num_batched_tokens: usize,
    /// Tokens per KV block.
    pub block_size: usize,
    pub num_blocks: usize,
    pub enable_prefix_caching: bool,
    pub enable_chunked_prefill: bool,
    /// Sequences (not requests) that may wait for admission before submit answers `Overloaded`.
    pub max_num_waiting_seqs: usize,
    pub speculative: SpeculativeConfig,
}

/// Counters and gauges of a running engine, read without stopping it. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineStats {
    pub num_requests_running: usize,
    pub num_requests_waiting: usize,
    /// Running sequences that belong to a group.
    pub num_branches_running: usize,
    pub num_blocks: usize,
    /// Blocks referenced by live sequences (cached but unreferenced blocks count as free).
    pub num_used_blocks: usize,
    pub prefix_cache_queries: u64,
    pub prefix_cache_hits: u64,
    pub num_preemptions: u64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    pub num_steps: u64,
    /// By [`Drafter`].
    pub drafts: [DraftCounts; Drafter::ALL.len()],
}
