//! What runs a model for the rest of Ponder: [`super::EngineHandle`], or another engine behind the
//! same door.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::executor::Executor;
use super::request::{
    AdaptationConfig, AdapterId, EngineConfig, EngineError, EngineStats, GenerateRequest, GroupId,
    RequestId,
};
use super::speculative::Speculative;
use super::stream::RequestStream;
use crate::model::{ExpertLoad, LoraAdapter, ModelInfo, SkipSet};

/// A backend that everyone may hold.
pub type Engine = Arc<dyn Backend>;

/// What a backend may do beyond sampling with logprobs, which each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// A row's logits do not depend on the rows beside it: equal requests get equal tokens, whatever else runs.
    BatchInvariance,
    /// Samples of a prompt and branches of a search are forked: nothing that they share is computed again.
    PrefixSharing,
    /// States behind tokens are reported: value heads and their training, process reward models with a head.
    HiddenStates,
    /// Logits inside a prompt: logprobs of its own tokens, process reward models that read several steps at once.
    PromptLogits,
    /// Tokens are drafted and verified together.
    Speculation,
    /// The model adapts to a request's context, by its routers or by SLOT.
    Adaptation,
    /// LoRA adapters.
    Adapters,
    /// Which tokens may come next is decided token by token: masks on sampling and on drafts.
    Constraints,
    /// Images in messages.
    Vision,
}

impl Capability {
    pub const ALL: [Self; 9] = [
        Self::BatchInvariance,
        Self::PrefixSharing,
        Self::HiddenStates,
        Self::PromptLogits,
        Self::Speculation,
        Self::Adaptation,
        Self::Adapters,
        Self::Constraints,
        Self::Vision,
    ];

    /// As in `/v1/models` and in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::BatchInvariance => "batch_invariance",
            Self::PrefixSharing => "prefix_sharing",
            Self::HiddenStates => "hidden_states",
            Self::PromptLogits => "prompt_logits",
            Self::Speculation => "speculation",
            Self::Adaptation => "adaptation",
            Self::Adapters => "adapters",
            Self::Constraints => "constraints",
            Self::Vision => "vision",
        }
    }
}

/// A running model. Its requests, events and random numbers mean the same whoever runs it: what a backend lacks is
/// declared, and asking for it is [`EngineError::Unsupported`].
pub trait Backend: Send + Sync {
    /// `native`, `mistralrs`.
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> &[Capability];

    /// Limits; sizes that the backend does not have are 0.
    fn config(&self) -> &EngineConfig;

    /// The model; what the backend does not know of it is 0.
    fn model_info(&self) -> &ModelInfo;

    /// Counters and gauges as of the last step; what waits is counted as of now.
    fn stats(&self) -> EngineStats;

    /// False once the model has failed for good: every later request fails.
    fn is_healthy(&self) -> bool;

    /// How long the engine has stood still though it has work, once that is too long.
    fn stalled_for(&self) -> Option<Duration> {
        None
    }

    /// Queues a request, all of its sequences or none.
    fn submit(&self, request: GenerateRequest) -> Result<RequestStream, EngineError>;

    /// A group that no other request belongs to.
    fn new_group(&self) -> GroupId;

    /// Ends one choice of a request before its next token (a stop string matched, say).
    fn abort_choice(&self, id: RequestId, index: usize);

    /// Ends every request before its next token.
    fn abort_all(&self);

    /// Stops admitting; requests that were admitted run to their end.
    fn shutdown(&self);

    /// Waits for that end after [`Self::shutdown`]; false when it did not come in time.
    fn join(&self, timeout: Duration) -> bool;

    /// Whether it can do this, as an error that names what it lacks.
    fn demand(&self, capability: Capability) -> Result<(), EngineError> {
        match self.capabilities().contains(&capability) {
            true => Ok(()),
            false => Err(EngineError::Unsupported {
                backend: self.name(),
                capability,
            }),
        }
    }

    /// Whether the model can be adapted so.
    fn check_adaptation(&self, _: &AdaptationConfig) -> Result<(), EngineError> {
        self.demand(Capability::Adaptation)
    }

    /// What this engine would need to draft as asked; `None` when nothing is missing.
    fn lacks(&self, _: Speculative) -> Option<&'static str> {
        None
    }

    /// How many tokens each expert has had; `None` for dense models and where nobody counts.
    fn expert_load(&self) -> Option<&ExpertLoad> {
        None
    }

    /// The skip set that SWIFT's search found while serving, if it found a better one.
    fn found_skip_set(&self) -> Option<SkipSet> {
        None
    }

    /// Makes an adapter usable by requests, between two steps. It has been read for this model.
    fn load_adapter(&self, _: LoraAdapter) -> BoxFuture<'_, Result<AdapterId, EngineError>> {
        let refused = self.demand(Capability::Adapters).err();
        let error = refused.unwrap_or(EngineError::UnknownAdapter);
        Box::pin(async move { Err(error) })
    }

    /// No more requests may use the adapter; its memory is free once those that do have ended.
    fn unload_adapter(&self, _: AdapterId) {}
}

/// What a request needs beyond sampling with logprobs.
pub(super) fn needs(request: &GenerateRequest) -> impl Iterator<Item = Capability> {
    let params = &request.params;
    let pooling = request.pooling.as_ref();
    let last = [request.prompt_token_ids.len().wrapping_sub(1)];
    let needs = [
        (
            Capability::HiddenStates,
            params.hidden_state || pooling.is_some_and(|pooling| pooling.hidden_state),
        ),
        (
            Capability::PromptLogits,
            params.prompt_logprobs.is_some() || pooling.is_some_and(|it| it.positions != last),
        ),
        (
            Capability::Speculation,
            request.speculative.is_some_and(Speculative::names_drafter),
        ),
        (
            Capability::Adaptation,
            request.adaptation.is_some() || request.steering.is_some(),
        ),
        (Capability::Adapters, request.adapter.is_some()),
        (Capability::Constraints, request.constraint.is_some()),
        (Capability::Vision, request.media.is_some()),
    ];
    needs
        .into_iter()
        .filter_map(|(capability, is_needed)| is_needed.then_some(capability))
}

/// What the engine can do with this executor.
pub(super) fn capabilities_of(executor: &mut dyn Executor) -> Vec<Capability> {
    let mut all = vec![
        Capability::BatchInvariance,
        Capability::PrefixSharing,
        Capability::HiddenStates,
        Capability::PromptLogits,
        Capability::Speculation,
        Capability::Constraints,
    ];
    if executor.adaptation().is_some() {
        all.push(Capability::Adaptation);
    }
    if executor.adapters().is_some() {
        all.push(Capability::Adapters);
    }
    all
}
