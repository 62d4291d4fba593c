//! A small tokenizer, and texts drawn at random under a constraint.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::engine::{TokenConstraint, TokenId, TokenMask};
use crate::grammar::{Grammar, GrammarError, Grammars};
use crate::text::Tokenizer;
use crate::work::Budget;

/// Places behind the tokenizer's last token, as models have them.
const NUM_PADDING: usize = 45;

/// Pieces that are tokens of several bytes.
const WORDS: [&str; 24] = [
    "{\"", "\": ", "\", \"", "\"}", "[{", "}]", "tr", "ue", "true", "nu", "ll", "null", "12",
    "123", "00", "  ", "\n\n", "}\n", "<t", "ab", "cat", "ée", "\": \"", "0.5",
];

const SPECIAL: [&str; 18] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<think>",
    "</think>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<|tool|>",
    "<|im_start|>",
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
];

/// GPT-2's characters for bytes.
fn alphabet() -> Vec<char> {
    let is_shown = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut character = |byte: u32| match is_shown(byte) {
        true => byte,
        false => {
            next += 1;
            next - 1
        }
    };
    (0..256)
        .map(|byte| char::from_u32(character(byte)).unwrap())
        .collect()
}

/// A byte-level tokenizer. `<tool_call>` and its end are tokens, but not special ones.
pub(super) fn tokenizer(special: &[&str]) -> Tokenizer {
    let alphabet = alphabet();
    let mut vocabulary = Map::new();
    for character in &alphabet {
        vocabulary.insert(character.to_string(), vocabulary.len().into());
    }
    let mut merges = Vec::new();
    for word in WORDS {
        let characters = word.bytes().map(|byte| alphabet[byte as usize]);
        let mut whole = String::new();
        for character in characters {
            let left = whole.clone();
            whole.push(character);
            if !left.is_empty() && !vocabulary.contains_key(&whole) {
                merges.push(format!("{left} {character}"));
                vocabulary.insert(whole.clone(), vocabulary.len().into());
            }
        }
    }
    let added = |(index, (content, special)): (usize, (&str, bool))| {
        json!({"id": vocabulary.len() + index, "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
    };
    let plain = [("<tool_call>", false), ("</tool_call>", false)];
    let all = special.iter().map(|name| (*name, true)).chain(plain);
    let added: Vec<Value> = all.enumerate().map(added).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges}
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

/// Grammars over the small vocabulary.
pub(super) struct Small {
    pub(super) tokenizer: Tokenizer,
    pub(super) grammars: Grammars,
    pub(super) vocab_size: usize,
}

impl Small {
    fn new(special: &[&str]) -> Self {
        let tokenizer = tokenizer(special);
        let vocab_size = tokenizer.vocab_size() + NUM_PADDING;
        let grammars = Grammars::new(&tokenizer, vocab_size).unwrap();
        Self {
            tokenizer,
            grammars,
            vocab_size,
        }
    }

    pub(super) fn id(&self, name: &str) -> TokenId {
        self.tokenizer.token_to_id(name).unwrap()
    }

    pub(super) fn compile(
        &self,
        grammar: &Grammar,
    ) -> Result<Box<dyn TokenConstraint>, GrammarError> {
        self.grammars.compile(grammar, &Budget::default())
    }

    pub(super) fn mask(&self, constraint: &mut dyn TokenConstraint) -> TokenMask {
        let mut mask = TokenMask::none(self.vocab_size);
        constraint.mask(&mut mask).unwrap();
        mask
    }

    pub(super) fn may_end(&self, constraint: &mut dyn TokenConstraint) -> bool {
        self.mask(constraint).is_allowed(self.id("<|im_end|>"))
    }

    /// Whether a whole text is in the grammar's language, in its usual tokenization.
    pub(super) fn accepts(&self, grammar: &Grammar, text: &str) -> bool {
        let mut constraint = self.compile(grammar).unwrap();
        let token_ids = self.tokenizer.encode(text, false, true).unwrap();
        token_ids.iter().all(|id| constraint.accept(*id)) && self.may_end(&mut *constraint)
    }
}

/// The vocabulary with all marks as special tokens.
pub(super) fn small() -> &'static Small {
    static SMALL: OnceLock<Small> = OnceLock::new();
    SMALL.get_or_init(|| Small::new(&SPECIAL))
}

/// The vocabulary with nothing but ends as special tokens.
pub(super) fn plain() -> &'static Small {
    static PLAIN: OnceLock<Small> = OnceLock::new();
    PLAIN.get_or_init(|| Small::new(&SPECIAL[..2]))
}

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// How a text was drawn.
#[derive(Debug)]
pub(super) enum Drawn {
    Whole(String),
    /// There was no end within the tokens.
    /// There was no end within the tokens.
    Cut,
}

/// Draws tokens uniformly from those that are allowed, with a bias to what ends strings, lists and
/// the text. Takes tokens back now and then, and goes on in forks.
pub(super) fn draw(
    small: &Small,
    mut constraint: Box<dyn TokenConstraint>,
    rng: &mut Rng,
    max_tokens: usize,
) -> Drawn {
    let mut token_ids = Vec::new();
    let end = small.id("<|im_end|>");
    let closes = |id: &TokenId| {
        let bytes = small.tokenizer.token_bytes(*id);
        bytes
            .first()
            .is_some_and(|byte| b"\"}]),)\n;".contains(byte))
            || *id == end
    };
    while token_ids.len() < max_tokens {
        let mask = small.mask(&mut *constraint);
        if rng.chance(5) {
            constraint = constraint.fork();
        }
        let allowed: Vec<TokenId> = (0..small.vocab_size as u32)
            .filter(|id| mask.is_allowed(*id))
            .collect();
        assert!(!allowed.is_empty(), "nothing is allowed");
        let closing: Vec<TokenId> = allowed.iter().copied().filter(closes).collect();
        let percent = 30 + 65 * token_ids.len() / max_tokens;
        let from = match !closing.is_empty() && rng.chance(percent) {
            true => &closing,
            false => &allowed,
        };
        let token_id = match mask.is_allowed(end) && rng.chance(percent) {
            true => end,
            false => from[rng.below(from.len())],
        };
        assert!(constraint.accept(token_id), "the mask allowed {token_id}");
        if rng.chance(10) {
            constraint.rollback(1);
            assert!(constraint.accept(token_id), "it was allowed before");
        }
        if token_id == end || token_id == small.id("<|eot_id|>") {
            assert!(!constraint.accept(end), "nothing follows the end");
            return Drawn::Whole(small.tokenizer.decode(&token_ids, false));
        }
        token_ids.push(token_id);
    }
    Drawn::Cut
}
