//! What `config.json` says of an encoder.

use std::path::Path;

use ponder_kernels::Activation;
use serde_json::Value;

use super::{EncodeError, EncoderInput};
use crate::model::config::ConfigError;
use crate::model::fields::HfFields;
use crate::model::files::{MAX_JSON_BYTES, read_bounded};

/// Values of each size that a configuration may name: products of sizes stay far below what a
/// number holds.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1024;

/// The shape of a BERT.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f32,
    pub activation: Activation,
    /// Scores that a cross-encoder gives a pair; `None` for an encoder of single texts.
    pub num_labels: Option<usize>,
}

/// Whether a path is a folder whose `config.json` is that of an encoder that is served here.
pub fn is_encoder(path: &Path) -> bool {
    let text = read_bounded(&path.join("config.json"), MAX_JSON_BYTES).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    config["model_type"] == "bert"
}

impl EncoderConfig {
    pub(super) fn new(config: &Value) -> Result<Self, ConfigError> {
        let fields = HfFields(config);
        let unsupported = |what: String| Err(ConfigError::Invalid(what));
        match fields.text("model_type")? {
            Some("bert") => {}
            other => {
                let other = other.unwrap_or("nothing");
                return unsupported(format!("model_type is {other}; encoders served are: bert"));
            }
        }
        match fields.text("position_embedding_type")? {
            None | Some("absolute") => {}
            Some(other) => return unsupported(format!("position_embedding_type is {other}")),
        }
        if fields.flag("is_decoder")? == Some(true) {
            return unsupported("is_decoder is true".to_owned());
        }
        let activation = match fields.text("hidden_act")? {
            None | Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(other) => return unsupported(format!("hidden_act is {other}")),
        };
        let size = |key: &str| match fields.need_size(key)? {
            size @ 1..=MAX_SIZE => Ok(size),
            other => Err(ConfigError::Invalid(format!("{key} is {other}"))),
        };
        let own = Self {
            vocab_size: size("vocab_size")?,
            hidden_size: size("hidden_size")?,
            num_layers: size("num_hidden_layers")?,
            num_heads: size("num_attention_heads")?,
            intermediate_size: size("intermediate_size")?,
            max_position_embeddings: size("max_position_embeddings")?,
            type_vocab_size: fields.size("type_vocab_size")?.unwrap_or(2).min(MAX_SIZE),
            layer_norm_eps: fields.number("layer_norm_eps")?.unwrap_or(1e-12),
            activation,
            num_labels: num_labels(config),
        };
        if !own.hidden_size.is_multiple_of(own.num_heads) || own.num_layers > MAX_LAYERS {
            let Self {
                hidden_size,
                num_heads,
                num_layers,
                ..
            } = own;
            return unsupported(format!(
                "{num_layers} layers of {hidden_size} values in {num_heads} heads"
            ));
        }
        Ok(own)
    }

    /// Whether the model can read a sequence.
    ///
    /// # Errors
    /// When the sequence is empty, too long, or has tokens that the model does not know.
    pub fn check(&self, input: EncoderInput<'_>) -> Result<(), EncodeError> {
        let (len, max) = (input.token_ids.len(), self.max_position_embeddings);
        if len == 0 || len > max {
            return Err(EncodeError::Length { len, max });
        }
        if input.second_from < len && self.type_vocab_size < 2 {
            return Err(EncodeError::NoPairs);
        }
        let vocab_size = self.vocab_size;
        let mut ids = input.token_ids.iter();
        match ids.find(|id| **id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(EncodeError::TokenOutOfRange {
                id: *id,
                vocab_size,
            }),
        }
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

fn num_labels(config: &Value) -> Option<usize> {
    let names = config["architectures"].as_array()?;
    let classifies = |name: &Value| name == "BertForSequenceClassification";
    names.iter().find(|name| classifies(name))?;
    let listed = config["id2label"].as_object().map(serde_json::Map::len);
    let counted = config["num_labels"].as_u64().map(|count| count as usize);
    // What transformers has when nothing is said.
    Some(listed.or(counted).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({"model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12})
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(EncoderConfig::new(&config()).unwrap().num_labels, None);
        for (key, value) in [
            ("model_type", json!("roberta")),
            ("position_embedding_type", json!("relative_key")),
            ("hidden_act", json!("selu")),
            ("is_decoder", json!(true)),
            ("hidden_size", json!(0)),
            ("vocab_size", json!(u64::MAX)),
            ("num_attention_heads", json!("two")),
            ("num_attention_heads", json!(3)),
            ("intermediate_size", Value::Null),
        ] {
            let mut config = config();
            config[key] = value;
            assert!(EncoderConfig::new(&config).is_err(), "{key}");
        }
    }

    #[test]
    fn labels_are_counted() {
        let mut config = config();
        config["architectures"] = json!(["BertForSequenceClassification"]);
        let labels = |config: &Value| EncoderConfig::new(config).unwrap().num_labels;
        assert_eq!(labels(&config), Some(2));
        config["id2label"] = json!({"0": "LABEL_0"});
        assert_eq!(labels(&config), Some(1));
    }
}
