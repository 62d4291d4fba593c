//! `tokenizer.json` of a Hugging Face folder.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::sentencepiece::SPACE;
use super::special::SpecialTokens;
use super::{Encoder, Inner, TokenizerError, byte_level, end_of_generation};

pub(super) fn load(folder: &Path) -> Result<Inner, TokenizerError> {
    let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Err(TokenizerError::Missing("tokenizer.json"));
    }
    let mut tokenizer = tokenizers::Tokenizer::from_file(path).map_err(invalid)?;
    let added = tokenizer.get_added_tokens_decoder();
    let (mut control, mut user_defined) = (Vec::new(), Vec::new());
    for (id, token) in &added {
        let list = if token.special {
            &mut control
        } else {
            &mut user_defined
        };
        list.push((token.content.clone(), *id));
    }
    // Special tokens are split off before the encoder sees a text.
    tokenizer.set_encode_special_tokens(true);
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let is_byte_level = vocab.contains_key("\u{120}");
    let alphabet = byte_level::alphabet();
    let mut bytes = vec![Vec::new(); size];
    let mut is_special = vec![false; size];
    for (token, id) in &vocab {
        let index = *id as usize;
        let is_added = added.contains_key(id);
        is_special[index] = added.get(id).is_some_and(|token| token.special);
        bytes[index] = match (is_added, is_byte_level, byte_of(token)) {
            (true, _, _) => token.as_bytes().to_vec(),
            (false, true, _) => byte_level::token_bytes(token, &alphabet),
            (false, false, Some(byte)) => vec![byte],
            (false, false, None) => token.replace(SPACE, " ").into_bytes(),
        };
    }
    let ids: HashMap<String, u32> = vocab.into_iter().collect();
    let config = read_json(&folder.join("tokenizer_config.json"));
    let generation = read_json(&folder.join("generation_config.json"));
    let named = |key: &str| {
        let token = &config[key];
        let text = token.as_str().or_else(|| token["content"].as_str());
        text.and_then(|text| ids.get(text).copied())
    };
    let eos_token_id = named("eos_token");
    let declared: Vec<Option<u32>> = match &generation["eos_token_id"] {
        Value::Array(list) => list.iter().map(as_id).collect(),
        one => vec![as_id(one)],
    };
    Ok(Inner {
        encoder: Encoder::Bpe(Box::new(tokenizer)),
        special: SpecialTokens::new(control, user_defined)?,
        bytes,
        end_of_generation: end_of_generation(
            declared.into_iter().chain([eos_token_id]),
            &ids,
            &is_special,
        ),
        is_special,
        bos_token_id: named("bos_token"),
        eos_token_id,
        add_bos: config["add_bos_token"].as_bool().unwrap_or(false),
        add_eos: config["add_eos_token"].as_bool().unwrap_or(false),
        ids,
    })
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or(Value::Null)
}

fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}
