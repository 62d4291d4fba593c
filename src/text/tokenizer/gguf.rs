//! The tokenizer in a GGUF file's metadata.

use std::sync::Arc;

use super::byte_bpe::{ByteBpe, Parts};
use super::ends::{self, end_of_generation};
use super::pre_tokenizers::{self, PreTokenizer};
use super::sentencepiece::{SPACE, SentencePiece};
use super::special::{SpecialTokens, Strips};
use super::vocabulary::{Texts, Vocabulary};
use super::{Encoder, Inner, TokenizerError, byte_level};
use crate::model::gguf::{Metadata, Strings};

#[cfg(test)]
mod tests;

/// Token types of `tokenizer.ggml.token_type`.
const TYPE_NORMAL: i64 = 1;
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;
const TYPE_BYTE: i64 = 6;

/// The tokens of a file, by their ids.
struct Tokens<'a> {
    texts: &'a Strings,
    /// Known ends are control tokens, whatever the file calls them.
    types: Vec<i64>,
    ids: Arc<Vocabulary>,
}

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let texts = metadata
            .get_str_array("tokenizer.ggml.tokens")
            .ok_or(TokenizerError::Missing("tokenizer.ggml.tokens"))?;
        let ids = texts.iter().map(str::as_bytes).zip(0..);
        let ids = Arc::new(Vocabulary::new(texts.len(), ids));
        let types = metadata.get_i64_array("tokenizer.ggml.token_type");
        let mut types = types.unwrap_or(&[]).to_vec();
        types.resize(texts.len(), TYPE_NORMAL);
        for id in ends::known(&ids) {
            types[id as usize] = TYPE_CONTROL;
        }
        Ok(Self { texts, types, ids })
    }

    fn of_type(&self, wanted: &[i64]) -> Vec<(String, u32)> {
        let tokens = self.texts.iter().zip(&self.types).zip(0..);
        let chosen = tokens.filter(|((_, one), _)| wanted.contains(one));
        chosen
            .map(|((text, _), id)| (text.to_owned(), id))
            .collect()
    }

    /// What `write` appends for each token, which is what it stands for, by its text and type.
    fn bytes(&self, write: impl Fn(&str, i64, &mut Vec<u8>)) -> Texts {
        let mut all = Texts::with_capacity(self.texts.len(), self.texts.num_bytes());
        for (text, one) in self.texts.iter().zip(&self.types) {
            all.push_with(|bytes| write(text, *one, bytes));
        }
        all
    }
}

pub(super) fn load(metadata: &Metadata) -> Result<Inner, TokenizerError> {
    let model = metadata
        .get_str("tokenizer.ggml.model")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.model"))?;
    let tokens = Tokens::read(metadata)?;
    let control = tokens.of_type(&[TYPE_CONTROL, TYPE_UNKNOWN]);
    let user_defined = tokens.of_type(&[TYPE_USER_DEFINED]);
    let strips = match (model, metadata.get_str("general.architecture")) {
        ("llama", Some("phi3")) => strips_of_phi3(control.iter().chain(&user_defined)),
        _ => Strips::default(),
    };
    let special = SpecialTokens::new(control, user_defined)?.with_strips(strips);
    let types = tokens.types.iter();
    let is_special: Vec<bool> = types
        .map(|one| matches!(*one, TYPE_CONTROL | TYPE_UNKNOWN))
        .collect();
    let id_of = |key: &str| {
        let id = metadata.get_u32(&format!("tokenizer.ggml.{key}_token_id"));
        id.filter(|id| (*id as usize) < tokens.texts.len())
    };
    let (encoder, bytes, adds_bos) = match model {
        "gpt2" => {
            let pre = metadata.get_str("tokenizer.ggml.pre").unwrap_or("default");
            let pre_tokenizer = pre_tokenizers::by_name(pre)
                .ok_or_else(|| TokenizerError::UnsupportedPreTokenizer(pre.to_owned()))?;
            let model = byte_level_bpe(metadata, &tokens.ids, pre_tokenizer)?;
            let encoder = Encoder::ByteBpe(Box::new(model));
            let alphabet = byte_level::alphabet();
            let bytes = tokens.bytes(|token, token_type, bytes| match token_type {
                TYPE_CONTROL | TYPE_UNKNOWN | TYPE_USER_DEFINED => {
                    bytes.extend_from_slice(token.as_bytes());
                }
                _ => alphabet.write(token, bytes),
            });
            (encoder, bytes, pre_tokenizer.adds_bos)
        }
        "llama" => {
            let model = sentencepiece(metadata, &tokens.ids, id_of("unknown"))?;
            let bytes = tokens.bytes(|token, token_type, bytes| match token_type {
                TYPE_BYTE => bytes.extend(byte_of(token)),
                _ => bytes.extend_from_slice(token.replace(SPACE, " ").as_bytes()),
            });
            (Encoder::SentencePiece(Box::new(model)), bytes, true)
        }
        other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
    };
    let flag = |key: &str| metadata.get_bool(&format!("tokenizer.ggml.{key}"));
    let is_whole = |id: u32| is_special.get(id as usize).copied().unwrap_or(false);
    let declared = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"].map(id_of);
    Ok(Inner {
        encoder,
        special,
        bytes,
        end_of_generation: end_of_generation(declared, &tokens.ids, is_whole),
        bos_token_id: id_of("bos"),
        eos_token_id: id_of("eos"),
        add_bos: flag("add_bos_token").unwrap_or(adds_bos),
        add_eos: flag("add_eos_token").unwrap_or(false),
        ids: tokens.ids,
        is_special,
    })
}

/// The marks of Phi-3's messages take the whitespace behind them along; GGUF files do not say so.
fn strips_of_phi3<'a>(tokens: impl Iterator<Item = &'a (String, u32)>) -> Strips {
    let others = ["<unk>", "<s>", "<|endoftext|>"];
    let marks = tokens.filter(|(text, _)| !others.contains(&text.as_str()));
    Strips {
        after: marks.map(|(_, id)| *id).collect(),
        ..Strips::default()
    }
}

fn byte_level_bpe(
    metadata: &Metadata,
    ids: &Vocabulary,
    pre_tokenizer: PreTokenizer,
) -> Result<ByteBpe, TokenizerError> {
    let merges = metadata
        .get_str_array("tokenizer.ggml.merges")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.merges"))?;
    let merges = merges
        .iter()
        .map(|merge| {
            // The first of a pair has a character at least, which may be a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge[first..].find(' ').map(|space| first + space);
            let pair = space.map(|space| (&merge[..space], &merge[space + 1..]));
            pair.ok_or_else(|| TokenizerError::Invalid(format!("merge {merge:?} is not a pair")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    ByteBpe::new(Parts {
        vocabulary: ids,
        merges: &merges,
        cut: pre_tokenizer.cut()?,
        ignores_merges: pre_tokenizer.ignores_merges,
        composes: false,
    })
}

fn sentencepiece(
    metadata: &Metadata,
    ids: &Arc<Vocabulary>,
    unknown_id: Option<u32>,
) -> Result<SentencePiece, TokenizerError> {
    let scores = metadata
        .get_f32_array("tokenizer.ggml.scores")
        .ok_or(TokenizerError::Missing("tokenizer.ggml.scores"))?;
    let byte_ids = std::array::from_fn(|byte| ids.get(format!("<0x{byte:02X}>")));
    Ok(SentencePiece {
        weights: SentencePiece::weights(ids, &byte_ids, unknown_id),
        ids: Arc::clone(ids),
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
