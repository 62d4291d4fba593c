//! Constraints: masks where tokens are sampled, on drafts and on what drafts beside the model; forks and what is taken back.

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    AllowedTokens, Backend, ConstraintError, EngineConfig, EngineError, EngineHandle, FinishReason,
    GenerateRequest, SamplingParams, Speculative, SpeculativeConfig, StreamEvent, TokenConstraint,
    TokenId, TokenMask,
};

const VOCAB_SIZE: usize = 40;

fn engine(speculative: Speculative) -> EngineHandle {
    let config = EngineConfig {
        max_model_len: 256,
        max_num_seqs: 8,
        max_num_batched_tokens: 128,
        block_size: 16,
        num_blocks: 200,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig {
            default: speculative,
            prompt_lookup_min: 1,
            ignores_costs: true,
            ..SpeculativeConfig::default()
        },
    };
    let model = || Box::new(FakeModel::new(VOCAB_SIZE, Fault::None));
    // The draft model says the same, but it is not asked about the constraint's state by anybody else.
    EngineHandle::start_with(model(), Some(model()), config).unwrap()
}

/// `1 2 3 … 1 2 3 …`: after each token the next of a cycle, or the one after it.
#[derive(Debug, Clone)]
struct Cycle {
    len: u32,
    accepted: Vec<TokenId>,
}

impl Cycle {
    fn allows(&self, token_id: TokenId) -> bool {
        let last = self.accepted.last().copied().unwrap_or(0);
        let step = |by| (last + by) % self.len;
        token_id == step(1) || token_id == step(2)
    }
}

impl TokenConstraint for Cycle {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        for token_id in (0..self.len).filter(|id| self.allows(*id)) {
            mask.allow(token_id);
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_allowed = self.allows(token_id);
        self.accepted.extend(is_allowed.then_some(token_id));
        is_allowed
    }

    fn rollback(&mut self, num_tokens: usize) {
        self.accepted.truncate(self.accepted.len() - num_tokens);
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

fn answers(
    engine: &EngineHandle,
    constraint: &dyn TokenConstraint,
    params: &SamplingParams,
    n: usize,
) -> Result<(Vec<Vec<TokenId>>, u64), EngineError> {
    let request = GenerateRequest {
        n,
        constraint: Some(constraint.fork()),
        ..GenerateRequest::new(vec![1, 2, 3, 1, 2, 3, 1], params.clone())
    };
    let mut stream = engine.submit(request)?;
    let (mut all, mut num_accepted) = (vec![Vec::new(); n], 0);
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token {
                index, token_id, ..
            } => all[index].push(token_id),
            StreamEvent::Finished { reason, drafts, .. } => {
                assert_eq!(reason, FinishReason::Length);
                num_accepted += drafts.num_accepted_tokens;
            }
            StreamEvent::Error(error) => return Err(error),
            _ => {}
        }
    }
    Ok((all, num_accepted))
}

#[test]
fn tokens_keep_to_a_constraint_whoever_drafts_them() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            max_tokens: 60,
            seed: 4,
            ..SamplingParams::default()
        };
        let cycle = Cycle {
            len: 5,
            accepted: Vec::new(),
        };
        let (plain, _) = answers(&engine(Speculative::Off), &cycle, &params, 3).unwrap();
        for token_ids in &plain {
            let mut state = cycle.clone();
            assert!(
                token_ids.iter().all(|id| state.accept(*id)),
                "{token_ids:?}"
            );
            assert_eq!(token_ids.len(), 60);
        }
        assert!(
            temperature == 0.0 || plain[0] != plain[1],
            "siblings go their own ways"
        );
        for drafter in [
            Speculative::PromptLookup,
            Speculative::Swift,
            Speculative::DraftModel,
        ] {
            let (drafted, num_accepted) = answers(&engine(drafter), &cycle, &params, 3).unwrap();
            assert_eq!(drafted, plain, "{drafter:?}");
            assert!(num_accepted > 0, "{drafter:?} was of use");
        }
    }
}

#[test]
fn the_simplest_constraint_allows_the_same_everywhere() {
    let params = SamplingParams {
        max_tokens: 50,
        ..SamplingParams::default()
    };
    let allowed = AllowedTokens::new(VOCAB_SIZE, [3, 17, 39]);
    let (all, _) = answers(&engine(Speculative::Auto), &allowed, &params, 2).unwrap();
    let mut seen: Vec<TokenId> = all.concat();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [3, 17, 39]);
}

/// A constraint that leaves nothing ends its own request.
#[test]
fn nothing_allowed_is_an_error_of_the_request_alone() {
    let engine = engine(Speculative::Off);
    let params = SamplingParams {
        max_tokens: 5,
        ..SamplingParams::default()
    };
    let nothing = AllowedTokens::new(VOCAB_SIZE, []);
    let error = answers(&engine, &nothing, &params, 1).unwrap_err();
    assert_eq!(error, EngineError::NothingAllowed);
    // Nothing but tokens that may not come yet.
    let stopped = SamplingParams {
        min_tokens: 3,
        stop_token_ids: vec![7],
        ..params.clone()
    };
    let only = AllowedTokens::new(VOCAB_SIZE, [7]);
    let error = answers(&engine, &only, &stopped, 1).unwrap_err();
    assert_eq!(error, EngineError::NothingAllowed);
    let all = AllowedTokens::new(VOCAB_SIZE, 0..40);
    assert!(answers(&engine, &all, &params, 1).is_ok());
}
