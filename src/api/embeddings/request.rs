//! What a client asks of `/v1/embeddings`, checked.

use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{
    AnyOfBuilder, ArrayBuilder, ArrayItems, ObjectBuilder, Schema, Type,
};

use crate::api::error::ApiError;

/// Texts of one request (OpenAI's limit).
pub(in crate::api) const MAX_INPUTS: usize = 2048;

/// A text or its token ids, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings or token ids"
)]
pub enum EmbeddingInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// A text, texts, token ids, or lists of token ids.
fn input_schema() -> Schema {
    let array = |items: Schema, max_items: Option<usize>| {
        let items = ArrayItems::RefOrSchema(Box::new(items.into()));
        let array = ArrayBuilder::new().items(items).min_items(Some(1));
        Schema::from(array.max_items(max_items))
    };
    let text = || Schema::from(ObjectBuilder::new().schema_type(Type::String));
    let tokens = || {
        let token = ObjectBuilder::new().schema_type(Type::Integer);
        array(token.minimum(Some(0)).into(), None)
    };
    let either = AnyOfBuilder::new()
        .item(text())
        .item(array(text(), Some(MAX_INPUTS)))
        .item(tokens())
        .item(array(tokens(), Some(MAX_INPUTS)));
    either.into()
}

/// What to make vectors of, and how.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// The encoder where there is one, else the served model.
    pub model: Option<String>,
    #[schema(schema_with = input_schema)]
    pub input: EmbeddingInput,
    /// `float` or `base64` (little-endian 32-bit floats).
    #[schema(default = "float")]
    pub encoding_format: Option<EncodingFormat>,
    /// Keep so many of the vector's first values, and make what is left a unit vector again.
    #[schema(minimum = 1)]
    pub dimensions: Option<u64>,
    /// Who the end user is, for the log.
    pub user: Option<String>,
    /// Cut longer texts to so many tokens, -1 for the most that the model reads; without it they
    /// are refused.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
    /// Put the model's own marks around texts; token ids are taken as they are.
    #[schema(default = true)]
    pub add_special_tokens: Option<bool>,
    /// Make unit vectors.
    #[schema(default = true)]
    pub normalize: Option<bool>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

impl EmbeddingInput {
    /// How many texts, or lists of tokens.
    pub(super) fn check(&self) -> Result<usize, ApiError> {
        let count = match self {
            Self::Text(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::Tokens(tokens) => usize::from(!tokens.is_empty()),
            Self::TokenLists(lists) => lists.len(),
        };
        match count {
            1..=MAX_INPUTS => Ok(count),
            _ => Err(ApiError::invalid(
                "input",
                format!(
                    "input takes 1 to {MAX_INPUTS} texts or lists of token ids; this has {count}"
                ),
            )),
        }
    }
}

/// How many values of a vector are kept, of `size`.
pub(super) fn dimensions(wanted: Option<u64>, size: usize) -> Result<usize, ApiError> {
    let Some(wanted) = wanted else {
        return Ok(size);
    };
    let kept = usize::try_from(wanted).ok();
    kept.filter(|kept| (1..=size).contains(kept))
        .ok_or_else(|| {
            let message =
                format!("dimensions must be 1 to {size}, the length of this model's vectors");
            ApiError::invalid("dimensions", message)
        })
}

/// Tokens that longer texts are cut to; `None` where they are refused.
pub(in crate::api) fn truncation(
    wanted: Option<i64>,
    max_len: usize,
) -> Result<Option<usize>, ApiError> {
    match wanted {
        None => Ok(None),
        Some(-1) => Ok(Some(max_len)),
        Some(wanted) => {
            let kept = usize::try_from(wanted).ok();
            let kept = kept.filter(|kept| (1..=max_len).contains(kept));
            kept.map(Some).ok_or_else(|| {
                let message = format!(
                    "truncate_prompt_tokens must be -1 or 1 to {max_len}, what this model reads"
                );
                ApiError::invalid("truncate_prompt_tokens", message)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(dimensions(None, 8).unwrap(), 8);
        assert_eq!(dimensions(Some(8), 8).unwrap(), 8);
        for wrong in [0, 9, u64::MAX] {
            let error = dimensions(Some(wrong), 8).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("dimensions"));
        }
        assert_eq!(truncation(None, 8).unwrap(), None);
        assert_eq!(truncation(Some(-1), 8).unwrap(), Some(8));
        assert_eq!(truncation(Some(3), 8).unwrap(), Some(3));
        for wrong in [0, 9, -2, i64::MIN] {
            assert!(truncation(Some(wrong), 8).is_err());
        }
    }

    #[test]
    fn inputs_are_counted() {
        let count = |json: &str| {
            let input: EmbeddingInput = serde_json::from_str(json).unwrap();
            input.check().ok()
        };
        assert_eq!(count(r#""""#), Some(1));
        assert_eq!(count(r#"["a", "b"]"#), Some(2));
        assert_eq!(count("[1, 2, 3]"), Some(1));
        assert_eq!(count("[[1], [2, 3]]"), Some(2));
        assert_eq!(count("[]"), None);
        let many = serde_json::to_string(&vec!["a"; MAX_INPUTS + 1]).unwrap();
        assert_eq!(count(&many), None);
        for wrong in ["1", "[-1]", "[1.5]", r#"["a", 1]"#, "null", "{}"] {
            assert!(serde_json::from_str::<EmbeddingInput>(wrong).is_err());
        }
    }
}
