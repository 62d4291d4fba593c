//! A random request, and what it gets when it has an engine to itself.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use ponder::engine::stepped::SteppedEngine;
use ponder::engine::{
    AdaptationConfig, AdapterId, Backend, EngineError, GenerateRequest, PoolingParams,
    SamplingParams, Speculative, TokenId,
};
use ponder::model::LoraAdapter;

use crate::answer::Answer;
use crate::constraint::{Rotating, SumWatcher};
use crate::random::Random;
use crate::setup::{Setup, VOCAB_SIZE};

/// Steps after which a request that is alone must have ended.
const MOST_STEPS_ALONE: usize = 5_000;

/// What decides a request's answer.
#[derive(Debug, Clone)]
pub struct Plan {
    pub request: GenerateRequest,
    /// Its constraint at the beginning, and the length of the prompt before it.
    pub constraint: Option<(Rotating, usize)>,
}

fn params(random: &mut Random, max_model_len: usize) -> SamplingParams {
    let token = |random: &mut Random| random.below(VOCAB_SIZE) as TokenId;
    let tokens = |random: &mut Random, most: usize| -> Vec<TokenId> {
        (0..random.below(most + 1)).map(|_| token(random)).collect()
    };
    let is_greedy = random.one_in(2);
    SamplingParams {
        temperature: if is_greedy {
            0.0
        } else {
            *random.choose(&[0.5, 1.0, 1e-39])
        },
        top_k: *random.choose(&[0, 0, 1, 5]),
        top_p: *random.choose(&[1.0, 1.0, 0.7]),
        min_p: *random.choose(&[0.0, 0.0, 0.1]),
        repetition_penalty: *random.choose(&[1.0, 1.0, 1.3, 1e-39]),
        presence_penalty: *random.choose(&[0.0, 0.0, 0.5]),
        frequency_penalty: *random.choose(&[0.0, 0.0, 0.25]),
        logit_bias: match random.one_in(4) {
            true => vec![(token(random), 3.0)],
            false => Vec::new(),
        },
        seed: random.next(),
        max_tokens: random.between(1, max_model_len),
        min_tokens: *random.choose(&[0, 0, 0, 3, 10]),
        ignore_eos: random.one_in(3),
        eos_token_ids: tokens(random, 1),
        stop_token_ids: tokens(random, 1),
        logprobs: *random.choose(&[None, None, Some(0), Some(3)]),
        prompt_logprobs: None,
        hidden_state: random.one_in(4),
    }
}

impl Plan {
    /// `bases` are texts that prompts begin with, so that they share prefixes.
    pub fn random(
        random: &mut Random,
        setup: &Setup,
        bases: &[Vec<TokenId>],
        adapter: Option<AdapterId>,
    ) -> Self {
        let most = setup.config.max_model_len - 1;
        let base = random.choose(bases);
        let kept = random.below(base.len().min(most) + 1);
        let mut prompt = base[..kept].to_vec();
        while prompt.is_empty() || (prompt.len() < most && !random.one_in(3)) {
            prompt.push(random.below(VOCAB_SIZE) as TokenId);
        }
        if random.one_in(8) {
            return Self::pooling(random, prompt, adapter);
        }
        let mut params = params(random, setup.config.max_model_len);
        params.prompt_logprobs = random.one_in(8).then(|| random.below(3));
        let constraint = random
            .one_in(3)
            .then(|| (Rotating::failing(random), prompt.len()));
        let speculatives = [
            Speculative::Off,
            Speculative::PromptLookup,
            Speculative::Swift,
            Speculative::Auto,
        ];
        let has_draft_model = setup.has_draft_model && random.one_in(2);
        let prediction = prompt.iter().copied().take(random.below(20)).collect();
        let request = GenerateRequest {
            n: random.between(1, setup.config.max_num_seqs_of_one().min(4)),
            branch_path: (0..random.below(3)).map(|_| random.next() as u32).collect(),
            watcher: random.one_in(4).then(|| {
                let ends_at = random.between(5, 40) as u32;
                Box::new(SumWatcher { sum: 1, ends_at }) as _
            }),
            constraint: (constraint.as_ref())
                .map(|(constraint, _)| Box::new(constraint.clone()) as _),
            tenant: random.below(3) as u64,
            cache_salt: random.below(2) as u64,
            adapter,
            adaptation: random.one_in(6).then(|| Arc::new(adaptation(random))),
            priority: random.below(3) as f32 / 2.0,
            speculative: match has_draft_model {
                true => Some(Speculative::DraftModel),
                false => random.one_in(2).then(|| *random.choose(&speculatives)),
            },
            prediction,
            ..GenerateRequest::new(prompt, params)
        };
        Self {
            request,
            constraint,
        }
    }

    fn pooling(random: &mut Random, prompt: Vec<TokenId>, adapter: Option<AdapterId>) -> Self {
        let mut positions: Vec<usize> = (0..prompt.len()).filter(|_| random.one_in(3)).collect();
        if positions.is_empty() {
            positions.push(prompt.len() - 1);
        }
        let pooling = PoolingParams {
            positions,
            token_ids: vec![1, 5],
            hidden_state: random.one_in(2),
            mean: false,
        };
        let request = GenerateRequest {
            adapter,
            ..GenerateRequest::pooling(prompt, pooling)
        };
        Self {
            request,
            constraint: None,
        }
    }

    /// What continuing choice `index` after `output` asks, in `n` ways with `params`.
    pub fn forked(
        &self,
        index: usize,
        output: &[TokenId],
        n: usize,
        params: SamplingParams,
    ) -> Self {
        let prompt = [self.request.prompt_token_ids.as_slice(), output].concat();
        let constraint = (self.constraint.as_ref())
            .map(|(constraint, origin)| Box::new(constraint.after(&prompt[*origin..])) as _);
        let request = GenerateRequest {
            n,
            branch_path: [self.request.branch_path.as_slice(), &[index as u32]].concat(),
            constraint,
            adapter: self.request.adapter,
            ..GenerateRequest::new(prompt, params)
        };
        Self {
            request,
            constraint: self.constraint.clone(),
        }
    }

    /// What the request gets on an engine of its own.
    ///
    /// # Errors
    /// What went wrong with it there.
    pub fn alone(&self, setup: &Setup) -> Result<Answer, String> {
        let setup = setup.alone();
        let engine = SteppedEngine::new(setup.executor(), None, setup.config);
        let mut engine = engine.map_err(|error| error.to_string())?;
        if let Some(id) = self.request.adapter {
            // The fake model tells adapters apart by their ids.
            for _ in 0..=id.0 {
                let handle = engine.handle().clone();
                // It is polled by hand: tokio must not make it wait for its turn.
                let mut loading = Box::pin(tokio::task::unconstrained(async move {
                    let adapter = LoraAdapter { layers: Vec::new() };
                    handle.load_adapter(adapter).await
                }));
                let _ = loading.as_mut().now_or_never();
                engine.turn(Duration::ZERO)?;
                let loaded = loading.now_or_never();
                loaded
                    .ok_or("no adapter")?
                    .map_err(|error| error.to_string())?;
            }
        }
        let request = GenerateRequest {
            speculative: Some(Speculative::Off),
            ..self.request.clone()
        };
        let mut answer = Answer::new(request.n);
        let stream = engine.handle().submit(request);
        let mut stream = stream.map_err(|error: EngineError| error.to_string())?;
        for _ in 0..MOST_STEPS_ALONE {
            engine.turn(Duration::from_millis(1))?;
            while let Ok(event) = stream.try_recv() {
                answer.take(event)?;
            }
            if answer.is_over() {
                return Ok(answer);
            }
        }
        Err(format!("alone it never ends: {}", engine.describe()))
    }
}

/// SLOT, to the prompt alone or again and again.
fn adaptation(random: &mut Random) -> AdaptationConfig {
    let is_repeated = random.one_in(2);
    AdaptationConfig {
        steps: random.between(1, 4),
        window: random.between(32, 64),
        interval: if is_repeated {
            random.between(1, 20)
        } else {
            0
        },
        max_phases: if is_repeated { 3 } else { 1 },
        reset_each_phase: random.one_in(2),
        ..AdaptationConfig::slot()
    }
}
