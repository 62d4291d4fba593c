//! One client of the soak: it asks, leaves, and judges how its requests end.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::watch;

use super::child::{KEYS, TRACE_KEY, locked};
use super::dice::Dice;
use super::ledger::Ledger;
use super::request::{Answer, Body, Key, Request, judge, trace_ids};
use super::same::SameAnswers;
use super::supervisor::{Life, is_alive, up};
use super::tally::Ended;

/// Nothing may take longer.
const PATIENCE: Duration = Duration::from_secs(180);
/// Share of requests whose client leaves, and of those that have a deadline.
const RUDE_SHARE: f64 = 0.08;
const HURRIED_SHARE: f64 = 0.08;
const LONGEST_RUDE_WAIT: Duration = Duration::from_secs(2);
const LONGEST_DEADLINE: Duration = Duration::from_secs(3);

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
