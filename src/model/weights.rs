//! Named tensors from either kind of file, under their GGUF names.

use std::borrow::Cow;
use std::ops::Range;

use ponder_kernels::{DType, ThreadPool, reference};

use super::config::ConfigError;
use super::finite::is_finite_on;
use super::gguf::GgufFile;
use super::ops::{Ops, OpsError};
use super::quantize::Quantizer;

/// Why a model's weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("tensor {0:?} is missing")]
    MissingTensor(String),
    #[error("tensor {name:?} is {actual:?}, not {expected:?}")]
    WrongShape {
        name: String,
        expected: Vec<usize>,
        actual: Vec<usize>,
    },
    #[error("tensor {name:?}: {source}")]
    Pack { name: String, source: OpsError },
    #[error("tensor {0:?} holds numbers that are not finite")]
    NotFinite(String),
    #[error("tensor {name:?} has type {dtype}, which is not supported")]
    UnsupportedType { name: String, dtype: String },
}

/// A tensor's bytes as they lie in the file.
pub struct RawTensor<'a> {
    pub dtype: DType,
    /// Innermost last: a matrix is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    pub data: Cow<'a, [u8]>,
}

/// Where tensors come from.
pub trait WeightSource {
    /// The tensor with this GGUF name.
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError>;

    /// The tensor was packed: its file pages can go, so that a load never holds the model twice.
    fn release(&self, _name: &str) {}
}

/// Tensors of one shape and type as one, `[parts, ...]`, up to the first that is missing; `None` when that is the first of all.
pub(super) fn joined<'a>(
    name: impl Fn(usize) -> String,
    tensor: impl Fn(&str) -> Result<Option<RawTensor<'a>>, LoadError>,
) -> Result<Option<RawTensor<'a>>, LoadError> {
    let Some(mut all) = tensor(&name(0))? else {
        return Ok(None);
    };
    let mut data = all.data.into_owned();
    let mut count = 1;
    while let Some(next) = tensor(&name(count))? {
        if next.shape != all.shape || next.dtype != all.dtype {
            return Err(LoadError::WrongShape {
                name: name(count),
                expected: all.shape,
                actual: next.shape,
            });
        }
        data.extend_from_slice(&next.data);
        count += 1;
    }
    all.shape.insert(0, count);
    all.data = Cow::Owned(data);
    Ok(Some(all))
}

/// GGUF files of Mixtral's first months hold `blk.N.ffn_gate.E.weight` of each expert E instead of `blk.N.ffn_gate_exps.weight`.
fn expert_alone(name: &str) -> Option<impl Fn(usize) -> String> {
    let part = name.strip_suffix("_exps.weight")?;
    Some(move |expert| format!("{part}.{expert}.weight"))
}

impl WeightSource for GgufFile {
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        let tensor = |name: &str| {
            Ok(GgufFile::tensor(self, name).map(|(info, data)| RawTensor {
                dtype: info.dtype,
                shape: info.dimensions.iter().rev().copied().collect(),
                data: Cow::Borrowed(data),
            }))
        };
        match (tensor(name)?, expert_alone(name)) {
            (None, Some(alone)) => joined(alone, tensor),
            (found, _) => Ok(found),
        }
    }

    fn release(&self, name: &str) {
        GgufFile::release(self, name);
        if let Some(alone) = expert_alone(name) {
            (0..)
                .map(alone)
                .take_while(|name| GgufFile::tensor(self, name).is_some())
                .for_each(|name| GgufFile::release(self, &name));
        }
    }
}

/// Which outputs of a tensor are meant, of how many: some files hold several projections in one.
pub(super) struct Outputs {
    rows: Range<usize>,
    all: usize,
}

impl Outputs {
    pub(super) fn all(count: usize) -> Self {
        Self::among(0..count, count)
    }

    pub(super) fn among(rows: Range<usize>, all: usize) -> Self {
        Self { rows, all }
    }

    /// Their bytes: outputs lie one after the other.
    fn part<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        let len = data.len() / self.all.max(1);
        &data[self.rows.start * len..self.rows.end * len]
    }
}

/// Checks shapes and packs.
pub(super) struct Weights<'a, S: ?Sized, O> {
    pub source: &'a S,
    pub ops: &'a O,
    /// Makes blocks of float matrices.
    pub quantizer: Option<Quantizer>,
    /// Threads that look through what is packed.
    pub pool: Option<&'a ThreadPool>,
}

impl<S: WeightSource + ?Sized, O: Ops> Weights<'_, S, O> {
    pub(super) fn tensor(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<RawTensor<'_>, LoadError> {
        let tensor = self
            .source
            .tensor(name)?
            .ok_or_else(|| LoadError::MissingTensor(name.to_owned()))?;
        if tensor.shape != expected {
            return Err(LoadError::WrongShape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                actual: tensor.shape,
            });
        }
        Ok(tensor)
    }

    pub(super) fn has(&self, name: &str) -> Result<bool, LoadError> {
        Ok(self.source.tensor(name)?.is_some())
    }

    /// Outputs of a tensor, where it is there.
    pub(super) fn num_outputs(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let tensor = self.source.tensor(name)?;
        Ok(tensor.and_then(|tensor| tensor.shape.first().copied()))
    }

    /// A packed `[out_features, in_features]` matrix.
    pub(super) fn matrix(
        &self,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<O::Matrix, LoadError> {
        let tensor = self.tensor(name, &[out_features, in_features])?;
        self.pack(name, tensor.dtype, &tensor.data, out_features, in_features)
    }

    /// Some of a matrix's outputs as a matrix of their own.
    pub(super) fn outputs(
        &self,
        name: &str,
        outputs: &Outputs,
        in_features: usize,
    ) -> Result<O::Matrix, LoadError> {
        let tensor = self.tensor(name, &[outputs.all, in_features])?;
        let data = outputs.part(&tensor.data);
        self.pack(name, tensor.dtype, data, outputs.rows.len(), in_features)
    }

    /// Packs the bytes of tensor `name`, whose file pages are not needed any more.
    pub(super) fn pack(
        &self,
        name: &str,
        dtype: DType,
        data: &[u8],
        out_features: usize,
        in_features: usize,
    ) -> Result<O::Matrix, LoadError> {
        self.check_finite(name, dtype, data)?;
        let shape = [out_features, in_features];
        let (dtype, data) = self.quantised(name, (dtype, data), shape)?;
        let packed = self.ops.matrix(dtype, &data, shape);
        self.source.release(name);
        packed.map_err(|source| failed(name, source))
    }

    fn check_finite(&self, name: &str, dtype: DType, data: &[u8]) -> Result<(), LoadError> {
        match is_finite_on(self.pool, dtype, data) {
            true => Ok(()),
            false => Err(LoadError::NotFinite(name.to_owned())),
        }
    }

    /// What is packed of a tensor: its bytes, or the blocks that they become.
    fn quantised<'b>(
        &self,
        name: &str,
        (dtype, data): (DType, &'b [u8]),
        shape: [usize; 2],
    ) -> Result<(DType, Cow<'b, [u8]>), LoadError> {
        let Some(quantizer) = &self.quantizer else {
            return Ok((dtype, Cow::Borrowed(data)));
        };
        let made = quantizer.apply(name, (dtype, data), shape);
        made.map_err(|source| failed(name, source.into()))
    }

    /// A packed `[parts, out_features, in_features]` tensor as one matrix, part after part.
    pub(super) fn stacked(
        &self,
        name: &str,
        [parts, out_features, in_features]: [usize; 3],
    ) -> Result<O::Matrix, LoadError> {
        let tensor = self.tensor(name, &[parts, out_features, in_features])?;
        let outputs = parts * out_features;
        self.pack(name, tensor.dtype, &tensor.data, outputs, in_features)
    }

    /// One matrix of every expert, `[num_experts, out_features, in_features]`, and its biases
    /// `[num_experts, out_features]`.
    pub(super) fn experts(
        &self,
        name: &str,
        bias: Option<&str>,
        shape: [usize; 3],
    ) -> Result<O::Experts, LoadError> {
        let [num_experts, out_features, _] = shape;
        let bias = bias.map(|name| self.floats(name, &[num_experts, out_features]));
        let bias = bias.transpose()?;
        let tensor = self.tensor(name, &shape)?;
        self.check_finite(name, tensor.dtype, &tensor.data)?;
        let bytes = (tensor.dtype, &*tensor.data);
        let (dtype, data) = self.quantised(name, bytes, [out_features, shape[2]])?;
        let packed = self.ops.experts(dtype, &data, shape, bias);
        self.source.release(name);
        packed.map_err(|source| failed(name, source))
    }

    /// A vector as a matrix of one row; files hold it as either.
    pub(super) fn row(&self, name: &str, in_features: usize) -> Result<O::Matrix, LoadError> {
        let is_vector = (self.source.tensor(name)?).is_some_and(|tensor| tensor.shape.len() == 1);
        let shape = [1, in_features];
        let tensor = self.tensor(name, &shape[usize::from(is_vector)..])?;
        self.pack(name, tensor.dtype, &tensor.data, 1, in_features)
    }

    /// The values of a tensor.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, shape)?;
        self.check_finite(name, tensor.dtype, &tensor.data)?;
        let mut values = vec![0.0; shape.iter().product()];
        reference::dequantize(tensor.dtype, &tensor.data, &mut values);
        Ok(values)
    }

    /// A vector as f32.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<O::Vector, LoadError> {
        self.values(name, &Outputs::all(len))
    }

    /// Some of a vector's values.
    pub(super) fn values(&self, name: &str, outputs: &Outputs) -> Result<O::Vector, LoadError> {
        let mut values = self.floats(name, &[outputs.all])?;
        values.truncate(outputs.rows.end);
        values.drain(..outputs.rows.start);
        let vector = self.ops.vector(values);
        vector.map_err(|source| failed(name, source))
    }
}

fn failed(name: &str, source: OpsError) -> LoadError {
    LoadError::Pack {
        name: name.to_owned(),
        source,
    }
}
