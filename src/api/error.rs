//! The one map from what went wrong to a status and an OpenAI-shaped body.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::config::MAX_BODY_VALUES;
use crate::engine::EngineError;
use crate::reward::BuildError;
use crate::search::SpecError;

/// Seconds after which an overloaded server may be tried again.
const RETRY_AFTER_SECONDS: &str = "1";
/// Codes of answers whose constraint cannot go on, or leaves nothing.
pub(super) const CONSTRAINT_FAILED: &str = "constraint_failed";
pub(super) const NOTHING_ALLOWED: &str = "nothing_allowed";
/// The code of an answer that a shutdown cut.
const ABORTED: &str = "aborted";

/// An error as the client sees it.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// A parameter that must change.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// An engine's error about a parameter.
    pub fn at(param: &str, error: EngineError) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..error.into()
        }
    }

    /// A field of a request's `search`.
    pub fn search(error: SpecError) -> Self {
        // A message that begins with its field names the whole path.
        let prefix = match error.message.starts_with(&error.param) {
            true => "search.",
            false => "",
        };
        Self::invalid(
            &format!("search.{}", error.param),
            format!("{prefix}{}", error.message),
        )
    }

    /// A field of the rewards at `param`, or the work of checking it.
    pub fn reward(param: &str, error: BuildError) -> Self {
        match error {
            BuildError::Spec(error) => {
                Self::invalid(&format!("{param}{}", error.param), error.message)
            }
            BuildError::Scorer(error) => Self {
                param: Some(param.to_owned()),
                ..error.into()
            },
        }
    }

    pub fn bad_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn body_too_large(limit: usize) -> Self {
        Self {
            code: Some("body_too_large"),
            ..Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is larger than {limit} bytes"),
            )
        }
    }

    pub fn too_many_values() -> Self {
        Self {
            code: Some("body_too_large"),
            ..Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "the request body has more than {MAX_BODY_VALUES} JSON values: send several requests"
                ),
            )
        }
    }

    pub fn wrong_media_type(content_type: &str) -> Self {
        Self {
            code: Some("unsupported_media_type"),
            ..Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("send the body as Content-Type: application/json, not {content_type:?}"),
            )
        }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The server shuts down while an answer is written.
    pub fn aborted() -> Self {
        Self {
            code: Some(ABORTED),
            ..Self::unavailable("the server shut down before the answer was whole: ask again")
        }
    }

    /// Whether this is [`Self::aborted`].
    pub fn is_abort(&self) -> bool {
        self.code == Some(ABORTED)
    }

    /// Whether what may come next in an answer is at fault.
    pub fn is_of_constraint(&self) -> bool {
        matches!(self.code, Some(CONSTRAINT_FAILED | NOTHING_ALLOWED))
    }

    pub fn unauthorized() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "send a valid API key as \"Authorization: Bearer KEY\"",
            )
        }
    }

    pub fn model_not_found(model: &str, served: &[String]) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!(
                    "the model `{model}` is not served here; `{}` is",
                    served.join("`, `")
                ),
            )
        }
    }

    pub fn deadline() -> Self {
        Self {
            code: Some("timeout"),
            ..Self::new(StatusCode::REQUEST_TIMEOUT, "the request's deadline passed")
        }
    }

    pub fn slow_body(timeout: Duration) -> Self {
        let message = format!(
            "the request's body came too slowly: it may pause for {} s (--body-timeout)",
            timeout.as_secs_f64()
        );
        Self {
            code: Some("timeout"),
            ..Self::new(StatusCode::REQUEST_TIMEOUT, message)
        }
    }

    /// A limit that this key has reached for now.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self {
            code: Some("overloaded"),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// What the request asks for takes more work than one request may cause.
    pub fn too_much_work(message: impl Into<String>) -> Self {
        Self {
            code: Some("too_much_work"),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// What a model is not made for.
    pub fn unsupported_by(model: &str, message: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some("unsupported_capability"),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                format!("the model `{model}` cannot do this: {message}"),
            )
        }
    }

    pub fn no_session(id: &str) -> Self {
        Self {
            code: Some("branches_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!(
                    "there is no branch session {id}: it was never opened, was committed, or its lease ended"
                ),
            )
        }
    }

    pub fn no_response(id: &str) -> Self {
        let message = format!(
            "there is no response {id}: it was never kept, was deleted, or is another key's"
        );
        Self {
            code: Some("response_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    pub fn no_trace(id: &str) -> Self {
        let message =
            format!("there is no trace {id}: it was never kept, was deleted, or is another key's");
        Self {
            code: Some("trace_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    /// A place in the stream that no store here can have given.
    pub fn unknown_cursor(param: &str, seq: u64, largest: u64) -> Self {
        let message = format!(
            "the cursor {seq} is behind the end of this server's traces ({largest}): it is of another store. \
             Begin again without {param}, or with {largest} for what comes from now on"
        );
        Self {
            param: Some(param.to_owned()),
            code: Some("unknown_cursor"),
            ..Self::new(StatusCode::GONE, message)
        }
    }

    pub fn no_trace_store() -> Self {
        Self {
            code: Some("no_traces"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "this server keeps no traces: start it with --trace-db FILE",
            )
        }
    }

    pub fn no_adapter(name: &str) -> Self {
        Self {
            param: Some("lora_name".to_owned()),
            code: Some("adapter_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!("there is no adapter {name:?}"),
            )
        }
    }

    /// Everybody sees it, so that this tells nothing.
    pub fn operators_adapter(name: &str) -> Self {
        Self {
            param: Some("lora_name".to_owned()),
            code: Some("adapter_of_operator"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                format!(
                    "{name} was loaded when the server started (--lora-modules): requests cannot unload it"
                ),
            )
        }
    }

    pub fn no_adapters() -> Self {
        Self {
            code: Some("lora_not_enabled"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                "adapters cannot be changed at run time: start the server with --enable-lora",
            )
        }
    }

    /// A key that reads traces and does nothing else.
    pub fn traces_only() -> Self {
        Self {
            code: Some("insufficient_scope"),
            ..Self::new(
                StatusCode::FORBIDDEN,
                "this key reads traces (/v1/traces) and nothing else",
            )
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// OpenAI's error object.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            408 | 504 => "timeout_error",
            400..=499 => "invalid_request_error",
            503 => "service_unavailable_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let value = header::HeaderValue::from_static(RETRY_AFTER_SECONDS);
                headers.insert(header::RETRY_AFTER, value);
            }
            StatusCode::UNAUTHORIZED => {
                let value = header::HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, value);
            }
            _ => {}
        }
        response
    }
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is no route {}", uri.path()),
    )
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

pub(super) fn on_panic(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal("the request failed inside the server; this is a bug").into_response()
}
