//! When a request must be over.

use std::future::Future;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use super::error::ApiError;
use super::state::AppState;

/// A client's own deadline, in milliseconds from now.
const TIMEOUT_HEADER: &str = "request-timeout-ms";
/// A timeout of this or more is none. Any sum of an instant and less than it exists.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The instant at which a request's answer is worth nothing any more: the client's header within
/// the server's maximum. It passes through every wait of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        let is_limit = timeout < NEVER;
        Self(
            is_limit
                .then(|| Instant::now().checked_add(timeout))
                .flatten(),
        )
    }

    pub fn of(headers: &HeaderMap, longest: Duration) -> Result<Self, ApiError> {
        let Some(value) = headers.get(TIMEOUT_HEADER) else {
            return Ok(Self::after(longest));
        };
        let text = value.to_str().ok();
        let millis = text.and_then(|text| text.trim().parse::<u64>().ok());
        let millis = millis.ok_or_else(|| {
            let message = "Request-Timeout-Ms must be a whole number";
            ApiError::invalid("Request-Timeout-Ms", message)
        })?;
        Ok(Self::after(longest.min(Duration::from_millis(millis))))
    }

    /// `None` when there is no limit.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// What the work gives, or 408 when it is not done in time. It is dropped then.
    pub async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, ApiError> {
        match self.0 {
            None => Ok(work.await),
            Some(instant) => tokio::time::timeout_at(instant.into(), work)
                .await
                .map_err(|_| ApiError::deadline()),
        }
    }
}

impl FromRequestParts<AppState> for Deadline {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        Self::of(&parts.headers, state.config().request_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: Option<&str>, longest: Duration) -> Result<Deadline, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(TIMEOUT_HEADER, value.parse().unwrap());
        }
        Deadline::of(&headers, longest)
    }

    #[test]
    fn the_sooner_of_header_and_flag_counts() {
        let hour = Duration::from_secs(3600);
        let now = Instant::now();
        let soon = of(Some(" 50 "), hour).unwrap().instant().unwrap();
        assert!(soon < now + hour / 2);
        let late = of(Some("99999999999"), hour).unwrap().instant().unwrap();
        assert!(late >= now + hour);
        assert!(of(Some("soon"), hour).is_err());
        assert!(of(Some("-1"), hour).is_err());
    }

    #[test]
    fn no_number_is_too_large() {
        let largest = u64::MAX.to_string();
        for longest in [Duration::MAX, Duration::from_secs(u64::MAX), NEVER] {
            assert!(of(None, longest).unwrap().instant().is_none());
            assert!(of(Some(&largest), longest).unwrap().instant().is_none());
        }
        let longest = NEVER - Duration::from_nanos(1);
        assert!(of(None, longest).unwrap().instant().is_some());
    }

    #[tokio::test]
    async fn work_ends_with_its_deadline() {
        let never = Deadline::after(Duration::MAX);
        assert_eq!(never.limit(async { 1 }).await.unwrap(), 1);
        let farthest = Deadline::after(NEVER - Duration::from_nanos(1));
        let yielding = async {
            tokio::task::yield_now().await;
            2
        };
        assert_eq!(farthest.limit(yielding).await.unwrap(), 2);
        let past = Deadline::after(Duration::ZERO);
        let error = past.limit(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.status.as_u16(), 408);
    }
}
