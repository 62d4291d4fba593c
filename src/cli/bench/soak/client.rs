//! One client of the soak: it asks, leaves, and judges how its requests end.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;

use super::child::{KEYS, TRACE_KEY, locked};
use super::dice::Dice;
use super::ledger::Ledger;
use super::same::SameAnswers;
use super::supervisor::{Life, is_alive, up};
use super::tally::Ended;

/// Nothing may take longer.
const PATIENCE: Duration = Duration::from_secs(180);
/// How late a request with a deadline may be answered: a search has half a second more for its
/// samples and half a second for its trace, and the machine is busy.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);
/// Share of requests whose client leaves, and of those that have a deadline.
const RUDE_SHARE: f64 = 0.08;
const HURRIED_SHARE: f64 = 0.08;
const LONGEST_RUDE_WAIT: Duration = Duration::from_secs(2);
const LONGEST_DEADLINE: Duration = Duration::from_secs(3);
/// Characters of a body that a failure repeats.
const QUOTED: usize = 400;

/// What all clients know.
pub(super) struct Shared {
    pub model: String,
    pub has_prm: bool,
    pub may_run_code: bool,
    pub lives: watch::Receiver<Life>,
    pub ledger: Mutex<Ledger>,
    pub same: Mutex<SameAnswers>,
    /// One client at a time holds silent connections.
    pub silence: tokio::sync::Mutex<()>,
}

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

    /// For messages: enough to send it again by hand.
    fn describe(&self) -> String {
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

pub(super) struct Client {
    pub shared: Arc<Shared>,
    pub dice: Dice,
    /// The index of its key.
    pub key: usize,
    lives: watch::Receiver<Life>,
    http: reqwest::Client,
    /// The life that `http` has connections to.
    pub life: u64,
}

impl Client {
    pub fn new(shared: Arc<Shared>, dice: Dice, index: usize) -> Self {
        Self {
            lives: shared.lives.clone(),
            shared,
            dice,
            key: index % KEYS.len(),
            http: reqwest::Client::new(),
            life: 0,
        }
    }

    /// Whether the server that was asked last is still there.
    pub fn is_same_life(&self) -> bool {
        is_alive(&self.lives, self.life)
    }

    /// The address of the server, once there is one. Connections to the one before are forgotten.
    pub async fn address(&mut self) -> Result<String, Ended> {
        let up = up(&mut self.lives).await.ok_or(Ended::Cut)?;
        if self.life != up.number {
            self.life = up.number;
            self.http = reqwest::Client::new();
        }
        Ok(up.address)
    }

    /// Makes some requests impatient, and some in a hurry.
    pub fn temper(&mut self, request: Request) -> Request {
        let mut request = request;
        if self.dice.chance(RUDE_SHARE) {
            let after = self.dice.within(Duration::ZERO, LONGEST_RUDE_WAIT);
            request.leaves_after = Some(after);
        }
        if self.dice.chance(HURRIED_SHARE) {
            let deadline = self.dice.within(Duration::from_millis(1), LONGEST_DEADLINE);
            request.deadline = Some(deadline.as_millis().to_string());
        }
        request
    }

    /// Asks and waits for the whole answer, whose status is one that the request expects.
    pub async fn ask(&mut self, request: &Request) -> Result<Answer, Ended> {
        let address = self.address().await?;
        let started = Instant::now();
        let mut answer = Answer {
            status: 0,
            text: String::new(),
        };
        let patience = request.leaves_after.unwrap_or(PATIENCE);
        let exchange = self.exchange(&address, request, &mut answer);
        let exchanged = tokio::time::timeout(patience, exchange).await;
        if request.path.ends_with("completions") {
            self.acknowledge(&answer.text)?;
        }
        match exchanged {
            Err(_) if request.leaves_after.is_some() => return Err(Ended::HungUp),
            Err(_) => {
                let what = request.describe();
                let seconds = PATIENCE.as_secs();
                return Err(Ended::Failed(format!("no answer in {seconds} s: {what}")));
            }
            Ok(Err(_)) if !self.is_same_life() => return Err(Ended::Cut),
            Ok(Err(error)) => {
                let what = request.describe();
                return Err(Ended::Failed(format!("{error:?}: {what}")));
            }
            Ok(Ok(())) => {}
        }
        judge(request, answer, started.elapsed())
    }

    /// Sends the request and reads the answer as far as it comes.
    async fn exchange(
        &self,
        address: &str,
        request: &Request,
        answer: &mut Answer,
    ) -> reqwest::Result<()> {
        let url = format!("http://{address}{}", request.path);
        let mut sent = self.http.request(request.method.clone(), url);
        sent = match request.key {
            Key::Own => sent.bearer_auth(KEYS[self.key]),
            Key::Other => sent.bearer_auth(KEYS[(self.key + 1) % KEYS.len()]),
            Key::OfTraces => sent.header("x-api-key", TRACE_KEY),
            Key::Wrong => sent.bearer_auth("soak-key-of-nobody"),
            Key::None => sent,
        };
        if let Some(deadline) = &request.deadline {
            sent = sent.header("Request-Timeout-Ms", deadline);
        }
        sent = match &request.body {
            Body::None => sent,
            Body::Json(body) => sent.json(body),
            Body::Raw(body) => sent
                .header("content-type", "application/json")
                .body(body.clone()),
        };
        let response = sent.send().await?;
        answer.status = response.status().as_u16();
        let mut chunks = response.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk?);
            // What was read counts even if nothing follows.
            if let Ok(text) = std::str::from_utf8(&bytes) {
                answer.text.push_str(text);
                bytes.clear();
            }
        }
        answer.text.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    /// Notes the traces that an answer names, whole or not.
    fn acknowledge(&self, text: &str) -> Result<(), Ended> {
        let mut ledger = locked(&self.shared.ledger);
        for id in trace_ids(text) {
            if !ledger.acknowledge(self.key, id) {
                return Err(Ended::Failed(format!("two answers have the trace {id}")));
            }
        }
        Ok(())
    }
}

/// Whether an answer is what the request may get.
fn judge(request: &Request, answer: Answer, elapsed: Duration) -> Result<Answer, Ended> {
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
        408 if deadline.is_some() => Err(Ended::Expired),
        status => {
            let message = quoted(error["message"].as_str().unwrap_or_default());
            Err(Ended::Failed(format!("{status} ({message}): {}", what())))
        }
    }
}

/// The ids after `trace_id` and `trace_ids` in the text of an answer.
fn trace_ids(text: &str) -> Vec<&str> {
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
