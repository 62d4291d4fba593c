//! The tokens that end an answer.

use super::vocabulary::Vocabulary;

/// Texts of tokens that end an answer in one model or another, as in llama.cpp
/// (`src/llama-vocab.cpp`, `special_eog_ids`). They are control tokens even where a GGUF file calls
/// them normal.
const NAMES: [&str; 22] = [
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
];

/// Those that end what a model of code fills in: padding, and what the next file or repository
/// begins with.
const OF_FILLING: [&str; 11] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The tokens that end answers in some model.
pub(super) fn known(ids: &Vocabulary) -> impl Iterator<Item = u32> {
    NAMES.iter().filter_map(|name| ids.get(name))
}

/// Of [`NAMES`], those that end no answer of a model with other tokens.
///
/// Where a message has parts (gpt-oss, Solar Open), `<|end|>` ends one of them. Gemma and PLaMo
/// have an `</s>` that is a word; llama.cpp does not know that of Gemma 2 and 3.
fn is_ordinary(token: &str, has: impl Fn(&str) -> bool) -> bool {
    match token {
        "<|end|>" => {
            (has("<|call|>") || has("<|calls|>")) && (has("<|return|>") || has("<|flush|>"))
        }
        "</s>" => {
            let is_gemma = has("<eos>") && has("<end_of_turn>");
            is_gemma || has("<|tool_response>") || has("<|plamo:eos|>")
        }
        _ => false,
    }
}

/// The ids of the tokens that end an answer, ascending: those that the model's files declare, and
/// those of known names that are tokens of their own (`is_whole`) and not words of the vocabulary.
pub(super) fn end_of_generation(
    declared: impl IntoIterator<Item = Option<u32>>,
    ids: &Vocabulary,
    is_whole: impl Fn(u32) -> bool,
) -> Vec<u32> {
    let whole = |name: &str| ids.get(name).filter(|id| is_whole(*id));
    let named = NAMES.iter().chain(&OF_FILLING);
    let named = named.filter_map(|name| whole(name));
    let mut all: Vec<u32> = declared.into_iter().flatten().chain(named).collect();
    all.sort_unstable();
    all.dedup();
    let has = |name: &str| ids.get(name).is_some_and(|id| all.contains(&id));
    let ordinary: Vec<u32> = NAMES
        .iter()
        .filter(|name| is_ordinary(name, has))
        .filter_map(|name| ids.get(name))
        .collect();
    all.retain(|id| !ordinary.contains(id));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ends among `tokens`, the first of which the model's files declare.
    fn ends(tokens: &[&str]) -> Vec<u32> {
        let ids = tokens.iter().map(|token| token.as_bytes()).zip(0..);
        let ids = Vocabulary::new(tokens.len(), ids);
        // Words of the vocabulary are no ends, whatever they look like.
        let is_whole = |id: u32| !tokens[id as usize].starts_with('_');
        end_of_generation([Some(0), None], &ids, is_whole)
    }

    #[test]
    fn names_and_declared_tokens_end_answers() {
        assert_eq!(ends(&["x", "y", "<|im_end|>", "_<EOT>"]), [0, 2]);
        assert_eq!(
            ends(&["<|user|>", "<|endoftext|>", "<|observation|>"]),
            [0, 1]
        );
        assert_eq!(ends(&["<｜end▁of▁sentence｜>", "<|repo_name|>"]), [0, 1]);
    }

    #[test]
    fn a_part_of_a_message_is_no_end() {
        // Phi-4-mini; gpt-oss; Solar Open.
        assert_eq!(ends(&["<|endoftext|>", "<|end|>"]), [0, 1]);
        assert_eq!(ends(&["<|return|>", "<|end|>", "<|call|>"]), [0, 2]);
        assert_eq!(ends(&["<|flush|>", "<|end|>", "<|calls|>"]), [0, 2]);
        assert_eq!(ends(&["<|return|>", "<|end|>"]), [0, 1]);
        assert_eq!(ends(&["<turn|>", "</s>", "<|tool_response>"]), [0, 2]);
        assert_eq!(ends(&["<eos>", "<end_of_turn>", "</s>"]), [0, 1]);
        assert_eq!(ends(&["<|plamo:eos|>", "</s>"]), [0]);
    }
}
