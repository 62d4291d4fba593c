//! JSON bodies with errors that name the parameter.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::causes::Causes;
use super::deadline::Deadline;
use super::error::ApiError;
use super::state::AppState;
use super::tenant::Tenant;

/// Longest content type that an error repeats.
const MAX_QUOTED_CHARS: usize = 64;

/// The middleware that looks at what no route looks at: a path must be UTF-8 once its escapes are
/// resolved, and a body must be JSON by its content type. A body without one is taken for JSON. A
/// page of another origin cannot send JSON without asking first (CORS), but it can send forms.
pub(super) async fn check_request(request: Request, next: Next) -> Response {
    if !is_utf8(request.uri().path()) {
        let message = "the URL's path is not UTF-8 once its %-escapes are resolved";
        return ApiError::bad_body(message).into_response();
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let has_body = request.method() == Method::POST;
    match content_type.filter(|_| has_body).map(HeaderValue::as_bytes) {
        Some(kind) if !is_json(kind) => {
            let kind = String::from_utf8_lossy(kind);
            let kind: String = kind.chars().take(MAX_QUOTED_CHARS).collect();
            ApiError::wrong_media_type(&kind).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Whether a content type is `application/json`, or JSON with a name of its own.
fn is_json(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next();
    let kind = kind.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let named = kind.starts_with(b"application/") && kind.ends_with(b"+json");
    kind == b"application/json" || kind == b"text/json" || named
}

/// Whether a path is UTF-8 once its escapes are resolved.
fn is_utf8(path: &str) -> bool {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let bytes = path.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (*byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    std::str::from_utf8(&decoded).is_ok()
}

/// A request body as JSON.
pub struct Body<T>(pub T);

/// A request from JSON that was read already.
pub(super) fn parse<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(explain)
}

fn explain(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let param = error.path().to_string();
    let message = error.inner().to_string();
    // A field that is missing or there twice is named by the message alone.
    let named = ["missing field `", "duplicate field `"];
    let named = named.iter().find_map(|start| message.strip_prefix(start));
    if let Some((field, _)) = named.and_then(|rest| rest.split_once('`')) {
        let param = match param.as_str() {
            "." => field.to_owned(),
            path if path.ends_with(field) => path.to_owned(),
            path => format!("{path}.{field}"),
        };
        ApiError::invalid(
            &param,
            format!("the body is not a valid request: {message}"),
        )
    } else if param == "." {
        ApiError::bad_body(format!("the body is not a valid request: {message}"))
    } else {
        ApiError::invalid(&param, format!("{param}: {message}"))
    }
}

/// A request body with its length: what it causes depends on that.
pub struct SizedBody<T>(pub T, pub usize);

fn value_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = match serde_path_to_error::deserialize(&mut deserializer) {
        Ok(value) => value,
        Err(error) if error.inner().to_string().contains(FLOAT) => {
            return value_of_floats(bytes).ok_or_else(|| explain(error));
        }
        Err(error) => return Err(explain(error)),
    };
    deserializer
        .end()
        .map_err(|error| ApiError::bad_body(format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

/// What serde says of `5.0` where a whole number belongs.
const FLOAT: &str = "invalid type: floating point";

/// Reads a body again with `5.0` as `5`: languages whose only numbers are floats write whole ones
/// so, and JSON Schema counts them as integers.
fn value_of_floats<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    make_whole(&mut value);
    serde_json::from_value(value).ok()
}

fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|_| number.is_f64());
            let whole = whole.filter(|whole| whole.fract() == 0.0);
            match whole {
                Some(whole) if (0.0..TWO_TO_64).contains(&whole) => *number = (whole as u64).into(),
                Some(whole) if (-TWO_TO_64 / 2.0..0.0).contains(&whole) => {
                    *number = (whole as i64).into();
                }
                _ => {}
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        _ => {}
    }
}

const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for SizedBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let limit = state.config().max_body_bytes;
        let deadline = Deadline::of(request.headers(), state.config().request_timeout)?;
        let tenant = request.extensions().get::<Tenant>();
        let tenant = tenant.copied().unwrap_or(Tenant(0));
        let read = deadline.limit(Bytes::from_request(request, state)).await?;
        let bytes = read.map_err(|error: BytesRejection| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::body_too_large(limit),
            _ => ApiError::bad_body(error.body_text()),
        })?;
        let num_bytes = bytes.len();
        let work = Causes {
            tenant,
            deadline,
            num_bytes,
        };
        let value = work.run(state, "reading the body", move |_| value_of(&bytes));
        Ok(Self(value.await?, num_bytes))
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let SizedBody(value, _) = SizedBody::from_request(request, state).await?;
        Ok(Self(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_by_its_content_type() {
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/x+json",
        ] {
            assert!(is_json(kind.as_bytes()), "{kind}");
        }
        for kind in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
        ] {
            assert!(!is_json(kind.as_bytes()), "{kind}");
        }
    }

    #[test]
    fn paths_are_utf8_once_their_escapes_are_resolved() {
        for path in ["/v1/models/a", "/%C3%A9", "/%", "/%4", "/%zz", "/é"] {
            assert!(is_utf8(path), "{path}");
        }
        assert!(!is_utf8("/v1/models/%ff") && !is_utf8("/%C3/a"));
    }

    #[test]
    fn whole_numbers_may_be_written_as_floats() {
        let read = |text: &str| value_of::<Vec<u32>>(text.as_bytes());
        assert_eq!(read("[1.0, 2, 3e2]").unwrap(), [1, 2, 300]);
        for text in [
            "[1.5]",
            "[-1.0]",
            "[1e300]",
            "[4294967296.0]",
            "[1.0, \"a\"]",
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{text}");
        }
        let signed: Vec<i64> = value_of(b"[-2.0]").unwrap();
        assert_eq!(signed, [-2]);
    }
}
