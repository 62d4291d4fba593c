//! Reading a model at positions of prompts: what judges and process reward models do.

use std::time::Duration;

use futures::future::try_join_all;

use crate::engine::{Backend, EngineError, GenerateRequest, PoolingParams, StreamEvent};

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

/// Readings of each prompt, one a position. What all prompts begin with is computed once.
pub(super) async fn read(
    engine: &dyn Backend,
    prompts: Vec<Prompt>,
    cache_salt: u64,
) -> Result<Vec<Vec<Reading>>, EngineError> {
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
            read_one(engine, Prompt { token_ids, pooling }, cache_salt).await?;
        }
    }
    let reads = prompts.into_iter();
    try_join_all(reads.map(|prompt| read_one(engine, prompt, cache_salt))).await
}

/// Tokens that all prompts begin with.
fn num_shared(first: &[u32], rest: &[Prompt]) -> usize {
    let shared = |other: &Prompt| {
        let pairs = first.iter().zip(&other.token_ids);
        pairs.take_while(|(a, b)| a == b).count()
    };
    rest.iter().map(shared).min().unwrap_or(0)
}

async fn read_one(
    engine: &dyn Backend,
    prompt: Prompt,
    cache_salt: u64,
) -> Result<Vec<Reading>, EngineError> {
    let request = GenerateRequest {
        cache_salt,
        ..GenerateRequest::pooling(prompt.token_ids, prompt.pooling)
    };
    let mut stream = loop {
        match engine.submit(request.clone()) {
            Err(EngineError::Overloaded { .. }) => tokio::time::sleep(RETRY).await,
            stream => break stream?,
        }
    };
    let mut readings = Vec::new();
    while let Some(event) = stream.recv().await {
        match event {
            StreamEvent::Pooled {
                logits,
                hidden_state,
                ..
            } => readings.push(Reading {
                logits,
                hidden_state: hidden_state.unwrap_or_default(),
            }),
            StreamEvent::Error(error) => return Err(error),
            _ => {}
        }
    }
    Ok(readings)
}
