//! Searches under a constraint: every branch keeps to it, wherever steps end.

use std::sync::Arc;

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    ConstraintError, Drafter, EngineConfig, EngineError, EngineHandle, SamplingParams, Speculative,
    SpeculativeConfig, TokenConstraint, TokenId, TokenMask,
};
use ponder::reward::Likelihood;
use ponder::search::{
    BranchConstraint, End, EnginePolicy, Expansion, Policy, STRATEGIES, Search, SearchError,
    SearchOutcome, StepRule,
};
use ponder::text::Tokenizer;
use serde_json::{Value, json};

use crate::search::{one, spec};

const CHARS: &str = "[],n0123456789abcdefghijklmopqrstuvwxyz";
const END: TokenId = 39;

/// One token a character; `n` ends a line. A vocabulary with GPT-2's space is one of bytes.
fn tokenizer() -> Tokenizer {
    let chars = CHARS.chars().map(|c| match c {
        'n' => 'Ċ',
        'a' => 'Ġ',
        _ => c,
    });
    let vocab: serde_json::Map<String, Value> = (chars.enumerate())
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": false, "use_regex": false});
    let end = json!({"id": END, "content": "<end>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [end], "normalizer": null, "pre_tokenizer": byte_level,
        "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap()
}

/// Lists of digits and lists, at most four deep, that close once they are long.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    accepted: Vec<char>,
    is_ended: bool,
    fails_at: Option<usize>,
}

impl Lists {
    fn depth(&self) -> usize {
        let count = |wanted| self.accepted.iter().filter(|c| **c == wanted).count();
        count('[') - count(']')
    }

    /// What may come next; nothing where the text is complete.
    fn next(&self) -> String {
        let last = self.accepted.iter().rev().find(|c| **c != 'n');
        let is_long = self.accepted.len() > 30;
        let depth = self.depth();
        match last {
            None => "[".to_owned(),
            Some(_) if depth == 0 => String::new(),
            Some('[') if is_long => "]".to_owned(),
            Some('[' | ',') if is_long => "1".to_owned(),
            Some('[') if depth < 4 => "[]123".to_owned(),
            Some(',') if depth < 4 && self.accepted.last() == Some(&'n') => "[123".to_owned(),
            Some(',') if self.accepted.last() == Some(&'n') => "123".to_owned(),
            // A line ends behind every comma.
            Some(',') => "n".to_owned(),
            Some('[') => "]123".to_owned(),
            Some(_) if is_long => "]".to_owned(),
            Some(_) => ",]".to_owned(),
        }
    }
}

fn char_of(token_id: TokenId) -> Option<char> {
    CHARS.chars().nth(token_id as usize)
}

impl TokenConstraint for Lists {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        if self.fails_at.is_some_and(|at| self.accepted.len() >= at) {
            return Err(ConstraintError("it is too long".to_owned()));
        }
        let next = self.next();
        let allowed = (0..END).filter(|id| char_of(*id).is_some_and(|c| next.contains(c)));
        allowed.for_each(|id| mask.allow(id));
        if next.is_empty() && !self.is_ended {
            mask.allow(END);
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let next = self.next();
        match char_of(token_id) {
            Some(c) if next.contains(c) => self.accepted.push(c),
            None if token_id == END && next.is_empty() && !self.is_ended => self.is_ended = true,
            _ => return false,
        }
        true
    }

    fn rollback(&mut self, mut num_tokens: usize) {
        if num_tokens > 0 && std::mem::take(&mut self.is_ended) {
            num_tokens -= 1;
        }
        self.accepted.truncate(self.accepted.len() - num_tokens);
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let mut state = self.clone();
        let mut forced = Vec::new();
        while forced.len() < most && state.next().len() == 1 {
            let c = state.next().remove(0);
            state.accepted.push(c);
            forced.extend(CHARS.find(c).map(|id| id as TokenId));
        }
        forced
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

pub fn engine() -> EngineHandle {
    let config = EngineConfig {
        max_model_len: 256,
        max_num_seqs: 16,
        max_num_batched_tokens: 128,
        block_size: 16,
        num_blocks: 400,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig {
            ignores_costs: true,
            ..SpeculativeConfig::default()
        },
    };
    let model = FakeModel::new(40, Fault::None);
    EngineHandle::start(Box::new(model), config).unwrap()
}

/// Continues a short prompt.
pub fn policy(
    engine: &EngineHandle,
    constraint: Option<Lists>,
    speculative: Speculative,
    max_tokens: usize,
) -> EnginePolicy {
    let params = SamplingParams {
        max_tokens,
        seed: 3,
        eos_token_ids: vec![END],
        ..SamplingParams::default()
    };
    EnginePolicy {
        constraint: constraint.map(|lists| BranchConstraint::new(Box::new(lists))),
        speculative: Some(speculative),
        ..EnginePolicy::new(Arc::new(engine.clone()), tokenizer(), vec![7, 8, 9], params)
    }
}

async fn search(
    engine: &EngineHandle,
    strategy: &str,
    constraint: Lists,
    speculative: Speculative,
    max_tokens: usize,
) -> Result<SearchOutcome, SearchError> {
    let spec = spec(
        json!({"strategy": strategy, "n": 4, "reward": {"kind": "likelihood"},
        "step": {"delimiter": "\n"}}),
    );
    let policy = policy(engine, Some(constraint), speculative, max_tokens);
    let scorer = one(Likelihood);
    Search::new(&policy, Some(&scorer), &spec, None).run().await
}

#[tokio::test]
async fn whole_trees_keep_to_the_constraint() {
    for strategy in STRATEGIES.iter().map(|strategy| strategy.name()) {
        let engine = engine();
        let run = |speculative| search(&engine, strategy, Lists::default(), speculative, 200);
        let plain = run(Speculative::Off).await.unwrap();
        assert!(!plain.answers.is_empty(), "{strategy}");
        for answer in &plain.answers {
            assert_eq!(answer.end, End::Stop, "{strategy}: {}", answer.text);
            let parsed = serde_json::from_str::<Vec<Value>>(&answer.text);
            assert!(parsed.is_ok(), "{strategy}: {:?}", answer.text);
        }
        let whole = ["auto", "self_consistency", "deepconf", "best_of_n"];
        if !whole.contains(&strategy) {
            assert!(
                plain.tree.nodes.len() > plain.answers.len() + 1,
                "{strategy} has steps"
            );
        }
        let drafted = run(Speculative::PromptLookup).await.unwrap();
        let texts = |outcome: &SearchOutcome| -> Vec<String> {
            outcome.answers.iter().map(|a| a.text.clone()).collect()
        };
        assert_eq!(texts(&drafted), texts(&plain), "{strategy}");
        let counts = ponder::engine::Backend::stats(&engine).drafts[Drafter::Forced as usize];
        assert!(counts.num_accepted_tokens > 0, "{strategy}");
        // Cut answers say so.
        let cut = search(&engine, strategy, Lists::default(), Speculative::Off, 3).await;
        let is_cut = |end: End| matches!(end, End::Length | End::Cut | End::Stop);
        assert!(cut.unwrap().answers.iter().all(|answer| is_cut(answer.end)));
    }
}

#[tokio::test]
async fn a_constraint_that_fails_ends_the_search_with_its_message() {
    let engine = engine();
    for strategy in ["best_of_n", "beam", "vm_mcts"] {
        let failing = Lists {
            fails_at: Some(6),
            ..Lists::default()
        };
        let failed = search(&engine, strategy, failing, Speculative::Off, 200).await;
        let Err(SearchError::Engine(EngineError::Constraint(message))) = failed else {
            panic!("{strategy} goes on: {failed:?}");
        };
        assert_eq!(message, "it is too long");
    }
}

#[tokio::test]
async fn the_engine_notes_where_steps_of_whole_answers_end() {
    let engine = engine();
    let mut policy = policy(&engine, None, Speculative::Off, 100);
    policy.params.hidden_state = true;
    policy.params.ignore_eos = true;
    let most_tokens = 6;
    let source = Expansion {
        prefix: Vec::new(),
        prefix_text: String::new(),
        inserted: Vec::new(),
        branch_path: vec![0],
        n: 4,
        priority: 0.0,
        step: None,
        noted_step: Some(StepRule::delimiter("1", most_tokens)),
        confidence: None,
    };
    let mut running = policy.start(vec![source.clone()]).await.unwrap();
    let (mut num_full, mut num_delimited) = (0, 0);
    while let Some(finished) = running.next().await {
        let sample = finished.unwrap().continuation;
        assert_eq!(sample.token_ids.len(), 100);
        let pieces = policy.pieces(&sample.token_ids);
        // A token is a character: a step is as long as allowed, or ends with its first 1.
        let mut begin = 0;
        for end in &sample.step_ends {
            let step = pieces[begin..end.num_tokens].concat();
            let (before, last) = step.split_at(step.len() - 1);
            assert!(!before.contains('1'), "{step:?}");
            match (last, end.num_tokens - begin) {
                ("1", _) => num_delimited += 1,
                (_, len) => {
                    assert_eq!(len, most_tokens, "{step:?}");
                    num_full += 1;
                }
            }
            assert!(end.hidden_state.is_some());
            begin = end.num_tokens;
        }
        // The first 16 of at least 16.
        assert_eq!(sample.step_ends.len(), 16);
        let ends: Vec<usize> = sample.step_ends.iter().map(|end| end.num_tokens).collect();
        assert_eq!(policy.step_ends(&source, &sample.token_ids, &[]), ends);
    }
    assert!(
        num_full > 0 && num_delimited > 0,
        "{num_full} {num_delimited}"
    );
}
