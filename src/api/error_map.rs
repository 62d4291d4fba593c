//! What an error of another room is for a client.

use axum::http::StatusCode;

use super::error::{ApiError, CONSTRAINT_FAILED, NOTHING_ALLOWED};
use crate::encoding::EncodingError;
use crate::engine::EngineError;
use crate::reward::ScorerError;
use crate::search::SearchError;
use crate::text::{TemplateError, TokenizerError};
use crate::trace::StoreError;
use crate::work::WorkError;

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Overloaded { .. } => Self {
                code: Some("overloaded"),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            EngineError::PromptTooLong { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::invalid("messages", message)
            },
            EngineError::EmptyPrompt => Self::invalid("prompt", message),
            EngineError::TooManySequences { .. } => Self::invalid("n", message),
            EngineError::TokenOutOfRange { .. } => Self::invalid("prompt", message),
            EngineError::KvCacheTooSmall { .. } => Self::invalid("max_tokens", message),
            EngineError::ShuttingDown => Self::unavailable(message),
            EngineError::UnknownAdapter => Self {
                param: Some("model".to_owned()),
                code: Some("model_not_found"),
                ..Self::new(StatusCode::NOT_FOUND, message)
            },
            EngineError::Adaptation { field, .. } => {
                Self::invalid(&format!("adaptation.{field}"), message)
            }
            EngineError::Image { .. } => Self::invalid("messages", message),
            EngineError::Unsupported { .. } => Self {
                code: Some("unsupported_capability"),
                ..Self::new(StatusCode::BAD_REQUEST, message)
            },
            EngineError::UnknownRequest(_) => Self::new(StatusCode::NOT_FOUND, message),
            EngineError::NothingAllowed => Self {
                code: Some(NOTHING_ALLOWED),
                ..Self::new(StatusCode::BAD_REQUEST, message)
            },
            EngineError::Constraint(_) => Self {
                code: Some(CONSTRAINT_FAILED),
                ..Self::new(StatusCode::BAD_REQUEST, message)
            },
            EngineError::PoolingPositions { .. }
            | EngineError::Model(_)
            | EngineError::Invariant(_) => Self::internal(message),
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        let message = error.to_string();
        match error {
            TokenizerError::TooLong { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::invalid("messages", message)
            },
            // Only work whose budget is over is stopped.
            TokenizerError::Stopped => Self::deadline(),
            _ => Self::bad_body(message),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        Self::invalid("messages", error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(id) => Self::no_trace(&id),
            StoreError::Outcome(error) => Self::invalid(error.param, error.message),
            StoreError::Full => Self::overloaded(error.to_string()),
            StoreError::Closed | StoreError::Changed(_) => Self::unavailable(error.to_string()),
            StoreError::DamagedTrace { .. } => Self {
                code: Some("trace_damaged"),
                ..Self::internal(error.to_string())
            },
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<ScorerError> for ApiError {
    fn from(error: ScorerError) -> Self {
        match error {
            ScorerError::Deadline { .. } => Self::deadline(),
            ScorerError::TooMuchWork { .. } => Self::too_much_work(error.to_string()),
            ScorerError::Overloaded(_) => Self::overloaded(error.to_string()),
            // Not this server's fault, and it may pass.
            ScorerError::Failed { kind: "http", .. } => Self::unavailable(error.to_string()),
            ScorerError::Failed { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Engine(error) => error.into(),
            SearchError::Scorer(error) => error.into(),
            SearchError::NoAnswer => Self {
                message: error.to_string(),
                ..Self::deadline()
            },
        }
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        let message = error.to_string();
        match error {
            WorkError::Deadline(_) => Self::deadline(),
            WorkError::Spent { .. } => Self::too_much_work(message),
            WorkError::Full { .. } => Self::overloaded(message),
            WorkError::Panicked(_) => Self::internal(message),
            WorkError::Closed => Self::unavailable(message),
        }
    }
}

impl From<EncodingError> for ApiError {
    fn from(error: EncodingError) -> Self {
        let message = error.to_string();
        match error {
            EncodingError::Full { .. } => Self::overloaded(message),
            EncodingError::Input(_) => Self::invalid("input", message),
            EncodingError::Deadline => Self::deadline(),
            EncodingError::NotFinite => Self::internal(message),
            EncodingError::Failed => Self::unavailable(message),
        }
    }
}
