//! A reward server somewhere else: candidates go there as JSON, scores come back.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::json;

use super::{Candidate, Scorer, ScorerError, until};

/// Attempts of one call.
const ATTEMPTS: u32 = 3;
/// Calls that fail in a row before the server is left alone, and for how long.
const FAILURES_TO_OPEN: u32 = 5;
const OPEN_FOR: Duration = Duration::from_secs(10);
/// Longest answer: something, and more for each score.
const ANSWER_BYTES: usize = 64 << 10;
const ANSWER_BYTES_A_SCORE: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

/// A server that answers `POST url` with `{"question", "candidates": [{"text", "num_tokens", "logprob",
/// "is_complete"}]}` by `{"scores": [...]}`, one in 0..=1 a candidate. Named by the operator only: a request cannot
/// make this server call another.
pub struct RewardServer {
    client: reqwest::Client,
    url: String,
    breaker: Mutex<Breaker>,
}

/// Stops calling a server that only fails.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

#[derive(Deserialize)]
struct Scores {
    scores: Vec<f64>,
}

impl RewardServer {
    /// `timeout` is for each attempt.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, ScorerError> {
        // Texts go where the operator said, and nowhere else.
        let client = reqwest::Client::builder().redirect(Policy::none());
        let client = client.timeout(timeout).build();
        Ok(Self {
            client: client.map_err(|error| failed(error.to_string()))?,
            url: url.to_owned(),
            breaker: Mutex::default(),
        })
    }

    async fn score(
        &self,
        question: &str,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Vec<f64>, ScorerError> {
        self.check_open()?;
        let bodies = candidates.iter().map(|candidate| {
            json!({
                "text": candidate.text,
                "num_tokens": candidate.num_tokens,
                "logprob": candidate.logprob,
                "is_complete": candidate.is_complete,
            })
        });
        let body = json!({"question": question, "candidates": bodies.collect::<Vec<_>>()});
        let result = until(deadline, "http", self.call_often(&body, candidates.len())).await;
        // A client in a hurry says nothing of the server.
        if !matches!(result, Err(ScorerError::Deadline { .. })) {
            self.record(result.is_ok());
        }
        result
    }

    async fn call_often(
        &self,
        body: &serde_json::Value,
        len: usize,
    ) -> Result<Vec<f64>, ScorerError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.call(body, len).await {
                Err(_) if attempt < ATTEMPTS => tokio::time::sleep(PAUSE * attempt).await,
                result => return result,
            }
        }
    }

    async fn call(&self, body: &serde_json::Value, len: usize) -> Result<Vec<f64>, ScorerError> {
        let explain = |error: reqwest::Error| failed(error.without_url().to_string());
        let response = self.client.post(&self.url).json(body).send().await;
        let response = response.and_then(reqwest::Response::error_for_status);
        let mut response = response.map_err(explain)?;
        let max_bytes = ANSWER_BYTES + len * ANSWER_BYTES_A_SCORE;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(explain)? {
            answer.extend_from_slice(&chunk);
            if answer.len() > max_bytes {
                return Err(failed(format!(
                    "the answer has more than {max_bytes} bytes"
                )));
            }
        }
        let scores = serde_json::from_slice(&answer);
        let scores: Scores = scores.map_err(|error| failed(error.to_string()))?;
        if scores.scores.len() != len {
            return Err(failed(format!(
                "{} scores came for {len} candidates",
                scores.scores.len()
            )));
        }
        // Whoever averages and compares scores relies on it.
        match scores
            .scores
            .iter()
            .find(|score| !(0.0..=1.0).contains(*score))
        {
            Some(score) => Err(failed(format!("the score {score} is not in 0..=1"))),
            None => Ok(scores.scores),
        }
    }

    fn check_open(&self) -> Result<(), ScorerError> {
        let breaker = self
            .breaker
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        match breaker.open_until {
            Some(until) if Instant::now() < until => Err(failed(format!(
                "the reward server failed {} times in a row and is left alone for a while",
                breaker.failures
            ))),
            _ => Ok(()),
        }
    }

    fn record(&self, is_success: bool) {
        let mut breaker = self
            .breaker
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if is_success {
            *breaker = Breaker::default();
            return;
        }
        breaker.failures += 1;
        if breaker.failures >= FAILURES_TO_OPEN {
            breaker.open_until = Some(Instant::now() + OPEN_FOR);
        }
    }
}

fn failed(message: String) -> ScorerError {
    ScorerError::Failed {
        kind: "http",
        message,
    }
}

/// The scorer of a [`RewardServer`].
#[derive(Clone)]
pub struct RemoteScorer {
    pub server: Arc<RewardServer>,
    /// What the answers answer.
    pub question: String,
}

impl Scorer for RemoteScorer {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let scores = self.server.score(&self.question, candidates, deadline);
        scores.boxed()
    }
}
