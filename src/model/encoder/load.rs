//! From a folder's tensors to packed layers.

use std::sync::Arc;

use ponder_kernels::{DenseMatrix, FeedForward, LayerNorm, ThreadPool, reference};

use super::forward::Scratch;
use super::{Classifier, Encoder, EncoderConfig, Layer};
use crate::model::finite::is_finite;
use crate::model::safetensors::SafetensorsDir;
use crate::model::weights::LoadError;

/// Tensors by their names behind the prefix that a whole model may have.
struct Tensors<'a> {
    folder: &'a SafetensorsDir,
    prefix: &'static str,
    eps: f32,
}

pub(super) fn load(
    folder: &SafetensorsDir,
    config: EncoderConfig,
    pool: Arc<ThreadPool>,
) -> Result<Encoder, LoadError> {
    let is_inside = folder
        .raw("bert.embeddings.word_embeddings.weight")?
        .is_some();
    let tensors = Tensors {
        folder,
        prefix: if is_inside { "bert." } else { "" },
        eps: config.layer_norm_eps,
    };
    let width = config.hidden_size;
    let embeddings = |name: &str, count: usize| {
        tensors.values(
            &format!("embeddings.{name}_embeddings.weight"),
            &[count, width],
        )
    };
    let layers = (0..config.num_layers).map(|index| layer(&tensors, &config, index));
    let classifier = match config.num_labels {
        Some(num_labels) => Some(Classifier {
            pooler: tensors.dense("pooler.dense", width, width)?,
            head: Tensors {
                prefix: "",
                ..tensors
            }
            .dense("classifier", num_labels, width)?,
        }),
        None => None,
    };
    Ok(Encoder {
        words: embeddings("word", config.vocab_size)?,
        positions: embeddings("position", config.max_position_embeddings)?,
        types: embeddings("token_type", config.type_vocab_size)?,
        embedding_norm: tensors.norm("embeddings.LayerNorm", width)?,
        layers: layers.collect::<Result<_, _>>()?,
        classifier,
        scratch: Scratch::default(),
        config,
        pool,
    })
}

fn layer(tensors: &Tensors<'_>, config: &EncoderConfig, index: usize) -> Result<Layer, LoadError> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let at = |name: &str| format!("encoder.layer.{index}.{name}");
    Ok(Layer {
        qkv: tensors.joined(
            ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}"))),
            width,
        )?,
        output: tensors.dense(&at("attention.output.dense"), width, width)?,
        output_norm: tensors.norm(&at("attention.output.LayerNorm"), width)?,
        feed_forward: FeedForward {
            up: tensors.dense(&at("intermediate.dense"), inner, width)?,
            activation: config.activation,
            down: tensors.dense(&at("output.dense"), width, inner)?,
        },
        feed_forward_norm: tensors.norm(&at("output.LayerNorm"), width)?,
    })
}

impl Tensors<'_> {
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.folder.raw(&name)?;
        let tensor = tensor.ok_or_else(|| LoadError::MissingTensor(name.clone()))?;
        if tensor.shape != shape {
            return Err(LoadError::WrongShape {
                name,
                expected: shape.to_vec(),
                actual: tensor.shape,
            });
        }
        if !is_finite(tensor.dtype, &tensor.data) {
            return Err(LoadError::NotFinite(name));
        }
        let mut values = vec![0.0; shape.iter().product()];
        reference::dequantize(tensor.dtype, &tensor.data, &mut values);
        Ok(values)
    }

    fn dense(&self, name: &str, out: usize, inputs: usize) -> Result<DenseMatrix, LoadError> {
        let weights = self.values(&format!("{name}.weight"), &[out, inputs])?;
        let bias = self.values(&format!("{name}.bias"), &[out])?;
        Ok(DenseMatrix::pack(&weights, &bias, inputs))
    }

    /// Square matrices of the same inputs as one.
    fn joined(&self, names: [String; 3], width: usize) -> Result<DenseMatrix, LoadError> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weights.extend(self.values(&format!("{name}.weight"), &[width, width])?);
            bias.extend(self.values(&format!("{name}.bias"), &[width])?);
        }
        Ok(DenseMatrix::pack(&weights, &bias, width))
    }

    fn norm(&self, name: &str, width: usize) -> Result<LayerNorm, LoadError> {
        // Checkpoints that were converted from TensorFlow have the old names.
        let either = |name: &str, new: &str, old: &str| match self
            .values(&format!("{name}.{new}"), &[width])
        {
            Err(LoadError::MissingTensor(missing)) => self
                .values(&format!("{name}.{old}"), &[width])
                .map_err(|error| match error {
                    LoadError::MissingTensor(_) => LoadError::MissingTensor(missing),
                    other => other,
                }),
            found => found,
        };
        Ok(LayerNorm {
            weight: either(name, "weight", "gamma")?,
            bias: either(name, "bias", "beta")?,
            eps: self.eps,
        })
    }
}
