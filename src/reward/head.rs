//! Classification heads on a hidden state.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::value_head::{MAX_NUMBER, ValueHead, ValueHeadError, tensors};

/// From a hidden state to a score in 0..=1.
#[derive(Debug, Clone)]
pub enum Head {
    /// A head of `ponder train value-head`.
    Value(ValueHead),
    /// Linear layers with ReLU between them; one output is a logit, of two outputs the second class counts.
    Classifier(Vec<Linear>),
}

/// `y = W x + b`
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    weight: Vec<f32>,
    /// `[out]`
    bias: Vec<f32>,
}

/// Names of the layers of heads that are published: a token classifier (TRL, transformers), Qwen2.5-Math-PRM's
/// two layers, Skywork's value head.
const LAYOUTS: [&[&str]; 4] = [
    &["score.0", "score.2"],
    &["score"],
    &["classifier"],
    &["v_head.summary"],
];

impl Head {
    /// Reads the head in a safetensors file, for states of `hidden_size` numbers.
    pub fn load(path: &Path, hidden_size: usize) -> Result<Self, ValueHeadError> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        if let Some(head) = Self::read(&file, hidden_size)? {
            return Ok(head);
        }
        if file.tensor(tensors::MEAN).is_err() {
            return Err(ValueHeadError::Tensor {
                name: "score.weight",
                message: "the file has none, nor another head's tensors".to_owned(),
            });
        }
        let head = ValueHead::load(path, hidden_size)?;
        match head.reads_likelihood() {
            // The likelihood is that of the policy, which this model is not.
            true => Err(ValueHeadError::Tensor {
                name: tensors::MEAN,
                message: "the head reads the policy's likelihood: train it with --no-likelihood"
                    .to_owned(),
            }),
            false => Ok(Self::Value(head)),
        }
    }

    /// Looks through the files of a model's folder.
    pub fn find(folder: &Path, hidden_size: usize) -> Result<Option<Self>, ValueHeadError> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let bytes = ponder_kernels::MappedFile::open(&path)?;
            let file = SafeTensors::deserialize(&bytes)?;
            if let Some(head) = Self::read(&file, hidden_size)? {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    fn read(file: &SafeTensors<'_>, hidden_size: usize) -> Result<Option<Self>, ValueHeadError> {
        let has = |layer: &&str| file.tensor(&format!("{layer}.weight")).is_ok();
        let Some(layout) = LAYOUTS.iter().find(|layers| layers.iter().all(has)) else {
            return Ok(None);
        };
        let mut layers = Vec::new();
        let mut inputs = hidden_size;
        for layer in *layout {
            let layer = Linear::read(file, layer, inputs)?;
            inputs = layer.bias.len();
            layers.push(layer);
        }
        match inputs {
            1 | 2 => Ok(Some(Self::Classifier(layers))),
            _ => Err(ValueHeadError::Tensor {
                name: layout[layout.len() - 1],
                message: format!("has {inputs} outputs; a head has 1 or 2"),
            }),
        }
    }

    /// The score of a state.
    pub fn value(&self, state: &[f32]) -> f64 {
        let layers = match self {
            Self::Value(head) => return head.value(state, 0.0),
            Self::Classifier(layers) => layers,
        };
        let mut x = state.to_vec();
        // A state that is not finite has no score.
        if !x.iter().all(|x| x.is_finite()) {
            return 0.0;
        }
        for (index, layer) in layers.iter().enumerate() {
            if index > 0 {
                x.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            x = layer.apply(&x);
        }
        let logit = match x.as_slice() {
            [logit] => f64::from(*logit),
            [bad, good] => f64::from(*good) - f64::from(*bad),
            _ => 0.0,
        };
        let value = 1.0 / (1.0 + (-logit).exp());
        // Nor has one from which numbers come that are too large to be told apart.
        if value.is_nan() { 0.0 } else { value }
    }
}

impl Linear {
    fn read(
        file: &SafeTensors<'_>,
        layer: &'static str,
        inputs: usize,
    ) -> Result<Self, ValueHeadError> {
        let weight = floats(file, layer, "weight")?.unwrap_or_default();
        let shape = file.tensor(&format!("{layer}.weight"));
        let shape = shape.map_or_else(|_| Vec::new(), |tensor| tensor.shape().to_vec());
        let (outputs, actual) = match shape.as_slice() {
            [actual] => (1, *actual),
            [outputs, actual] if *outputs > 0 => (*outputs, *actual),
            _ => {
                return Err(ValueHeadError::Tensor {
                    name: layer,
                    message: format!("its weight is {shape:?}, not [outputs, {inputs}]"),
                });
            }
        };
        if actual != inputs {
            return Err(ValueHeadError::HiddenSize {
                expected: inputs,
                actual,
            });
        }
        let bias = floats(file, layer, "bias")?.unwrap_or_else(|| vec![0.0; outputs]);
        if bias.len() != outputs {
            return Err(ValueHeadError::Tensor {
                name: layer,
                message: format!("has {outputs} outputs and {} biases", bias.len()),
            });
        }
        Ok(Self { weight, bias })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(x.len().max(1)).zip(&self.bias);
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        rows.map(|(row, bias)| dot(row) + bias).collect()
    }
}

/// A tensor as f32; `None` where it is absent.
fn floats(
    file: &SafeTensors<'_>,
    layer: &'static str,
    part: &str,
) -> Result<Option<Vec<f32>>, ValueHeadError> {
    let Ok(tensor) = file.tensor(&format!("{layer}.{part}")) else {
        return Ok(None);
    };
    let data = tensor.data();
    let pairs = || data.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => {
            let (words, _) = data.as_chunks::<4>();
            words
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect()
        }
        Dtype::F16 => pairs()
            .map(|b| half::f16::from_le_bytes(*b).to_f32())
            .collect(),
        Dtype::BF16 => pairs()
            .map(|b| half::bf16::from_le_bytes(*b).to_f32())
            .collect(),
        other => {
            return Err(ValueHeadError::Tensor {
                name: layer,
                message: format!("is {other:?}, not F32, F16 or BF16"),
            });
        }
    };
    match values.iter().all(|value| value.abs() <= MAX_NUMBER) {
        true => Ok(Some(values)),
        false => Err(ValueHeadError::Tensor {
            name: layer,
            message: format!("holds numbers that are not finite or above {MAX_NUMBER}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn bf16s(values: &[f32]) -> Vec<u8> {
        let bytes = |v: &f32| half::bf16::from_f32(*v).to_le_bytes();
        values.iter().flat_map(bytes).collect()
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn published_layouts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let state = [1.0, -2.0];
        // Two layers with ReLU: hidden = max(0, [1 - 2, -1 + 2 + 0.5]) = [0, 1.5], logits = [0.5, 3].
        write(
            &path,
            &[
                (
                    "score.0.weight",
                    Dtype::BF16,
                    vec![2, 2],
                    bf16s(&[1.0, 1.0, -1.0, -1.0]),
                ),
                ("score.0.bias", Dtype::BF16, vec![2], bf16s(&[0.0, 0.5])),
                (
                    "score.2.weight",
                    Dtype::F32,
                    vec![2, 2],
                    f32s(&[4.0, 0.0, 9.0, 2.0]),
                ),
                ("score.2.bias", Dtype::F32, vec![2], f32s(&[0.5, 0.0])),
            ],
        );
        let head = Head::load(&path, 2).unwrap();
        assert!((head.value(&state) - sigmoid(2.5)).abs() < 1e-9);
        let found = Head::find(folder.path(), 2).unwrap().unwrap();
        assert_eq!(found.value(&state), head.value(&state));
        // One value, without a bias.
        write(
            &path,
            &[(
                "v_head.summary.weight",
                Dtype::F32,
                vec![1, 2],
                f32s(&[3.0, 1.0]),
            )],
        );
        let head = Head::load(&path, 2).unwrap();
        assert!((head.value(&state) - sigmoid(1.0)).abs() < 1e-9);
        let refused = Head::load(&path, 1).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the head reads states of 2 numbers; this model's have 1"
        );
        // Two classes whose logits are both infinite.
        write(
            &path,
            &[(
                "score.weight",
                Dtype::F32,
                vec![2, 2],
                f32s(&[1e9, 0.0, 1e9, 0.0]),
            )],
        );
        let head = Head::load(&path, 2).unwrap();
        assert_eq!(head.value(&[1e30, 0.0]), 0.0);
        write(
            &path,
            &[("score.weight", Dtype::F32, vec![3, 2], f32s(&[0.0; 6]))],
        );
        assert!(Head::load(&path, 2).is_err(), "three classes");
        write(&path, &[("other", Dtype::F32, vec![1], f32s(&[0.0]))]);
        assert!(Head::find(folder.path(), 2).unwrap().is_none());
        assert!(Head::load(&path, 2).is_err());
    }
}
