//! Vectors as a client gets them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use super::request::EncodingFormat;
use crate::api::clock::unix_time;
use crate::model::encoder::normalise;

/// Vectors of texts, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingResponse {
    pub id: String,
    /// `list`
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub data: Vec<EmbeddingObject>,
    pub usage: TokenUsage,
}

/// The vector of one text.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingObject {
    /// `embedding`
    pub object: &'static str,
    pub index: usize,
    pub embedding: WrittenVector,
}

/// A vector's values, or their bytes in base64.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum WrittenVector {
    Values(Vec<f32>),
    Base64(String),
}

/// Tokens that were read.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct TokenUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

impl TokenUsage {
    pub(in crate::api) fn new(num_tokens: usize) -> Self {
        Self {
            prompt_tokens: num_tokens,
            total_tokens: num_tokens,
        }
    }
}

/// What becomes of a vector on its way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
    /// Values that are kept.
    pub dimensions: usize,
    pub normalise: bool,
    pub format: EncodingFormat,
}

impl Finish {
    fn write(self, mut vector: Vec<f32>) -> WrittenVector {
        vector.truncate(self.dimensions);
        if self.normalise {
            normalise(&mut vector);
        }
        match self.format {
            EncodingFormat::Float => WrittenVector::Values(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                WrittenVector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

pub(super) fn response(
    model: String,
    vectors: Vec<Vec<f32>>,
    num_tokens: usize,
    finish: Finish,
) -> EmbeddingResponse {
    let objects = vectors.into_iter().enumerate();
    let objects = objects.map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: finish.write(vector),
    });
    EmbeddingResponse {
        id: format!("embd-{}", uuid::Uuid::new_v4().simple()),
        object: "list",
        created: unix_time(),
        model,
        data: objects.collect(),
        usage: TokenUsage::new(num_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut_then_made_unit_vectors() {
        let finish = Finish {
            dimensions: 2,
            normalise: true,
            format: EncodingFormat::Float,
        };
        let WrittenVector::Values(values) = finish.write(vec![3.0, 4.0, 12.0]) else {
            panic!("floats were asked for");
        };
        assert_eq!(values, [0.6, 0.8]);
        let plain = Finish {
            normalise: false,
            format: EncodingFormat::Base64,
            ..finish
        };
        let WrittenVector::Base64(text) = plain.write(vec![1.0, -2.0, 9.0]) else {
            panic!("base64 was asked for");
        };
        assert_eq!(
            STANDARD.decode(text).unwrap(),
            [0, 0, 128, 63, 0, 0, 0, 192]
        );
    }
}
