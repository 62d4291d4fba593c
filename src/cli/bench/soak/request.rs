//! Requests of a soak, and what their answers may be.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::tally::Ended;

/// How late a request with a deadline may be answered: a search has half a second more for its
/// samples and half a second for its trace, and the machine is busy.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);
/// Characters of a body that a failure repeats.
const QUOTED: usize = 400;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Own,
    /// Another client's.
    Other,
    OfTraces,
    Wrong,
    None,
}

/// What is sent.
#[derive(Debug, Clone)]
pub(super) enum Body {
    None,
    Json(Value),
    Raw(String),
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub method: Method,
    pub path: String,
    pub body: Body,
    pub key: Key,
    /// `Request-Timeout-Ms`, as text.
    pub deadline: Option<String>,
    /// When the client leaves, if it has no answer by then.
    pub leaves_after: Option<Duration>,
    /// Statuses that are right.
    pub expects: Vec<u16>,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: Body::None,
            key: Key::Own,
            deadline: None,
            leaves_after: None,
            expects: vec![200],
        }
    }

    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self {
            method: Method::POST,
            body: Body::Json(body),
            ..Self::get(path)
        }
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self {
            method: Method::DELETE,
            ..Self::get(path)
        }
    }

    pub fn of(self, key: Key) -> Self {
        Self { key, ..self }
    }

    pub fn expecting(self, statuses: &[u16]) -> Self {
        Self {
            expects: statuses.to_vec(),
            ..self
        }
    }

    /// Whether its own time may be over before its answer is there.
    fn may_expire(&self) -> bool {
        let budget = match &self.body {
            Body::Json(body) => &body["search"]["budget"]["ms"],
            _ => &Value::Null,
        };
        self.deadline.is_some() || budget.is_number()
    }

    /// The failure of a request whose time is over, which is right for some.
    pub fn expired(&self) -> Ended {
        match self.may_expire() {
            true => Ended::Expired,
            false => Ended::Failed(format!("timed out without a deadline: {}", self.describe())),
        }
    }

    /// For messages: enough to send it again by hand.
    pub fn describe(&self) -> String {
        let body = match &self.body {
            Body::None => String::new(),
            Body::Json(body) => body.to_string(),
            Body::Raw(body) => body.clone(),
        };
        let deadline = self.deadline.as_ref();
        let deadline = deadline.map_or(String::new(), |ms| format!(" within {ms} ms"));
        format!("{} {}{deadline} {}", self.method, self.path, quoted(&body))
    }
}

/// The beginning of a long text.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Result<Value, Ended> {
        let parsed = serde_json::from_str(&self.text);
        parsed.map_err(|error| Ended::Failed(format!("no JSON ({error}): {}", quoted(&self.text))))
    }
}

/// Whether an answer is what the request may get.
pub(super) fn judge(request: &Request, answer: Answer, elapsed: Duration) -> Result<Answer, Ended> {
    let what = || request.describe();
    let deadline = request.deadline.as_ref();
    let deadline = deadline.and_then(|ms| ms.parse().ok().map(Duration::from_millis));
    if let Some(deadline) = deadline
        && elapsed > deadline + DEADLINE_GRACE
    {
        let late = (elapsed - deadline).as_secs_f64();
        let text = format!("answered {late:.1} s after its deadline: {}", what());
        return Err(Ended::Failed(text));
    }
    if request.expects.contains(&answer.status) {
        return Ok(answer);
    }
    let error = answer.json()?["error"].clone();
    if error["message"].as_str().is_none_or(str::is_empty) {
        let text = quoted(&answer.text);
        let text = format!("{} without a message ({text}): {}", answer.status, what());
        return Err(Ended::Failed(text));
    }
    match answer.status {
        429 | 503 => Err(Ended::Refused),
        408 => Err(request.expired()),
        status => {
            let message = quoted(error["message"].as_str().unwrap_or_default());
            Err(Ended::Failed(format!("{status} ({message}): {}", what())))
        }
    }
}

/// The ids after `trace_id` and `trace_ids` in the text of an answer.
pub(super) fn trace_ids(text: &str) -> Vec<&str> {
    let mut ids = Vec::new();
    for (at, name) in text.match_indices("\"trace_id") {
        let rest = &text[at + name.len()..];
        let list = match rest.strip_prefix("\":\"") {
            Some(one) => one.split_once('"').map(|(id, _)| id),
            None => rest
                .strip_prefix("s\":[")
                .and_then(|many| many.split_once(']').map(|(list, _)| list)),
        };
        let list = list.into_iter().flat_map(|list| list.split(','));
        let found = list.map(|id| id.trim_matches('"'));
        ids.extend(found.filter(|id| id.starts_with("trace-")));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, text: &str, elapsed: u64) -> Result<Answer, Ended> {
        let request = Request {
            deadline: Some("1000".to_owned()),
            ..Request::get("/v1/models").expecting(&[200, 404])
        };
        let answer = Answer {
            status,
            text: text.to_owned(),
        };
        judge(&request, answer, Duration::from_secs(elapsed))
    }

    #[test]
    fn statuses_are_right_refusals_or_failures() {
        let error = r#"{"error": {"message": "no"}}"#;
        assert!(judged(200, "{}", 1).is_ok());
        assert!(judged(404, "anything", 1).is_ok());
        for status in [429, 503] {
            assert_eq!(judged(status, error, 1).unwrap_err(), Ended::Refused);
        }
        assert_eq!(judged(408, error, 1).unwrap_err(), Ended::Expired);
        for (status, text, elapsed) in [
            (500, error, 1),
            (400, error, 1),
            (429, "no JSON", 1),
            (429, "{}", 1),
            (200, "{}", 7),
        ] {
            let ended = judged(status, text, elapsed).unwrap_err();
            assert!(matches!(ended, Ended::Failed(_)), "{status}: {ended:?}");
        }
    }

    #[test]
    fn traces_are_found_in_bodies_and_pieces_of_streams() {
        for (text, ids) in [
            (r#"{"trace_id":"trace-1","usage":{}}"#, vec!["trace-1"]),
            (r#"{"search":{"trace_id":null}}"#, vec![]),
            (
                r#"{"trace_ids":["trace-1",null,"trace-2"]}"#,
                vec!["trace-1", "trace-2"],
            ),
            (
                "data: {\"trace_id\":\"trace-1\"}\n\ndata: [DO",
                vec!["trace-1"],
            ),
            ("data: {\"trace_id\":\"trace-", vec![]),
            (r#"{"text":"\"trace_id\":\"x\""}"#, vec![]),
        ] {
            assert_eq!(trace_ids(text), ids, "{text}");
        }
    }

    #[test]
    fn long_bodies_are_not_repeated() {
        assert_eq!(quoted("short"), "short");
        let long = quoted(&"é".repeat(10_000));
        assert!(
            long.len() < 900 && long.ends_with("(20000 bytes)"),
            "{long}"
        );
    }
}
