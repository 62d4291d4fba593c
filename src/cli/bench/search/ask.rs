//! One question to the server, and its grade.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::args::BenchSearchArgs;
use super::arms::Problem;

/// How long a full server is left alone.
const RETRY: Duration = Duration::from_millis(200);

/// What came back.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    text: String,
    /// All generated tokens, and those that are not in the answer.
    pub num_tokens: u64,
    pub num_discarded: u64,
    pub seconds: f64,
    pub scorer_seconds: f64,
    /// `decided`, `budget` or nothing.
    pub stopped: Option<String>,
    pub is_right: bool,
    pub error: Option<String>,
}

pub(super) struct Server {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
    pub model: String,
    max_tokens: usize,
    temperature: f64,
    seed: u64,
}

impl Server {
    pub(super) fn new(url: &str, model: String, args: &BenchSearchArgs) -> Self {
        Self {
            client: reqwest::Client::new(),
            url: url.to_owned(),
            key: args.api_key.clone(),
            model,
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            seed: args.seed,
        }
    }

    /// Asks a problem, greedily without a search. The time is that until the whole answer is there.
    pub(super) async fn ask(&self, problem: &Problem, search: Option<Value>) -> Answer {
        let mut body = json!({
            "model": self.model,
            "messages": problem.messages,
            "max_tokens": self.max_tokens,
            "temperature": if search.is_some() { self.temperature } else { 0.0 },
            "seed": self.seed,
        });
        if let Some(search) = search {
            body["search"] = search;
        }
        let started = Instant::now();
        let sent = self.send("/v1/chat/completions", &body).await;
        let seconds = started.elapsed().as_secs_f64();
        match sent {
            Ok(response) => Answer {
                seconds,
                ..read(&response)
            },
            Err(error) => Answer {
                seconds,
                error: Some(format!("{error:#}")),
                ..Answer::default()
            },
        }
    }

    /// Whether the answer gets the whole of the problem's grade.
    pub(super) async fn grade(&self, problem: &Problem, answer: &mut Answer) {
        if answer.error.is_some() {
            return;
        }
        let body = json!({
            "messages": problem.messages,
            "candidates": [answer.text],
            "reward": problem.grade,
        });
        match self.send("/v1/score", &body).await {
            Ok(scored) => {
                let score = scored["data"][0]["score"].as_f64();
                answer.is_right = score.is_some_and(|score| score >= 1.0);
            }
            Err(error) => answer.error = Some(format!("grading: {error:#}")),
        }
    }

    async fn send(&self, route: &str, body: &Value) -> anyhow::Result<Value> {
        loop {
            let mut request = self.client.post(format!("{}{route}", self.url)).json(body);
            if let Some(key) = &self.key {
                request = request.bearer_auth(key);
            }
            let response = request
                .send()
                .await
                .with_context(|| format!("no server answers at {}", self.url))?;
            let status = response.status();
            if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let body: Value = response.json().await.context("the answer is no JSON")?;
            if !status.is_success() {
                let message = body["error"]["message"].as_str().unwrap_or("no message");
                anyhow::bail!("{status}: {message}");
            }
            return Ok(body);
        }
    }
}

fn read(response: &Value) -> Answer {
    let usage = &response["usage"];
    let search = &response["search"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Answer {
        text: response["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        num_tokens: number(&usage["completion_tokens"]),
        num_discarded: number(&usage["completion_tokens_details"]["reasoning_tokens"]),
        scorer_seconds: number(&search["scorer_ms"]) as f64 / 1e3,
        stopped: search["stopped"].as_str().map(str::to_owned),
        ..Answer::default()
    }
}
