//! `suffix`: filling the middle of a text, by models that have tokens for it.

use super::messages::encode;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::text::Tokenizer;
use crate::work::Budget;

/// Spellings of the tokens before the beginning, before the end and before the middle of a text:
/// of Qwen and Gemma, StarCoder and Granite, SantaCoder, DeepSeek, CodeLlama.
const SPELLINGS: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// The suffix of a text, ready to be put around prompts.
pub(super) struct Filling {
    /// Before the beginning, before the end, before the middle.
    marks: [u32; 3],
    suffix: Vec<u32>,
    bos: Option<u32>,
}

impl Filling {
    /// `None` without a suffix.
    pub fn new(
        suffix: Option<&str>,
        add_special: bool,
        served: &Served,
        budget: &Budget,
    ) -> Result<Option<Self>, ApiError> {
        let Some(suffix) = suffix.filter(|suffix| !suffix.is_empty()) else {
            return Ok(None);
        };
        let tokenizer = &served.tokenizer;
        let marks = marks(tokenizer).ok_or_else(|| {
            let message = "this model has no tokens to fill the middle of a text: leave suffix out, \
                or serve a model that has (qwen2.5-coder, say)";
            ApiError::invalid("suffix", message)
        })?;
        let encoded = encode(served, suffix, (false, true), budget);
        let bos = tokenizer.bos_token_id();
        Ok(Some(Self {
            marks,
            suffix: encoded.map_err(|error| ApiError {
                param: Some("suffix".to_owned()),
                ..error
            })?,
            bos: bos.filter(|_| add_special && tokenizer.adds_bos()),
        }))
    }

    /// The prompt whose continuation is the middle between `prefix` and the suffix.
    pub fn around(&self, prefix: &[u32]) -> Vec<u32> {
        let [before_start, before_end, before_middle] = self.marks;
        let prefix = match self.bos {
            Some(bos) => prefix.strip_prefix(&[bos]).unwrap_or(prefix),
            None => prefix,
        };
        let start = self.bos.into_iter().chain([before_start]);
        let end = [before_end].into_iter().chain(self.suffix.iter().copied());
        let middle = [before_middle];
        start
            .chain(prefix.iter().copied())
            .chain(end)
            .chain(middle)
            .collect()
    }
}

fn marks(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    SPELLINGS.iter().find_map(|[start, end, middle]| {
        let id = |spelling: &str| tokenizer.token_to_id(spelling);
        Some([id(start)?, id(end)?, id(middle)?])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(special: [&str; 3]) -> Tokenizer {
        let mut vocab = serde_json::Map::from_iter([("a".to_owned(), json!(0))]);
        let mut added = Vec::new();
        for (index, token) in special.iter().enumerate() {
            vocab.insert((*token).to_owned(), json!(index + 1));
            added.push(json!({"id": index + 1, "content": token, "special": true,
                "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}));
        }
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": false, "use_regex": false});
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level,
            "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn every_spelling_is_found() {
        for spelling in SPELLINGS {
            assert_eq!(marks(&tokenizer(spelling)), Some([1, 2, 3]), "{spelling:?}");
        }
        assert_eq!(
            marks(&tokenizer(["<|fim_prefix|>", "<fim_suffix>", "x"])),
            None
        );
    }

    #[test]
    fn the_suffix_comes_before_the_middle() {
        let filling = |bos| Filling {
            marks: [1, 2, 3],
            suffix: vec![7, 8],
            bos,
        };
        assert_eq!(filling(None).around(&[5, 6]), [1, 5, 6, 2, 7, 8, 3]);
        assert_eq!(filling(Some(9)).around(&[5]), [9, 1, 5, 2, 7, 8, 3]);
        assert_eq!(filling(Some(9)).around(&[9, 5]), [9, 1, 5, 2, 7, 8, 3]);
        assert_eq!(filling(None).around(&[]), [1, 2, 7, 8, 3]);
    }
}
