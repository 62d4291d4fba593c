//! The tokenizer in a GGUF file's metadata.

use std::collections::HashMap;

use super::byte_bpe::{ByteBpe, Isolated, Parts, Pattern};
use super::sentencepiece::{SPACE, SentencePiece};
use super::special::SpecialTokens;
use super::{END_OF_GENERATION, Encoder, Inner, TokenizerError, byte_level, end_of_generation};
use crate::model::gguf::Metadata;

/// Token types of `tokenizer.ggml.token_type`.
const TYPE_NORMAL: i64 = 1;
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;
const TYPE_BYTE: i64 = 6;

pub(super) fn load(metadata: &Metadata) -> Result<Inner, TokenizerError> {
    let model = metadata
        .get_str("tokenizer.ggml.model")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.model"))?;
    let tokens = metadata
        .get_str_array("tokenizer.ggml.tokens")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.tokens"))?;
    let types = metadata
        .get_i64_array("tokenizer.ggml.token_type")
        .unwrap_or(&[]);
    let type_of = |index: usize| match tokens.get(index) {
        Some(token) if END_OF_GENERATION.contains(&token.as_str()) => TYPE_CONTROL,
        _ => types.get(index).copied().unwrap_or(TYPE_NORMAL),
    };
    let ids: HashMap<String, u32> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), id as u32))
        .collect();
    let of_type = |wanted: &[i64]| -> Vec<(String, u32)> {
        let chosen = tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| wanted.contains(&type_of(*id)));
        chosen
            .map(|(id, token)| (token.clone(), id as u32))
            .collect()
    };
    let special = SpecialTokens::new(
        of_type(&[TYPE_CONTROL, TYPE_UNKNOWN]),
        of_type(&[TYPE_USER_DEFINED]),
    )?;
    let is_special: Vec<bool> = (0..tokens.len())
        .map(|id| matches!(type_of(id), TYPE_CONTROL | TYPE_UNKNOWN))
        .collect();
    let pre = metadata.get_str("tokenizer.ggml.pre").unwrap_or("default");
    let id_of = |key: &str| {
        let id = metadata.get_u32(&format!("tokenizer.ggml.{key}_token_id"));
        id.filter(|id| (*id as usize) < tokens.len())
    };
    let (encoder, bytes, adds_bos) = match model {
        "gpt2" => {
            let encoder = Encoder::ByteBpe(Box::new(byte_level_bpe(metadata, &ids, pre)?));
            let alphabet = byte_level::alphabet();
            let bytes = tokens
                .iter()
                .enumerate()
                .map(|(id, token)| match type_of(id) {
                    TYPE_CONTROL | TYPE_UNKNOWN | TYPE_USER_DEFINED => token.as_bytes().to_vec(),
                    _ => byte_level::token_bytes(token, &alphabet),
                });
            (encoder, bytes.collect(), pre == "llama-bpe")
        }
        "llama" => {
            let model = sentencepiece(metadata, &ids, id_of("unknown"))?;
            let bytes = tokens
                .iter()
                .enumerate()
                .map(|(id, token)| match type_of(id) {
                    TYPE_BYTE => byte_of(token).map_or_else(Vec::new, |byte| vec![byte]),
                    _ => token.replace(SPACE, " ").into_bytes(),
                });
            (
                Encoder::SentencePiece(Box::new(model)),
                bytes.collect(),
                true,
            )
        }
        other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
    };
    let flag = |key: &str| metadata.get_bool(&format!("tokenizer.ggml.{key}"));
    let eos_token_id = id_of("eos");
    Ok(Inner {
        encoder,
        special,
        bytes,
        end_of_generation: end_of_generation(
            [eos_token_id, id_of("eot"), id_of("eom")],
            &ids,
            &is_special,
        ),
        ids,
        is_special,
        bos_token_id: id_of("bos"),
        eos_token_id,
        add_bos: flag("add_bos_token").unwrap_or(adds_bos),
        add_eos: flag("add_eos_token").unwrap_or(false),
    })
}

fn byte_level_bpe(
    metadata: &Metadata,
    ids: &HashMap<String, u32>,
    pre: &str,
) -> Result<ByteBpe, TokenizerError> {
    let merges = metadata
        .get_str_array("tokenizer.ggml.merges")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.merges"))?;
    let merges = merges
        .iter()
        .map(|merge| {
            let pair = merge.split_once(' ');
            pair.ok_or_else(|| TokenizerError::Invalid(format!("merge {merge:?} is no pair")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (isolated, pattern) = match pre {
        "smollm" => (Isolated::Numbers, Pattern::Gpt2),
        "qwen2" => (Isolated::Nothing, Pattern::Qwen2),
        "llama-bpe" | "llama3" | "llama-v3" => (Isolated::Nothing, Pattern::Llama3),
        "gpt-2" | "default" => (Isolated::Nothing, Pattern::Gpt2),
        other => return Err(TokenizerError::UnsupportedPreTokenizer(other.to_owned())),
    };
    ByteBpe::new(&Parts {
        vocabulary: ids,
        merges: &merges,
        pattern,
        isolated,
        ignores_merges: pattern == Pattern::Llama3,
        composes: false,
    })
}

fn sentencepiece(
    metadata: &Metadata,
    ids: &HashMap<String, u32>,
    unknown_id: Option<u32>,
) -> Result<SentencePiece, TokenizerError> {
    let scores = metadata
        .get_f32_array("tokenizer.ggml.scores")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.scores"))?;
    let byte_ids = std::array::from_fn(|byte| ids.get(&format!("<0x{byte:02X}>")).copied());
    Ok(SentencePiece {
        weights: SentencePiece::weights(ids, &byte_ids, unknown_id),
        ids: ids.clone(),
        scores: scores.to_vec(),
        byte_ids,
        unknown_id,
        add_space_prefix: metadata
            .get_bool("tokenizer.ggml.add_space_prefix")
            .unwrap_or(true),
    })
}

/// `<0x0A>` → 10
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use crate::model::ModelFiles;
    use crate::model::testing::GgufWriter;
    use crate::text::Tokenizer;

    /// Found by the fuzz target: an unknown character became a token that is none.
    #[test]
    fn ids_outside_of_the_vocabulary_are_nobodys() {
        let read = |unknown_id: u32| {
            let mut writer = GgufWriter::new();
            writer.string("tokenizer.ggml.model", "llama");
            writer.strings("tokenizer.ggml.tokens", &["<unk>", "a", "\u{2581}"]);
            writer.f32s("tokenizer.ggml.scores", &[0.0; 3]);
            writer.u32("tokenizer.ggml.unknown_token_id", unknown_id);
            writer.u32("tokenizer.ggml.bos_token_id", 63_232);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.gguf");
            std::fs::write(&path, writer.finish()).unwrap();
            let files = ModelFiles::open(&path).unwrap();
            let tokenizer = Tokenizer::from_files(&files).unwrap();
            tokenizer.encode("aé", true, false)
        };
        // Two bytes that no token stands for.
        assert_eq!(read(0).unwrap(), [2, 1, 0, 0]);
        assert_eq!(read(63_232).unwrap(), [2, 1]);
    }
}
