//! A search, and what comes of it when its engine serves nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::stepped::SteppedEngine;
use ponder::engine::{EngineError, EngineHandle, SamplingParams, Speculative, TokenId};
use ponder::reward::{Candidate, Scorer, ScorerError, Weighted};
use ponder::search::{
    BranchConstraint, EnginePolicy, Search, SearchError, SearchRequest, SearchSpec,
};
use serde_json::json;

use crate::constraint::Rotating;
use crate::random::Random;
use crate::setup::Setup;
use crate::text::tokenizer;

/// Steps after which a search that is alone must have ended.
const MOST_STEPS_ALONE: usize = 20_000;
const STRATEGIES: [&str; 10] = [
    "auto",
    "deepconf",
    "self_consistency",
    "best_of_n",
    "beam",
    "dvts",
    "rebase",
    "particle_filtering",
    "mcts",
    "vm_mcts",
];

/// What decides a search's outcome.
#[derive(Debug, Clone)]
pub struct Ask {
    spec: SearchSpec,
    prompt: Vec<TokenId>,
    params: SamplingParams,
    speculative: Speculative,
    constraint: Option<Rotating>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Answers {
        /// Tokens and the bits of their value, best first.
        answers: Vec<(Vec<TokenId>, u64)>,
        num_nodes: usize,
    },
    /// The queue was full at the first step.
    Overloaded,
    /// No sample came of it, or none that counts.
    Nothing(String),
}

pub type Running = BoxFuture<'static, Outcome>;

/// Scores that follow from the text: steps too.
struct ByHash;

impl Scorer for ByHash {
    fn kind(&self) -> &'static str {
        "hash"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let score = |candidate: &Candidate| {
            let bytes = candidate.text.bytes();
            let hash = bytes.fold(7_u32, |hash, byte| {
                hash.wrapping_mul(31).wrapping_add(u32::from(byte))
            });
            f64::from(hash % 1000) / 1000.0
        };
        let scores = candidates.iter().map(score).collect();
        async move { Ok(scores) }.boxed()
    }
}

impl Ask {
    /// # Errors
    /// The request is refused, which it should not be.
    pub fn random(
        random: &mut Random,
        setup: &Setup,
        bases: &[Vec<TokenId>],
    ) -> Result<Self, String> {
        let config = &setup.config;
        let base = random.choose(bases);
        let most = (config.max_model_len - 1).min(base.len());
        let prompt = base[..random.between(1, most.max(1))].to_vec();
        let strategy = *random.choose(&STRATEGIES);
        let n = random.between(1, config.max_num_seqs_of_one().min(6));
        let mut request = json!({"strategy": strategy, "step": {"delimiter": "\n"}});
        if matches!(
            strategy,
            "auto" | "deepconf" | "self_consistency" | "best_of_n"
        ) {
            request["n"] = json!(n);
        }
        if strategy == "best_of_n" && random.one_in(2) {
            request["cost"] = json!(0.01);
        }
        if strategy == "deepconf" {
            request["confidence"] = json!({"window": random.between(1, 8), "keep": 0.5});
        }
        let request: SearchRequest =
            serde_json::from_value(request).map_err(|error| error.to_string())?;
        let spec = request.resolve(config.max_num_seqs_of_one(), "likelihood");
        Ok(Self {
            spec: spec.map_err(|error| error.to_string())?,
            prompt,
            constraint: random.one_in(2).then(|| Rotating::random(random)),
            params: SamplingParams {
                max_tokens: random.between(1, 30),
                temperature: *random.choose(&[0.7, 1.0]),
                seed: random.next(),
                eos_token_ids: vec![random.below(crate::setup::VOCAB_SIZE) as TokenId],
                ..SamplingParams::default()
            },
            speculative: *random.choose(&[
                Speculative::Off,
                Speculative::PromptLookup,
                Speculative::Swift,
            ]),
        })
    }

    /// Starts it on an engine.
    ///
    /// # Errors
    /// There is no tokenizer.
    pub fn start(&self, engine: &EngineHandle) -> Result<Running, String> {
        let policy = EnginePolicy {
            constraint: (self.constraint.clone())
                .map(|constraint| BranchConstraint::new(Box::new(constraint))),
            speculative: Some(self.speculative),
            ..EnginePolicy::new(
                Arc::new(engine.clone()),
                tokenizer()?,
                self.prompt.clone(),
                self.params.clone(),
            )
        };
        let spec = self.spec.clone();
        Ok(async move {
            let scorer = Weighted::new(vec![(1.0, Arc::new(ByHash) as _)]);
            let search = Search::new(&policy, Some(&scorer), &spec, None);
            match search.run().await {
                Ok(outcome) => Outcome::Answers {
                    answers: (outcome.answers.iter())
                        .map(|answer| (answer.token_ids.clone(), answer.value.to_bits()))
                        .collect(),
                    num_nodes: outcome.stats.num_nodes,
                },
                Err(SearchError::Engine(EngineError::Overloaded { .. })) => Outcome::Overloaded,
                Err(error) => Outcome::Nothing(error.to_string()),
            }
        }
        .boxed())
    }

    /// What comes of it on an engine of its own.
    ///
    /// # Errors
    /// What went wrong there.
    pub async fn alone(&self, setup: &Setup) -> Result<Outcome, String> {
        let setup = setup.alone();
        let engine = SteppedEngine::new(setup.executor(), None, setup.config);
        let mut engine = engine.map_err(|error| error.to_string())?;
        let ask = Self {
            speculative: Speculative::Off,
            ..self.clone()
        };
        let mut running = ask.start(engine.handle())?;
        for _ in 0..MOST_STEPS_ALONE {
            if let Some(outcome) = (&mut running).now_or_never() {
                return Ok(outcome);
            }
            engine.turn(Duration::from_millis(1))?;
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        Err(format!("a search alone never ends: {}", engine.describe()))
    }
}
