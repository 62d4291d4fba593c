//! Constraints: masks where tokens are sampled, on drafts and on what drafts beside the model;
//! forks and what is taken back; forced tokens, ends, and constraints that fail.

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    AllowedTokens, Backend, ConstraintError, Drafter, EngineConfig, EngineError, EngineHandle,
    FinishReason, GenerateRequest, SamplingParams, Speculative, SpeculativeConfig, StreamEvent,
    TokenConstraint, TokenId, TokenMask,
};

const VOCAB_SIZE: usize = 40;

fn engine(speculative: Speculative) -> EngineHandle {
    let config = EngineConfig {
        max_model_len: 256,
        max_num_seqs: 8,
        max_num_batched_tokens: 128,
        block_size: 16,
        num_blocks: 200,
        local: None,
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
    let all = AllowedTokens::new(VOCAB_SIZE, 0..40);
    assert!(answers(&engine, &all, &params, 1).is_ok());
}

/// What came of one choice.
#[derive(Debug, Default, PartialEq)]
struct Choice {
    token_ids: Vec<TokenId>,
    reason: Option<FinishReason>,
}

/// All choices of a request, and its error.
fn outcome(engine: &EngineHandle, request: GenerateRequest) -> (Vec<Choice>, Option<EngineError>) {
    let mut choices: Vec<Choice> = (0..request.n).map(|_| Choice::default()).collect();
    let mut stream = engine.submit(request).unwrap();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token {
                index, token_id, ..
            } => choices[index].token_ids.push(token_id),
            StreamEvent::Finished { index, reason, .. } => choices[index].reason = Some(reason),
            StreamEvent::Error(error) => return (choices, Some(error)),
            _ => {}
        }
    }
    (choices, None)
}

const EOS: TokenId = 0;

/// What a template does at a place instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// The mask says that it cannot be made.
    Fails,
    MaskPanics,
    AcceptPanics,
    ForcedPanics,
    ForkPanics,
    /// Tokens that are no tokens are forced.
    ForcesNonsense,
}

/// A text of given tokens with gaps, in which the tokens from 20 on may come. Then it ends.
#[derive(Debug, Clone)]
struct Template {
    places: Vec<Option<TokenId>>,
    accepted: Vec<TokenId>,
    wrong: Wrong,
    /// Where it is.
    at: usize,
}

impl Template {
    fn new(wrong: Wrong, at: usize) -> Self {
        let part = |i: u32| [Some(1 + i), Some(3), Some(5 + i), None, None, Some(9), None];
        Self {
            places: (0..5).flat_map(part).collect(),
            accepted: Vec::new(),
            wrong,
            at,
        }
    }

    fn allows(&self, token_id: TokenId) -> bool {
        match self.places.get(self.accepted.len()) {
            Some(Some(given)) => token_id == *given,
            Some(None) => token_id >= 20,
            None => token_id == EOS && self.accepted.last() != Some(&EOS),
        }
    }

    fn is_wrong(&self, wrong: Wrong) -> bool {
        self.wrong == wrong && self.accepted.len() == self.at
    }
}

impl TokenConstraint for Template {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        assert!(!self.is_wrong(Wrong::MaskPanics), "a test's mask panics");
        if self.is_wrong(Wrong::Fails) {
            return Err(ConstraintError("it is too deep".to_owned()));
        }
        let allowed = (0..VOCAB_SIZE as TokenId).filter(|id| self.allows(*id));
        allowed.for_each(|id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        assert!(
            !self.is_wrong(Wrong::AcceptPanics),
            "a test's accept panics"
        );
        let is_allowed = self.allows(token_id);
        self.accepted.extend(is_allowed.then_some(token_id));
        is_allowed
    }

    fn rollback(&mut self, num_tokens: usize) {
        self.accepted.truncate(self.accepted.len() - num_tokens);
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        assert!(
            !self.is_wrong(Wrong::ForcedPanics),
            "a test's forced tokens panic"
        );
        if self.is_wrong(Wrong::ForcesNonsense) {
            return vec![7777; 100];
        }
        let rest = &self.places[self.accepted.len().min(self.places.len())..];
        let given = rest.iter().take_while(|place| place.is_some());
        let num_given = given.clone().count();
        let end = (num_given == rest.len() && !self.accepted.ends_with(&[EOS])).then_some(EOS);
        let all = given.copied().flatten().chain(end);
        all.take(most).collect()
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        assert!(!self.is_wrong(Wrong::ForkPanics), "a test's fork panics");
        Box::new(self.clone())
    }
}

fn templated(template: &Template, temperature: f32, n: usize) -> GenerateRequest {
    let params = SamplingParams {
        temperature,
        seed: 9,
        max_tokens: 100,
        eos_token_ids: vec![EOS],
        ..SamplingParams::default()
    };
    GenerateRequest {
        n,
        constraint: Some(Box::new(template.clone())),
        ..GenerateRequest::new(vec![4, 4, 2], params)
    }
}

#[test]
fn forced_tokens_are_drafts_that_change_nothing() {
    let template = Template::new(Wrong::Nothing, 0);
    for temperature in [0.0, 1.0] {
        let request = templated(&template, temperature, 3);
        let (plain, error) = outcome(&engine(Speculative::Off), request.clone());
        assert_eq!(error, None);
        for choice in &plain {
            assert_eq!(choice.reason, Some(FinishReason::Eos));
            assert_eq!(choice.token_ids.len(), template.places.len() + 1);
        }
        for drafter in [
            Speculative::Auto,
            Speculative::PromptLookup,
            Speculative::Swift,
            Speculative::DraftModel,
        ] {
            let engine = engine(drafter);
            let (drafted, _) = outcome(&engine, request.clone());
            assert_eq!(drafted, plain, "{drafter:?} at {temperature}");
            let counts = engine.stats().drafts[Drafter::Forced as usize];
            assert!(counts.num_accepted_tokens > 0, "{counts:?}");
            assert_eq!(counts.num_accepted_tokens, counts.num_draft_tokens);
        }
        let engine = engine(Speculative::Off);
        outcome(&engine, request);
        let counts = engine.stats().drafts[Drafter::Forced as usize];
        assert_eq!(counts.num_draft_tokens, 0, "off is off");
    }
}

/// A failing constraint ends its request with the tokens before, whoever drafts, and nobody else's.
#[test]
fn a_constraint_that_fails_or_panics_ends_its_request_alone() {
    for drafter in [Speculative::Off, Speculative::Auto, Speculative::Swift] {
        let engine = engine(drafter);
        let good = templated(&Template::new(Wrong::Nothing, 0), 1.0, 2);
        let (expected, _) = outcome(&engine, good.clone());
        for wrong in [Wrong::Fails, Wrong::MaskPanics, Wrong::AcceptPanics] {
            for at in [0, 1, 4, 12] {
                let mut beside = engine.submit(good.clone()).unwrap();
                let bad = templated(&Template::new(wrong, at), 1.0, 1);
                let (choices, error) = outcome(&engine, bad);
                let expected_tokens = &expected[0].token_ids[..choices[0].token_ids.len()];
                assert_eq!(choices[0].token_ids, expected_tokens);
                // What panics is gone, also where a draft came upon it.
                let is_exact = wrong == Wrong::Fails || drafter == Speculative::Off;
                assert!(
                    choices[0].token_ids.len() == at || !is_exact,
                    "{wrong:?} {at}"
                );
                let said = match wrong {
                    Wrong::Fails => "it is too deep",
                    _ => "it panicked",
                };
                assert_eq!(error, Some(EngineError::Constraint(said.to_owned())));
                let mut num_tokens = 0;
                while let Some(event) = beside.blocking_recv() {
                    assert!(!matches!(event, StreamEvent::Error(_)), "{event:?}");
                    num_tokens += usize::from(matches!(event, StreamEvent::Token { .. }));
                }
                assert_eq!(num_tokens, 2 * expected[0].token_ids.len());
            }
        }
        // Siblings are forks.
        let (_, error) = outcome(
            &engine,
            templated(&Template::new(Wrong::ForkPanics, 0), 1.0, 3),
        );
        assert!(
            matches!(error, Some(EngineError::Constraint(_))),
            "{error:?}"
        );
        let nonsense = templated(&Template::new(Wrong::ForcesNonsense, 4), 1.0, 2);
        assert_eq!(outcome(&engine, nonsense), (expected, None));
        assert!(engine.is_healthy());
    }
    let engine = engine(Speculative::Auto);
    let bad = templated(&Template::new(Wrong::ForcedPanics, 4), 1.0, 1);
    let (_, error) = outcome(&engine, bad);
    assert!(
        matches!(error, Some(EngineError::Constraint(_))),
        "{error:?}"
    );
    assert_eq!(engine.stats().num_invariant_violations, 0);
}

/// Steps up to the one in which the engine came to rest.
fn num_steps(engine: &EngineHandle) -> u64 {
    loop {
        let stats = engine.stats();
        if stats.num_requests_running + stats.num_requests_waiting == 0 {
            return engine.stats().num_steps;
        }
        std::thread::yield_now();
    }
}

/// A text that is complete ends, whatever else says that it should go on, and no pass follows the
/// token that ends it.
#[test]
fn a_complete_text_ends_at_once() {
    let template = Template::new(Wrong::Nothing, 0);
    let plain = templated(&template, 1.0, 1);
    let engine = engine(Speculative::Off);
    let (expected, _) = outcome(&engine, plain.clone());
    let num_tokens = expected[0].token_ids.len();
    for (min_tokens, ignore_eos) in [(0, false), (60, false), (0, true), (60, true)] {
        let mut request = plain.clone();
        request.params.min_tokens = min_tokens;
        request.params.ignore_eos = ignore_eos;
        let num_steps = num_steps(&engine);
        assert_eq!(outcome(&engine, request).0, expected);
        assert_eq!(self::num_steps(&engine) - num_steps, num_tokens as u64);
    }
    // A stop token that is the only one left, too.
    let mut request = plain.clone();
    request.params.eos_token_ids.clear();
    request.params.stop_token_ids = vec![EOS];
    request.params.min_tokens = 60;
    let (stopped, _) = outcome(&engine, request);
    assert_eq!(stopped[0].token_ids, expected[0].token_ids);
    assert_eq!(stopped[0].reason, Some(FinishReason::StopToken(EOS)));
}

#[test]
fn ends_wait_for_min_tokens_as_long_as_others_are_allowed() {
    for drafter in [Speculative::Off, Speculative::Auto] {
        let engine = engine(drafter);
        for ignore_eos in [false, true] {
            let mut request = templated(&Template::new(Wrong::Nothing, 0), 1.0, 4);
            request.constraint = Some(Box::new(AllowedTokens::new(VOCAB_SIZE, [EOS, 7, 8])));
            request.params.stop_token_ids = vec![7];
            request.params.min_tokens = 9;
            request.params.ignore_eos = ignore_eos;
            let (choices, error) = outcome(&engine, request);
            assert_eq!(error, None);
            for choice in choices {
                let (before, after) = choice.token_ids.split_at(9);
                assert!(before.iter().all(|id| *id == 8), "{choice:?}");
                let is_ended = choice.reason == Some(FinishReason::StopToken(7));
                let is_eos = choice.reason == Some(FinishReason::Eos);
                assert!(is_ended || (is_eos && !ignore_eos), "{choice:?}");
                assert!(after[..after.len() - 1].iter().all(|id| *id == 8));
            }
        }
    }
}
