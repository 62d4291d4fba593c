//! Vectors by the states of the model that writes answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::api::tenant::Tenant;
use crate::engine::{
    Capability, EngineError, FinishReason, GenerateRequest, PoolingParams, RequestStream,
    StreamEvent,
};
use crate::model::{AdapterId, Pooling};

/// How long a text waits before it tries again to enter a full queue.
const RETRY: Duration = Duration::from_millis(20);
/// Bytes of text that a token stands for at most, roughly: what is cut to some tokens needs no more
/// of a text.
const BYTES_A_TOKEN: usize = 256;

/// What all texts of a request share.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub pooling: Pooling,
    pub adapter: Option<AdapterId>,
    pub tenant: Tenant,
    pub deadline: Deadline,
}

/// Most tokens of a text.
pub(super) fn max_len(served: &Served) -> usize {
    // The engine keeps a place for a token after the prompt.
    served.engine.config().max_model_len.saturating_sub(1)
}

/// Whether the engine tells states.
pub(super) fn check(served: &Served) -> Result<(), ApiError> {
    Ok(served.engine.demand(Capability::HiddenStates)?)
}

/// The part of a text that has its first `num_tokens` tokens.
pub(in crate::api) fn prefix(text: &str, num_tokens: usize) -> &str {
    let mut end = text.len().min(num_tokens.saturating_mul(BYTES_A_TOKEN));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One vector a prompt. Prompts run side by side, as many as the engine runs at once; dropping the
/// future ends those that run.
pub(super) async fn embed(
    served: &Served,
    prompts: Vec<Vec<u32>>,
    job: Job,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let at_once = served.engine.config().max_num_seqs.max(1);
    let group = served.engine.new_group();
    let has_entered = AtomicBool::new(false);
    let embed_one = |prompt: Vec<u32>| {
        let positions = match job.pooling {
            Pooling::Cls => vec![0],
            Pooling::Mean => (0..prompt.len()).collect(),
            Pooling::Last | Pooling::Max => vec![prompt.len().saturating_sub(1)],
        };
        let pooling = PoolingParams {
            positions,
            hidden_state: true,
            mean: job.pooling == Pooling::Mean,
            ..PoolingParams::default()
        };
        let request = GenerateRequest {
            tenant: job.tenant.0,
            cache_salt: job.tenant.cache_salt(None),
            deadline: job.deadline.instant(),
            adapter: job.adapter,
            group: Some(group),
            ..GenerateRequest::pooling(prompt, pooling)
        };
        let has_entered = &has_entered;
        async move { read(enter(served, request, has_entered).await?).await }
    };
    stream::iter(prompts)
        .map(embed_one)
        .buffered(at_once)
        .try_collect()
        .await
}

/// Submits a text. The first one of a request is refused where the queue is full, the others wait
/// for their place.
async fn enter(
    served: &Served,
    request: GenerateRequest,
    has_entered: &AtomicBool,
) -> Result<RequestStream, ApiError> {
    loop {
        match served.engine.submit(request.clone()) {
            Err(EngineError::Overloaded { .. }) if has_entered.load(Ordering::Relaxed) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error @ EngineError::PromptTooLong { .. }) => {
                return Err(ApiError::at("input", error));
            }
            entered => {
                has_entered.store(true, Ordering::Relaxed);
                return Ok(entered?);
            }
        }
    }
}

async fn read(mut stream: RequestStream) -> Result<Vec<f32>, ApiError> {
    let mut vector = None;
    while let Some(event) = stream.recv().await {
        match event {
            StreamEvent::Pooled { hidden_state, .. } => vector = hidden_state,
            StreamEvent::Finished {
                reason: FinishReason::Deadline,
                ..
            } => return Err(ApiError::deadline()),
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    vector.ok_or_else(|| ApiError::unavailable("the engine ended before it had read the text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(prefix("short", 1), "short");
        let long = "é".repeat(1000);
        assert_eq!(prefix(&long, 1).len(), BYTES_A_TOKEN);
        let odd = format!("a{long}");
        assert_eq!(prefix(&odd, 1).len(), BYTES_A_TOKEN - 1);
        assert_eq!(prefix("", 0), "");
    }
}
