//! Reading a model at positions of prompts: what judges, process reward models and value models do.

use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::tokens::ReadingKind;
use super::{RewardContext, ScorerError};
use crate::engine::{
    AdapterId, Backend, EngineError, FinishReason, GenerateRequest, GroupId, PoolingParams,
    StreamEvent,
};
use crate::text::{TemplateError, TokenizerError};
use crate::work::{Budget, WorkError};

/// Shared tokens that are worth a pass of their own before prompts run side by side.
const MIN_SHARED_TOKENS: usize = 32;
/// How long a prompt waits before it tries again to enter a full queue.
const RETRY: Duration = Duration::from_millis(20);

/// What the model says at one position.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// One a token that was asked for.
    pub logits: Vec<f32>,
    /// `[hidden_size]`
    pub hidden_state: Vec<f32>,
}

/// A prompt and where it is read.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    pub token_ids: Vec<u32>,
    pub pooling: PoolingParams,
}

/// Why prompts were not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("the deadline passed before the model had read the answer")]
    Deadline,
    /// The question and the answer together do not fit the model that reads them.
    #[error("{0}")]
    TooLong(String),
    #[error(transparent)]
    Work(#[from] WorkError),
    #[error("{0}")]
    Failed(String),
}

impl ReadError {
    /// The error of a scorer of this kind.
    pub(super) fn of(self, kind: &'static str) -> ScorerError {
        match self {
            Self::Deadline => ScorerError::Deadline { kind },
            Self::TooLong(message) => ScorerError::TooMuchWork { kind, message },
            Self::Work(error) => ScorerError::work(kind, error),
            Self::Failed(message) => ScorerError::Failed { kind, message },
        }
    }
}

impl From<EngineError> for ReadError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::PromptTooLong { .. } => Self::TooLong(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<TokenizerError> for ReadError {
    fn from(error: TokenizerError) -> Self {
        match error {
            TokenizerError::TooLong { .. } => Self::TooLong(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<String> for ReadError {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

impl From<TemplateError> for ReadError {
    fn from(error: TemplateError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// How long a prompt may become, and how long that may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound<'b> {
    pub max_tokens: usize,
    pub budget: &'b Budget,
}

/// Who reads.
#[derive(Clone, Copy)]
pub(super) struct Model<'e> {
    pub engine: &'e dyn Backend,
    /// Under which its weights are read.
    pub adapter: Option<AdapterId>,
    /// For which reward.
    pub kind: ReadingKind,
}

impl Model<'_> {
    /// Readings of each prompt, one a position. What all prompts begin with is computed once. Ends
    /// at the deadline, whether it waits for the model or for a place in its queue.
    pub async fn read(
        self,
        prompts: Vec<Prompt>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<Reading>>, ReadError> {
        let readings = self.read_all(prompts, context, deadline);
        match deadline {
            None => readings.await,
            Some(at) => tokio::time::timeout_at(at.into(), readings)
                .await
                .unwrap_or(Err(ReadError::Deadline)),
        }
    }

    async fn read_all(
        self,
        prompts: Vec<Prompt>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<Reading>>, ReadError> {
        // Prompts of one call take one turn, however many they are.
        let group = self.engine.new_group();
        if let [first, rest @ ..] = prompts.as_slice()
            && !rest.is_empty()
        {
            let shared = num_shared(&first.token_ids, rest);
            if shared >= MIN_SHARED_TOKENS {
                let pooling = PoolingParams {
                    positions: vec![shared - 1],
                    ..PoolingParams::default()
                };
                let token_ids = first.token_ids[..shared].to_vec();
                let prompt = Prompt { token_ids, pooling };
                self.read_one(prompt, context, group, deadline).await?;
            }
        }
        let reads = prompts.into_iter();
        try_join_all(reads.map(|prompt| self.read_one(prompt, context, group, deadline))).await
    }

    async fn read_one(
        self,
        prompt: Prompt,
        context: &RewardContext,
        group: GroupId,
        deadline: Option<Instant>,
    ) -> Result<Vec<Reading>, ReadError> {
        let request = GenerateRequest {
            tenant: context.tenant,
            cache_salt: context.cache_salt,
            adapter: self.adapter,
            group: Some(group),
            deadline,
            ..GenerateRequest::pooling(prompt.token_ids, prompt.pooling)
        };
        let mut stream = loop {
            match self.engine.submit(request.clone()) {
                Err(EngineError::Overloaded { .. }) => tokio::time::sleep(RETRY).await,
                stream => break stream?,
            }
        };
        let mut readings = Vec::new();
        while let Some(event) = stream.recv().await {
            match event {
                StreamEvent::PromptDone {
                    num_prompt_tokens,
                    num_cached_tokens,
                    ..
                } => {
                    let num_computed = num_prompt_tokens.saturating_sub(num_cached_tokens);
                    context.tokens.add(self.kind, num_computed);
                }
                StreamEvent::Pooled {
                    logits,
                    hidden_state,
                    ..
                } => readings.push(Reading {
                    logits,
                    hidden_state: hidden_state.unwrap_or_default(),
                }),
                StreamEvent::Finished {
                    reason: FinishReason::Deadline,
                    ..
                } => return Err(ReadError::Deadline),
                StreamEvent::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(readings)
    }
}

/// Tokens that all prompts begin with.
fn num_shared(first: &[u32], rest: &[Prompt]) -> usize {
    let shared = |other: &Prompt| {
        let pairs = first.iter().zip(&other.token_ids);
        pairs.take_while(|(a, b)| a == b).count()
    };
    rest.iter().map(shared).min().unwrap_or(0)
}
