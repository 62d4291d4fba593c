//! The nouns that cross the engine's door: what a client submits and what it receives.

mod budget;
mod constraint;
mod error;
mod event;
mod sampling;
mod watcher;

use std::sync::Arc;
use std::time::Instant;

pub use super::config::EngineConfig;
use super::speculative::Speculative;
pub use super::stats::EngineStats;
pub use crate::model::{AdaptationConfig, AdaptationReport, AdapterId, Steering};
pub use budget::TokenBudget;
pub use constraint::{AllowedTokens, ConstraintError, TokenConstraint, TokenMask};
pub use error::EngineError;
pub use event::{FinishReason, StreamEvent, TokenLogprobs};
pub use sampling::SamplingParams;
pub use watcher::{TokenWatcher, Watch};

/// Index into the model's vocabulary.
pub type TokenId = u32;

/// Identifies one submitted request for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Identifies requests that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId(pub u64);

/// Makes a request one that reads the model at positions of its prompt instead of continuing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolingParams {
    /// Ascending positions in the prompt; each answers with a [`StreamEvent::Pooled`].
    pub positions: Vec<usize>,
    /// Tokens whose logits are reported.
    pub token_ids: Vec<TokenId>,
    /// Report the final hidden state.
    pub hidden_state: bool,
    /// One [`StreamEvent::Pooled`] at the last position, whose hidden state is the mean of those at
    /// all positions.
    pub mean: bool,
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
    /// Which tokens may come next; each continuation gets a fork.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// Shared with other requests of the same search; spent, it ends them with [`FinishReason::Budget`].
    pub budget: Option<Arc<TokenBudget>>,
    /// Who asks: tenants take turns, and none takes all places where the engine is shared.
    pub tenant: u64,
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
            constraint: None,
            budget: None,
            tenant: 0,
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
