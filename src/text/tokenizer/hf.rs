//! `tokenizer.json` of a Hugging Face folder.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::byte_bpe::{ByteBpe, Cut, Isolated, Parts, Pattern};
use super::ends::end_of_generation;
use super::foreign::Foreign;
use super::pre_tokenizers;
use super::sentencepiece::SPACE;
use super::special::{SpecialTokens, Strips};
use super::vocabulary::Vocabulary;
use super::{Encoder, Inner, TokenizerError, byte_level};
use crate::model::files::{MAX_JSON_BYTES, read_bounded};

/// Ids may be so many more than there are tokens: tables by id have a place for each.
const MAX_UNUSED_IDS: usize = 1 << 16;

pub(super) fn load(folder: &Path) -> Result<Inner, TokenizerError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Err(TokenizerError::Missing("tokenizer.json"));
    }
    let json = read_bounded(&path, MAX_JSON_BYTES)
        .map_err(|error| TokenizerError::Invalid(format!("tokenizer.json: {error}")))?;
    parse(
        &json,
        &read_json(&folder.join("tokenizer_config.json")),
        &read_json(&folder.join("generation_config.json")),
    )
}

/// The tokenizer of `tokenizer.json` and what the files beside it say of it (null where there is none).
pub(super) fn parse(
    json: &[u8],
    config: &Value,
    generation: &Value,
) -> Result<Inner, TokenizerError> {
    let mut tokenizer = pipeline(json)?;
    let added: Added = tokenizer.get_added_tokens_decoder().into_iter().collect();
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
    let (bytes, is_special) = tables(&vocab, &added)?;
    let ids = Arc::new(Vocabulary::from(&vocab));
    drop(vocab);
    let named = |key: &str| {
        let token = &config[key];
        let text = token.as_str().or_else(|| token["content"].as_str());
        text.and_then(|text| ids.get(text))
    };
    let eos_token_id = named("eos_token");
    let declared: Vec<Option<u32>> = match &generation["eos_token_id"] {
        Value::Array(list) => list.iter().map(as_id).collect(),
        one => vec![as_id(one)],
    };
    let with = |strips: fn(&tokenizers::AddedToken) -> bool| {
        let chosen = added.iter().filter(|(_, token)| strips(token));
        chosen.map(|(id, _)| *id).collect()
    };
    let strips = Strips {
        before: with(|token| token.lstrip),
        after: with(|token| token.rstrip),
    };
    let special = SpecialTokens::new(control, user_defined)?.with_strips(strips);
    let parsed: Value =
        serde_json::from_slice(json).map_err(|error| TokenizerError::Invalid(error.to_string()))?;
    let encoder = match known(&parsed, &special)? {
        Some(model) => Encoder::ByteBpe(Box::new(model)),
        None => {
            let has_patterns =
                has_pattern(&parsed["pre_tokenizer"]) || has_pattern(&parsed["normalizer"]);
            Encoder::Foreign(Box::new(Foreign::new(tokenizer, has_patterns)?))
        }
    };
    Ok(Inner {
        encoder,
        special,
        bytes: bytes.iter().map(Vec::as_slice).collect(),
        end_of_generation: end_of_generation(
            declared.into_iter().chain([eos_token_id]),
            &ids,
            |id| added.contains_key(&id),
        ),
        is_special,
        bos_token_id: named("bos_token"),
        eos_token_id,
        add_bos: config["add_bos_token"].as_bool().unwrap_or(false),
        add_eos: config["add_eos_token"].as_bool().unwrap_or(false),
        ids,
    })
}

/// The file as the `tokenizers` crate reads it, which panics on parts that are not as it expects.
fn pipeline(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let invalid = |why: String| TokenizerError::Invalid(format!("tokenizer.json: {why}"));
    catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|_| invalid("one of its parts is broken".to_owned()))?
        .map_err(|error| invalid(error.to_string()))
}

type Added = HashMap<u32, tokenizers::AddedToken>;

/// By id: what a token stands for, and whether it is special.
fn tables(
    vocab: &HashMap<String, u32>,
    added: &Added,
) -> Result<(Vec<Vec<u8>>, Vec<bool>), TokenizerError> {
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    if size > vocab.len() + MAX_UNUSED_IDS {
        let message = format!("{} tokens have ids up to {}", vocab.len(), size - 1);
        return Err(TokenizerError::Invalid(message));
    }
    let is_byte_level = vocab.contains_key("\u{120}");
    let alphabet = byte_level::alphabet();
    let mut bytes = vec![Vec::new(); size];
    let mut is_special = vec![false; size];
    let mut is_taken = vec![false; size];
    let is_added = |token: &str, id: &u32| added.get(id).is_some_and(|one| one.content == token);
    for (token, id) in vocab {
        let index = *id as usize;
        let is_added = is_added(token, id);
        // An added token may take the place of one of the model's.
        let is_replaced = !is_added && added.contains_key(id);
        if is_replaced {
            continue;
        }
        if std::mem::replace(&mut is_taken[index], true) {
            let message = format!("id {id} is that of {token:?} and of another token");
            return Err(TokenizerError::Invalid(message));
        }
        is_special[index] = added.get(id).is_some_and(|token| token.special);
        bytes[index] = match (is_added, is_byte_level, byte_of(token)) {
            (true, _, _) => token.as_bytes().to_vec(),
            (false, true, _) => {
                let mut bytes = Vec::with_capacity(token.len());
                alphabet.write(token, &mut bytes);
                bytes
            }
            (false, false, Some(byte)) => vec![byte],
            (false, false, None) => token.replace(SPACE, " ").into_bytes(),
        };
    }
    Ok((bytes, is_special))
}

/// The pipeline as our own byte-level encoder, when it is one that this is the same as.
fn known(json: &Value, special: &SpecialTokens) -> Result<Option<ByteBpe>, TokenizerError> {
    let model = &json["model"];
    let composes = json["normalizer"]["type"] == "NFC";
    let is_plain = model["type"] == "BPE"
        && matches!(model["dropout"].as_f64(), None | Some(0.0))
        && has_every_byte(&model["vocab"])
        && ["continuing_subword_prefix", "end_of_word_suffix"]
            .iter()
            .all(|key| model[*key].as_str().unwrap_or("").is_empty())
        && (composes && special.have_only_ascii() || json["normalizer"].is_null());
    let (Some(cut), true) = (cut_of(&json["pre_tokenizer"])?, is_plain) else {
        return Ok(None);
    };
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array())
    else {
        return Ok(None);
    };
    let vocabulary: Option<HashMap<String, u32>> = vocabulary
        .iter()
        .map(|(token, id)| Some((token.clone(), as_id(id)?)))
        .collect();
    let merges: Option<Vec<(&str, &str)>> = merges
        .iter()
        // As the files of merges that older tokenizers were converted from begin.
        .filter(|merge| {
            !merge
                .as_str()
                .is_some_and(|one| one.starts_with("#version"))
        })
        .map(|merge| match merge {
            Value::Array(pair) if pair.len() == 2 => Some((pair[0].as_str()?, pair[1].as_str()?)),
            one => one.as_str()?.split_once(' '),
        })
        .collect();
    let (Some(vocabulary), Some(merges)) = (vocabulary, merges) else {
        return Ok(None);
    };
    ByteBpe::new(Parts {
        vocabulary: &Vocabulary::from(&vocabulary),
        merges: &merges,
        cut,
        ignores_merges: model["ignore_merges"].as_bool().unwrap_or(false),
        composes,
    })
    .map(Some)
}

/// Whether a step of a pipeline splits by a regular expression of the file.
fn has_pattern(step: &Value) -> bool {
    match step {
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key == "Regex" || has_pattern(value)),
        Value::Array(steps) => steps.iter().any(has_pattern),
        _ => false,
    }
}

/// Whether no byte is unknown, so that it does not matter what unknown ones become.
fn has_every_byte(vocabulary: &Value) -> bool {
    let alphabet = byte_level::alphabet();
    let mut characters = alphabet.iter();
    characters.all(|(character, _)| vocabulary[character.to_string()].is_u64())
}

/// How a pre-tokeniser cuts texts, when that is known.
fn cut_of(pre_tokenizer: &Value) -> Result<Option<Cut>, TokenizerError> {
    let one = std::slice::from_ref(pre_tokenizer);
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) if pre_tokenizer["type"] == "Sequence" => steps.as_slice(),
        _ => one,
    };
    let Some((last, before)) = steps.split_last() else {
        return Ok(None);
    };
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return Ok(None);
    }
    // A step without this field splits.
    let splits = last["use_regex"].as_bool().unwrap_or(true);
    let by_hand = |isolated, pattern| Ok(Some(Cut::ByHand(isolated, pattern)));
    match (before, splits) {
        ([], true) => by_hand(Isolated::Nothing, Pattern::Gpt2),
        ([], false) => by_hand(Isolated::Nothing, Pattern::Whole),
        ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => {
            by_hand(Isolated::Numeric, Pattern::Gpt2)
        }
        (splits, false) => match splits.iter().map(isolating).collect::<Option<Vec<_>>>() {
            Some(sources) if pre_tokenizers::is_known(&sources) => {
                Cut::of_sources(&sources).map(Some)
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// The pattern of a step whose matches, and what is between them, are pieces.
fn isolating(step: &Value) -> Option<&str> {
    let source = step["pattern"]["Regex"].as_str()?;
    let is_isolating = match step["behavior"].as_str()? {
        "Isolated" => step["invert"] == false,
        // What is between matches is removed, which is nothing.
        "Removed" => step["invert"] == true && pre_tokenizers::matches_all(source),
        _ => false,
    };
    (step["type"] == "Split" && is_isolating).then_some(source)
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn read_json(path: &Path) -> Value {
    let text = read_bounded(path, MAX_JSON_BYTES).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or(Value::Null)
}

fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzz target: the crate's parser of decoders panics on what is no JSON, that of normalizers on
    /// a `precompiled_charsmap` that is none.
    #[test]
    fn parts_on_which_the_crate_panics_are_errors() {
        let whole = |part: &str| {
            format!(
                r#"{{"version": "1.0", {part}, "model": {{"type": "BPE", "vocab": {{}}, "merges": []}}}}"#
            )
        };
        for part in [
            r#""decoder": {"type": "ByteLevel", "trim_offsets": false, 4, "A": 65}"#,
            r#""decoder": {"type": "#,
            r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}"#,
        ] {
            let refused = parse(whole(part).as_bytes(), &Value::Null, &Value::Null);
            assert!(matches!(refused, Err(TokenizerError::Invalid(_))), "{part}");
        }
        let fair = whole(r#""decoder": null"#);
        assert!(parse(fair.as_bytes(), &Value::Null, &Value::Null).is_ok());
    }
}
