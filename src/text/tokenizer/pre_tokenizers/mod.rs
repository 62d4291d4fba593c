//! The pre-tokenisers of byte-level vocabularies, by the names that GGUF files have for them
//! (`tokenizer.ggml.pre`).
//!
//! Names and what belongs to them are those of llama.cpp's loader (`src/llama-vocab.cpp`, build
//! 11434). The patterns are those of the models' own `tokenizer.json`, as far as they are known:
//! llama.cpp's engine tells neither upper from lower case nor (in `gpt-4o` and `tekken`) marks from
//! symbols beyond ASCII, so that its words differ from the models' there.

mod patterns;
#[cfg(test)]
mod tests;

use super::TokenizerError;
use super::byte_bpe::{
    BEFORE_THREES, Cut, GPT2_PATTERN, IN_THREES, Isolated, Pattern, QWEN2_PATTERN, WORD_IN_THREES,
};
use patterns::*;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    words: Words,
    /// Whether a word that is a token needs no merges.
    pub ignores_merges: bool,
    /// Whether texts begin with BOS where a file does not say.
    pub adds_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    ByHand(Isolated, Pattern),
    /// The sources of patterns that are applied one after the other.
    Steps(&'static [&'static str]),
}

const GPT2: Words = Words::ByHand(Isolated::Nothing, Pattern::Gpt2);
const GPT2_AND_SINGLE_NUMBERS: Words = Words::ByHand(Isolated::Numbers, Pattern::Gpt2);
const LLAMA3: Words = Words::ByHand(Isolated::Nothing, Pattern::Llama3);
const QWEN2: Words = Words::ByHand(Isolated::Nothing, Pattern::Qwen2);

/// Names with the same words, what those are, and whether words that are tokens need no merges.
const GROUPS: &[(&[&str], Words, bool)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        GPT2,
        false,
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        GPT2_AND_SINGLE_NUMBERS,
        false,
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "glm4",
            "glm5",
        ],
        LLAMA3,
        true,
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], LLAMA3, false),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "megrez",
            "grok-2",
            "kormo",
            "f2llmv2",
        ],
        QWEN2,
        false,
    ),
    (&["qwen35"], Words::Steps(&[QWEN35]), false),
    (
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        Words::Steps(&[O200K]),
        false,
    ),
    (&["granite-embed-multi-97m"], Words::Steps(&[O200K]), true),
    (&["tekken"], Words::Steps(&[TEKKEN]), true),
    (&["kimi-k2"], Words::Steps(&[KIMI_K2]), false),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        Words::Steps(&[THREE_NUMBERS, CHINESE_AND_KANA, DEEPSEEK_V3]),
        false,
    ),
    (
        &["deepseek-llm"],
        Words::Steps(&[
            LINE_BREAKS,
            DEEPSEEK_LETTERS,
            DEEPSEEK_SYMBOLS,
            SPACES_AT_END,
            DEEPSEEK_CHINESE,
            RUNS_OF_NUMBERS,
        ]),
        false,
    ),
    (
        &["deepseek-coder"],
        Words::Steps(&[
            LINE_BREAKS,
            SPACE_AND_LETTERS,
            SPACE_AND_SYMBOLS,
            DEEPSEEK_CHINESE,
            SINGLE_NUMBERS,
        ]),
        false,
    ),
    (
        &["spark2_5"],
        Words::Steps(&[THREE_NUMBERS, CHINESE_AND_KANA, SPARK, SINGLE_NUMBERS]),
        false,
    ),
    (&["youtu"], Words::Steps(&[YOUTU_SCRIPTS, YOUTU]), true),
    (
        &["tiny_aya", "cohere2moe"],
        Words::Steps(&[WORD_IN_THREES, O200K]),
        false,
    ),
    (
        &["afmoe"],
        Words::Steps(&[IN_THREES, ASIAN_SCRIPTS, DEEPSEEK_V3]),
        false,
    ),
    (
        &["superbpe"],
        Words::Steps(&[RUNS_OF_NUMBERS, BEFORE_THREES]),
        false,
    ),
    (
        &["falcon"],
        Words::Steps(&[FALCON_SYMBOLS, GPT2_PATTERN, THREE_DIGITS]),
        false,
    ),
    (
        &["default"],
        Words::Steps(&[DEFAULT_SYMBOLS, GPT2_PATTERN, RUNS_OF_NUMBERS, THREE_DIGITS]),
        false,
    ),
    (
        &["chameleon"],
        Words::Steps(&[
            SENTINELS,
            IMAGES,
            INDENTATION,
            SINGLE_NUMBERS,
            SINGLE_SYMBOLS,
            GPT2_PATTERN,
        ]),
        false,
    ),
    (
        &["poro-chat", "bloom", "gpt3-finnish"],
        Words::Steps(&[BLOOM]),
        false,
    ),
    (&["viking"], Words::Steps(&[BLOOM, SINGLE_NUMBERS]), false),
    (
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        Words::Steps(&[BAILING]),
        false,
    ),
    (&["laguna"], Words::Steps(&[LINES, QWEN2_PATTERN]), false),
    (&["seed-coder"], Words::Steps(&[SEED_CODER]), false),
    (&["ufakzeka"], Words::Steps(&[UFAKZEKA]), false),
    (&["exaone-moe"], Words::Steps(&[EXAONE_MOE]), false),
    (
        &["minicpm5"],
        Words::Steps(&[THREE_NUMBERS, MINICPM5]),
        true,
    ),
    (&["jais-2"], Words::Steps(&[JAIS2]), false),
];

/// Those whose texts begin with BOS where a file does not say.
const ADDING_BOS: [&str; 11] = [
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

/// Every name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|(names, _, _)| *names).copied()
}

pub(super) fn by_name(name: &str) -> Option<PreTokenizer> {
    let mut groups = GROUPS.iter();
    let (_, words, ignores_merges) = groups.find(|(names, _, _)| names.contains(&name))?;
    Some(PreTokenizer {
        words: *words,
        ignores_merges: *ignores_merges,
        adds_bos: ADDING_BOS.contains(&name),
    })
}

/// The patterns of a name that has some.
#[cfg(test)]
pub(super) fn sources(name: &str) -> &'static [&'static str] {
    match by_name(name).map(|found| found.words) {
        Some(Words::Steps(sources)) => sources,
        _ => &[],
    }
}

impl PreTokenizer {
    /// # Errors
    /// As [`Cut::of_sources`].
    pub(super) fn cut(self) -> Result<Cut, TokenizerError> {
        match self.words {
            Words::ByHand(isolated, pattern) => Ok(Cut::ByHand(isolated, pattern)),
            Words::Steps(sources) => Cut::of_sources(sources),
        }
    }
}

/// Whether the pre-tokeniser that splits at the matches of each of `sources` in turn is one of
/// these, whose patterns are known to be run as the engine of `tokenizer.json` runs them.
pub(super) fn is_known(sources: &[&str]) -> bool {
    GROUPS.iter().any(|(_, words, _)| match words {
        Words::Steps(known) => *known == sources,
        Words::ByHand(..) => false,
    }) || matches!(sources, [one] if Pattern::of_source(one).is_some())
}

/// Whether every character is of a match of a known pattern.
pub(super) fn matches_all(source: &str) -> bool {
    is_known(&[source]) && source.ends_with(r"|\s+(?!\S)|\s+")
}
