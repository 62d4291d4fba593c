//! Tokenizers built from GGUF metadata or `tokenizer.json`.

mod byte_bpe;
mod byte_level;
mod ends;
mod foreign;
mod gguf;
mod hf;
#[cfg(test)]
mod llama_cpp;
mod pre_tokenizers;
mod sentencepiece;
mod special;
#[cfg(test)]
pub(super) mod tests;
mod vocabulary;
mod watch;
mod weights;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::model::ModelFiles;
use crate::model::gguf::Metadata;
use byte_bpe::ByteBpe;
use foreign::Foreign;
use sentencepiece::SentencePiece;
use special::{Fragment, SpecialTokens};
use vocabulary::{Texts, Vocabulary};
use watch::{PIECE_BYTES, Watch};

/// Why a tokenizer cannot be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("the model file has no tokenizer ({0} is missing)")]
    Missing(&'static str),
    #[error(
        "tokenizer.ggml.model {0:?} is not supported; gpt2 (byte-level BPE) and llama (SentencePiece) are"
    )]
    UnsupportedModel(String),
    #[error(
        "tokenizer.ggml.pre {0:?} is not supported; of byte-level vocabularies these are: {known}",
        known = pre_tokenizers::names().collect::<Vec<_>>().join(", ")
    )]
    UnsupportedPreTokenizer(String),
    #[error("the tokenizer is inconsistent: {0}")]
    Invalid(String),
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error(
        "the text of {num_bytes} bytes has more than the {max_tokens} tokens that there is room for; shorten it"
    )]
    TooLong { max_tokens: usize, num_bytes: usize },
    #[error("nobody waits for the tokens of this text any more")]
    Stopped,
}

/// How plain text between special tokens becomes ids.
enum Encoder {
    ByteBpe(Box<ByteBpe>),
    SentencePiece(Box<SentencePiece>),
    Foreign(Box<Foreign>),
}

struct Inner {
    encoder: Encoder,
    special: SpecialTokens,
    /// The bytes each token stands for.
    bytes: Texts,
    ids: Arc<Vocabulary>,
    is_special: Vec<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
}

/// A model's tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

impl Tokenizer {
    /// The tokenizer of a GGUF file or of a folder's `tokenizer.json`.
    pub fn from_files(files: &ModelFiles) -> Result<Self, TokenizerError> {
        match files {
            ModelFiles::Gguf(file) => Self::from_metadata(file.metadata()),
            ModelFiles::Safetensors(folder) => {
                let inner = Arc::new(hf::load(folder.path())?);
                Ok(Self { inner })
            }
        }
    }

    /// The tokenizer in the metadata of a GGUF file.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let inner = Arc::new(gguf::load(metadata)?);
        Ok(Self { inner })
    }

    /// The tokenizer in the bytes of a `tokenizer.json`, without the files beside it.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let inner = Arc::new(hf::parse(json, &Value::Null, &Value::Null)?);
        Ok(Self { inner })
    }

    /// Token ids of a text that is known to be short. `add_special` adds what the model puts around a text (BOS,
    /// say); `parse_special` reads control tokens such as `<|im_start|>` in the text.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, add_special, parse_special, usize::MAX, &|| true)
    }

    /// As [`Self::encode`], for a text whose length somebody else chose: `max_tokens` ids at most.
    ///
    /// A text between special tokens whose bytes alone show that it has more is refused before any work. Work and memory are otherwise
    /// bounded by the limit and one piece of [`PIECE_BYTES`], except for a single word without a boundary and
    /// for pipelines of `tokenizer.json` that are run as a whole; both are bounded by the limit times the
    /// bytes that a token can stand for. `is_wanted` is asked between pieces.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`], and [`TokenizerError::Stopped`] when `is_wanted` says so.
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        max_tokens: usize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut watch = Watch::new(text.len(), max_tokens, is_wanted, PIECE_BYTES);
        self.encode_watched(text, (add_special, parse_special), None, &mut watch)
    }

    /// A text that [`Self::encode_guarded`] reads without control tokens, wherever it stands in
    /// another one: `marker`, a character that the text does not have, breaks them up. Behind a
    /// text whose end could begin a control token, nothing completes the token.
    pub fn guard<'a>(&self, text: &'a str, marker: char) -> Cow<'a, str> {
        self.inner.special.guard(text, marker)
    }

    /// As [`Self::encode_within`] with control tokens, but for those that `marker` breaks up. The
    /// markers themselves have no tokens.
    ///
    /// # Errors
    /// Those of [`Self::encode_within`].
    pub fn encode_guarded(
        &self,
        text: &str,
        marker: char,
        max_tokens: usize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut watch = Watch::new(text.len(), max_tokens, is_wanted, PIECE_BYTES);
        self.encode_watched(text, (false, true), Some(marker), &mut watch)
    }

    fn encode_watched(
        &self,
        text: &str,
        (add_special, parse_special): (bool, bool),
        marker: Option<char>,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let inner = &*self.inner;
        // Places in a text are 32 bits wide.
        if text.len() >= u32::MAX as usize / 4 {
            return Err(watch.too_long());
        }
        let mut ids = Vec::new();
        if add_special && inner.add_bos {
            ids.extend(inner.bos_token_id);
        }
        let mut is_after_special = true;
        for fragment in inner.special.split(text, parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    watch.spend(1)?;
                    ids.push(id);
                    is_after_special = true;
                }
                Fragment::Text(text) => {
                    let text = match marker {
                        Some(marker) if text.contains(marker) => {
                            Cow::Owned(text.replace(marker, ""))
                        }
                        _ => Cow::Borrowed(text),
                    };
                    let text = text.as_ref();
                    watch.spend(text.len())?;
                    match &inner.encoder {
                        Encoder::ByteBpe(model) => model.encode(text, watch, &mut ids)?,
                        Encoder::SentencePiece(model) => {
                            model.encode(text, is_after_special, watch, &mut ids)?;
                        }
                        Encoder::Foreign(model) => model.encode(text, watch, &mut ids)?,
                    }
                    is_after_special = false;
                }
            }
            watch.check_room(ids.len())?;
        }
        if add_special && inner.add_eos {
            ids.extend(inner.eos_token_id);
        }
        watch.check_room(ids.len())?;
        Ok(ids)
    }

    /// The text of a whole sequence; bytes that are not UTF-8 turn into U+FFFD.
    pub fn decode(&self, token_ids: &[u32], skip_special: bool) -> String {
        let bytes: Vec<u8> = token_ids
            .iter()
            .filter(|id| !(skip_special && self.is_special(**id)))
            .flat_map(|id| self.token_bytes(*id))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token stands for; empty for ids outside the vocabulary.
    pub fn token_bytes(&self, token_id: u32) -> &[u8] {
        self.inner.bytes.get(token_id as usize).unwrap_or(&[])
    }

    /// A token's text, lossy when it is part of a character.
    pub fn token_text(&self, token_id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(token_id)).into_owned()
    }

    /// Control tokens, which `skip_special` leaves out of texts.
    pub fn is_special(&self, token_id: u32) -> bool {
        self.inner
            .is_special
            .get(token_id as usize)
            .copied()
            .unwrap_or(false)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.ids.get(token)
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// Whether [`Self::encode`] with `add_special` begins with [`Self::bos_token_id`].
    pub fn adds_bos(&self) -> bool {
        self.inner.add_bos
    }

    pub fn bos_token_id(&self) -> Option<u32> {
        self.inner.bos_token_id
    }

    pub fn eos_token_id(&self) -> Option<u32> {
        self.inner.eos_token_id
    }

    /// Every token that ends an answer.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.inner.end_of_generation
    }
}
