//! Named tensors from either kind of file, under their GGUF names.

use std::borrow::Cow;

use ponder_kernels::{DType, KernelError, PackedMatrix, ThreadPool, reference};

use super::config::ConfigError;
use super::gguf::GgufFile;

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
    Kernel { name: String, source: KernelError },
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

impl WeightSource for GgufFile {
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        Ok(GgufFile::tensor(self, name).map(|(info, data)| RawTensor {
            dtype: info.dtype,
            shape: info.dimensions.iter().rev().copied().collect(),
            data: Cow::Borrowed(data),
        }))
    }

    fn release(&self, name: &str) {
        GgufFile::release(self, name);
    }
}

/// Checks shapes and packs.
pub(super) struct Weights<'a, S: ?Sized> {
    pub source: &'a S,
    pub pool: &'a ThreadPool,
}

impl<S: WeightSource + ?Sized> Weights<'_, S> {
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<RawTensor<'_>, LoadError> {
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

    /// A packed `[out_features, in_features]` matrix.
    pub(super) fn matrix(
        &self,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<PackedMatrix, LoadError> {
        let tensor = self.tensor(name, &[out_features, in_features])?;
        let packed = PackedMatrix::pack(
            self.pool,
            tensor.dtype,
            &tensor.data,
            out_features,
            in_features,
        );
        self.source.release(name);
        packed.map_err(|source| LoadError::Kernel {
            name: name.to_owned(),
            source,
        })
    }

    /// A vector as f32.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        let mut values = vec![0.0; len];
        reference::dequantize(tensor.dtype, &tensor.data, &mut values);
        Ok(values)
    }
}
