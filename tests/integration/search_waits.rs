//! A search waits for nothing beyond its deadline and leaves nothing running. Time is tokio's,
//! which stands still here until everybody waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    Engine, EngineConfig, EngineError, EngineHandle, GenerateRequest, RequestStream,
    SamplingParams, TokenBudget,
};
use ponder::model::{BlockId, CausalLm, ForwardBatch, ForwardError, ModelInfo};
use ponder::reward::{
    Candidate, Judge, JudgeScorer, Likelihood, Programs, PythonRunner, RemoteScorer, RewardContext,
    RewardResources, RewardServer, RewardSpec, Scorer, ScorerError, Weighted, build,
};
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{
    End, EnginePolicy, STRATEGIES, Search, SearchOutcome, SearchSpec, Stopped, Tree,
};
use ponder::text::{ChatTemplate, Tokenizer};
use ponder_sandbox::{Limits, Sandbox};
use serde_json::json;
use tokio::time::Instant;

use crate::engine::wait_for;
use crate::search::{one, spec};
use crate::support::{default_files, install_tls};

const SECOND: Duration = Duration::from_secs(1);
/// What samples that a deadline cuts may take to arrive.
const GRACE: Duration = Duration::from_millis(500);

/// Takes its time, and likes long answers.
struct Slow(Duration);

impl Scorer for Slow {
    fn kind(&self) -> &'static str {
        "slow"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<std::time::Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let scores = candidates
            .iter()
            .map(|c| c.text.len() as f64 / 100.0)
            .collect();
        let delay = self.0;
        async move {
            tokio::time::sleep(delay).await;
            Ok(scores)
        }
        .boxed()
    }
}

/// Steps of one line, whole answers of two; each says which sample it is.
fn script(delay: Duration, deadline: Option<Duration>) -> ScriptedPolicy {
    let policy = ScriptedPolicy::new(None, |prefix, path, is_whole| match is_whole {
        true => (format!("{path:?}\n\nend"), true),
        false => (format!("{path:?}\n\n"), prefix.len() > 30),
    });
    let deadline = deadline.map(|left| (Instant::now() + left).into_std());
    policy.in_time(delay, deadline)
}

fn every_strategy() -> impl Iterator<Item = SearchSpec> {
    let specs = STRATEGIES.iter().map(|strategy| {
        spec(
            json!({"strategy": strategy.name(), "n": 4, "branch": 2, "threshold": 1.0,
            "reward": {"kind": "likelihood"}}),
        )
    });
    specs.collect::<Vec<_>>().into_iter()
}

async fn run(policy: &ScriptedPolicy, scorer: &Weighted, spec: &SearchSpec) -> SearchOutcome {
    let outcome = Search::new(policy, Some(scorer), spec, None).run().await;
    let outcome = outcome.unwrap();
    outcome.tree.check_invariants();
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_scorer_that_takes_too_long_ends_every_search_in_time() {
    for spec in every_strategy() {
        for delay in [Duration::from_millis(400), Duration::from_secs(1 << 20)] {
            let name = spec.strategy.name();
            let scorer = one(Slow(delay));
            let policy = script(Duration::ZERO, Some(SECOND));
            let started = Instant::now();
            let outcome = run(&policy, &scorer, &spec).await;
            assert_eq!(started.elapsed(), SECOND, "{name}");
            assert_eq!(outcome.stopped, Some(Stopped::Budget), "{name}");
            let is_whole = |id: usize| outcome.tree.node(id).end == Some(End::Stop);
            if matches!(name, "best_of_n" | "self_consistency") {
                // Two were scored, one after the other.
                let scored = (1..outcome.tree.nodes.len())
                    .filter(|id| is_whole(*id) && outcome.tree.node(*id).score.is_some());
                let expected = if delay < SECOND { 2 } else { 0 };
                assert_eq!(scored.count(), expected, "{name}");
            }
            assert!(!outcome.answers.is_empty(), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn samples_that_take_too_long_end_every_search_in_time() {
    let scorer = one(Likelihood);
    for spec in every_strategy() {
        let name = spec.strategy.name();
        let policy = script(Duration::from_millis(700), Some(SECOND));
        let started = Instant::now();
        let outcome = run(&policy, &scorer, &spec).await;
        assert!(started.elapsed() <= SECOND + GRACE, "{name}");
        assert_eq!(outcome.stopped, Some(Stopped::Budget), "{name}");
        // A sample that never comes is not waited for, and nothing is an error of its own.
        let policy = script(Duration::from_secs(1 << 20), Some(SECOND));
        let started = Instant::now();
        let nothing = Search::new(&policy, Some(&scorer), &spec, None).run().await;
        assert!(nothing.is_err(), "{name}");
        assert!(started.elapsed() <= 2 * (SECOND + GRACE), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_budget_and_deadline_holds_however_large_they_are() {
    let search = |ms: u64| spec(json!({"strategy": "best_of_n", "n": 4, "budget": {"ms": ms}}));
    for (ms, deadline, expected) in [
        (500, Some(SECOND), Duration::from_millis(500)),
        (u64::MAX, Some(SECOND), SECOND),
        (u64::MAX, None, 4 * Duration::from_millis(400)),
    ] {
        let policy = script(Duration::ZERO, deadline);
        let scorer = one(Slow(Duration::from_millis(400)));
        let started = Instant::now();
        run(&policy, &scorer, &search(ms)).await;
        assert_eq!(started.elapsed(), expected, "{ms}");
    }
}

fn tokenizer() -> &'static (Tokenizer, ChatTemplate) {
    static LOADED: OnceLock<(Tokenizer, ChatTemplate)> = OnceLock::new();
    LOADED.get_or_init(|| {
        let files = default_files();
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let template = ChatTemplate::from_files(&files, &tokenizer, None).unwrap();
        (tokenizer, template.unwrap())
    })
}

fn engine() -> Engine {
    engine_of(Box::new(fake_model()), 1000)
}

fn fake_model() -> FakeModel {
    FakeModel::new(tokenizer().0.vocab_size(), Fault::None)
}

fn engine_of(model: Box<dyn CausalLm>, max_num_waiting_seqs: usize) -> Engine {
    let config = EngineConfig {
        max_model_len: 4096,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        block_size: 16,
        num_blocks: 2100,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs,
        is_shared: false,
        speculative: Default::default(),
    };
    Arc::new(EngineHandle::start(model, config).unwrap())
}

/// A model that computes nothing until the other end of its channel is dropped.
struct Held(FakeModel, Mutex<mpsc::Receiver<()>>);

impl CausalLm for Held {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ForwardError> {
        self.0
            .allocate_kv_cache(num_blocks, block_size, max_num_rows)
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        self.0.copy_blocks(copies)
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        let _ = self.1.lock().unwrap().recv();
        self.0.forward(batch, logits)
    }

    fn hidden_state(&self, row: usize) -> Option<Vec<f32>> {
        self.0.hidden_state(row)
    }
}

/// An engine whose queue stays full while the rest of this lives.
struct Full {
    engine: Engine,
    _streams: Vec<RequestStream>,
    _held: mpsc::Sender<()>,
}

fn full_engine() -> Full {
    let (held, until) = mpsc::channel();
    let engine = engine_of(Box::new(Held(fake_model(), Mutex::new(until))), 1);
    let submit = || engine.submit(GenerateRequest::new(vec![1], SamplingParams::default()));
    // What is in the step that does not end, and what waits behind it.
    let streams = std::iter::from_fn(|| submit().ok()).take(8).collect();
    assert!(matches!(submit(), Err(EngineError::Overloaded { .. })));
    Full {
        engine,
        _streams: streams,
        _held: held,
    }
}

fn engine_policy(engine: &Engine, max_tokens: usize) -> EnginePolicy {
    let (tokenizer, _) = tokenizer();
    let params = SamplingParams {
        max_tokens,
        seed: 3,
        ..SamplingParams::default()
    };
    EnginePolicy::new(
        Arc::clone(engine),
        tokenizer.clone(),
        (1..40).collect(),
        params,
    )
}

fn judge(engine: &Engine) -> Arc<Judge> {
    let (tokenizer, template) = tokenizer().clone();
    Arc::new(Judge::new(Arc::clone(engine), tokenizer, template))
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_ends_judged_searches_in_time() {
    let full = full_engine();
    let judge = judge(&full.engine);
    let scorer = || {
        let context = RewardContext::default();
        one(JudgeScorer::new(Arc::clone(&judge), context, None))
    };
    for spec in every_strategy() {
        let policy = script(Duration::ZERO, Some(SECOND));
        let started = Instant::now();
        let outcome = run(&policy, &scorer(), &spec).await;
        assert_eq!(started.elapsed(), SECOND, "{}", spec.strategy.name());
        assert_eq!(outcome.stopped, Some(Stopped::Budget));
        assert!(!outcome.answers.is_empty());
    }
    let deadline = (Instant::now() + SECOND).into_std();
    let late = scorer()
        .score(&[Candidate::default()], Some(deadline))
        .await;
    assert!(
        matches!(late, Err(ScorerError::Deadline { kind: "judge" })),
        "{late:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_ends_a_search_with_what_it_has() {
    let full = full_engine();
    let mut policy = engine_policy(&full.engine, 20);
    policy.deadline = Some((Instant::now() + SECOND).into_std());
    // Its first samples are refused at once.
    let spec = spec(json!({"strategy": "best_of_n", "n": 4}));
    let scorer = one(Likelihood);
    let started = Instant::now();
    let refused = Search::new(&policy, Some(&scorer), &spec, None).run().await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("queue is full"), "{refused}");
    assert_eq!(started.elapsed(), Duration::ZERO);
    // Once it has begun it waits for its turn.
    policy.num_cached_tokens.set(0).unwrap();
    let nothing = Search::new(&policy, Some(&scorer), &spec, None).run().await;
    let nothing = nothing.unwrap_err().to_string();
    assert!(nothing.contains("budget ended"), "{nothing}");
    assert_eq!(started.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_reward_server_that_is_silent_ends_in_time() {
    install_tls();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = RewardServer::new(&url, Duration::from_secs(1 << 20)).unwrap();
    let scorer = RemoteScorer {
        server: Arc::new(server),
        question: String::new(),
    };
    // More often than the server may fail before it is left alone: it is the clients who are in a hurry.
    for _ in 0..6 {
        let started = Instant::now();
        let deadline = (started + SECOND).into_std();
        let late = scorer.score(&[Candidate::default()], Some(deadline)).await;
        assert!(
            matches!(late, Err(ScorerError::Deadline { kind: "http" })),
            "{late:?}"
        );
        assert_eq!(started.elapsed(), SECOND);
    }
}

/// A server that answers everything with these, and counts.
async fn answering(status: u16, location: &str, body: &'static str) -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let (counted, location) = (Arc::clone(&calls), location.to_owned());
    let answer = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        std::future::ready((status, [("location", location.clone())], body))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, calls)
}

#[tokio::test]
async fn a_reward_server_gives_numbers_from_0_to_1_and_sends_texts_nowhere_else() {
    install_tls();
    let score = |url: String| async move {
        let scorer = RemoteScorer {
            server: Arc::new(RewardServer::new(&url, Duration::from_secs(60)).unwrap()),
            question: String::new(),
        };
        scorer.score(&[Candidate::default()], None).await
    };
    let (fair, fair_calls) = answering(200, "", r#"{"scores": [1.0]}"#).await;
    assert_eq!(score(fair.clone()).await.unwrap(), [1.0]);
    for body in [
        r#"{"scores": [1e308]}"#,
        r#"{"scores": [-0.1]}"#,
        r#"{"scores": [1.5]}"#,
    ] {
        let (url, _) = answering(200, "", body).await;
        let error = score(url).await.unwrap_err().to_string();
        assert!(error.contains("is not in 0..=1"), "{error}");
    }
    let (elsewhere, calls) = answering(307, &fair, "").await;
    assert!(score(elsewhere).await.is_err());
    assert!(calls.load(Ordering::Relaxed) > 0);
    assert_eq!(fair_calls.load(Ordering::Relaxed), 1);
}

fn python(num_parallel: usize, test: &str) -> Weighted {
    let exe = std::path::PathBuf::from(env!("CARGO_BIN_EXE_ponder"));
    let limits = Limits {
        wall: Duration::from_secs(60),
        cpu_seconds: 60,
        ..Limits::default()
    };
    let sandbox = Sandbox::new(exe, None, limits).unwrap();
    let resources = RewardResources {
        python: Some(PythonRunner::new(
            sandbox,
            Programs::new(num_parallel, false),
        )),
        ..RewardResources::default()
    };
    let spec = json!({"kind": "verifier", "type": "python", "tests": [test]});
    let spec: RewardSpec = serde_json::from_value(spec).unwrap();
    let context = RewardContext::default();
    let scorer = build(&[spec], &resources, &context, None).now_or_never();
    scorer.expect("nothing is waited for").unwrap()
}

fn program(text: &str) -> Candidate {
    Candidate {
        text: text.to_owned(),
        is_complete: true,
        ..Candidate::default()
    }
}

#[tokio::test(start_paused = true)]
async fn programs_wait_for_their_turn_until_the_deadline() {
    let scorer = python(0, "assert True");
    let started = Instant::now();
    let deadline = (started + SECOND).into_std();
    let late = scorer.score(&[program("x = 1")], Some(deadline)).await;
    assert!(matches!(
        late,
        Err(ScorerError::Deadline { kind: "verifier" })
    ));
    assert_eq!(started.elapsed(), SECOND);
}

/// In real time: the program is a process.
#[tokio::test]
async fn a_program_that_nobody_waits_for_is_killed() {
    let scorer = python(1, "assert x == 1");
    let started = Instant::now();
    let deadline = (started + Duration::from_millis(300)).into_std();
    let late = scorer
        .score(&[program("while True: pass")], Some(deadline))
        .await;
    assert!(matches!(late, Err(ScorerError::Deadline { .. })));
    // Its place is free again long before its own limit.
    let scores = scorer.score(&[program("x = 1")], None).await.unwrap();
    assert_eq!(scores, [1.0]);
    assert!(started.elapsed() < Duration::from_secs(30));
}

fn is_idle(engine: &Engine) -> bool {
    let stats = engine.stats();
    stats.num_requests_running + stats.num_requests_waiting == 0
}

/// A current-thread runtime with paused time is all that a search needs.
#[tokio::test(start_paused = true)]
async fn a_search_that_is_dropped_leaves_nothing_running() {
    let scorer = one(Likelihood);
    for spec in every_strategy() {
        let engine = engine();
        let policy = engine_policy(&engine, 4000);
        let mut search = Search::new(&policy, Some(&scorer), &spec, None)
            .run()
            .boxed();
        while policy.budget.spent() == 0 {
            let poll = futures::poll!(&mut search);
            assert!(poll.is_pending(), "{}", spec.strategy.name());
            tokio::task::yield_now().await;
        }
        assert!(!is_idle(&engine));
        drop(search);
        wait_for(|| is_idle(&engine));
        assert!(policy.budget.spent() < 4000, "{}", spec.strategy.name());
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_that_ends_leaves_nothing_running() {
    let scorer = one(Likelihood);
    let engine = engine();
    for mut spec in every_strategy() {
        spec.budget.tokens = Some(300);
        let run = async |engine: &Engine| {
            let mut policy = engine_policy(engine, 60);
            policy.budget = Arc::new(TokenBudget::new(300));
            let outcome = Search::new(&policy, Some(&scorer), &spec, None).run().await;
            let outcome = outcome.unwrap();
            outcome.tree.check_invariants();
            outcome
        };
        let outcome = run(&engine).await;
        assert!(outcome.stats.num_tokens <= 300);
        wait_for(|| is_idle(&engine));
        // Beside nobody and with a cache that has the prompt, it is the same search.
        let again = run(&engine).await;
        let texts = |tree: &Tree| -> Vec<String> {
            tree.nodes.iter().map(|node| node.text.clone()).collect()
        };
        if outcome.stopped != Some(Stopped::Budget) {
            assert_eq!(texts(&outcome.tree), texts(&again.tree));
        }
    }
}
