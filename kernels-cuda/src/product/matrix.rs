//! Matrices in device memory.

use ponder_kernels::DType;

use super::layout::{Layout, TYPES};
use super::pack::pack;
use super::plan::{self, Splits};
use crate::{Buffer, CudaError, Gpu};

/// Kernels read whole stages of up to four k blocks: past the last one lie so many bytes more,
/// which are never used.
const SLACK_BYTES: usize = 16 << 10;

/// `[num_experts, out_features, in_features]`; one expert in a dense model. Packed for the tensor
/// cores, or f32 as it is.
pub struct Matrix {
    dtype: DType,
    num_experts: usize,
    out_features: usize,
    in_features: usize,
    data: Data,
}

enum Data {
    Packed { layout: Layout, bytes: Buffer<u8> },
    Floats(Buffer<f32>),
}

impl Matrix {
    /// Packs and uploads row-major GGUF bytes.
    ///
    /// # Errors
    /// When no kernel reads the type, when the bytes are not that many values, when rows are no
    /// whole blocks, and when memory ends.
    pub fn new(
        gpu: &Gpu,
        dtype: DType,
        bytes: &[u8],
        [num_experts, out_features, in_features]: [usize; 3],
    ) -> Result<Self, CudaError> {
        if !TYPES.contains(&dtype) {
            return Err(CudaError::Unsupported(format!(
                "weights of type {} have no kernels on a GPU: the processor reads them",
                dtype.name()
            )));
        }
        let expert_bytes = dtype
            .byte_count(in_features)
            .and_then(|row| row.checked_mul(out_features));
        let total = expert_bytes.and_then(|expert| expert.checked_mul(num_experts));
        let is_empty = num_experts == 0 || out_features == 0 || in_features == 0;
        let (Some(expert_bytes), false) = (expert_bytes, is_empty || total != Some(bytes.len()))
        else {
            return Err(CudaError::Unsupported(format!(
                "{} bytes are no {} matrix [{num_experts}, {out_features}, {in_features}]",
                bytes.len(),
                dtype.name()
            )));
        };
        let data = match Layout::of(dtype) {
            None => Data::Floats(gpu.upload(&floats_of(bytes))?),
            Some(layout) => {
                let packed_bytes = layout.matrix_bytes(out_features, in_features);
                let mut buffer = gpu.zeros(packed_bytes * num_experts + SLACK_BYTES)?;
                // One expert at a time: the host needs room for no more.
                for (expert, bytes) in bytes.chunks_exact(expert_bytes).enumerate() {
                    let packed = pack(dtype, layout, bytes, out_features, in_features);
                    gpu.write(&mut buffer, expert * packed_bytes, &packed)?;
                }
                Data::Packed {
                    layout,
                    bytes: buffer,
                }
            }
        };
        Ok(Self {
            dtype,
            num_experts,
            out_features,
            in_features,
            data,
        })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Of one expert.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// In device memory.
    pub fn nbytes(&self) -> usize {
        match &self.data {
            Data::Packed { bytes, .. } => bytes.nbytes(),
            Data::Floats(floats) => floats.nbytes(),
        }
    }

    /// Whether it is f32, `[num_experts, out_features, in_features]` row-major: products with it
    /// read activations' floats.
    pub fn is_float(&self) -> bool {
        matches!(self.data, Data::Floats(_))
    }

    /// Of the first expert.
    pub fn address(&self) -> u64 {
        match &self.data {
            Data::Packed { bytes, .. } => bytes.address(),
            Data::Floats(floats) => floats.address(),
        }
    }

    /// The values of an f32 matrix.
    pub fn floats(&self) -> Option<&Buffer<f32>> {
        match &self.data {
            Data::Packed { .. } => None,
            Data::Floats(floats) => Some(floats),
        }
    }

    /// `None` for f32.
    pub fn layout(&self) -> Option<Layout> {
        match &self.data {
            Data::Packed { layout, .. } => Some(*layout),
            Data::Floats(_) => None,
        }
    }

    /// Bytes from one expert to the next.
    pub fn expert_bytes(&self) -> usize {
        match &self.data {
            Data::Packed { layout, .. } => layout.matrix_bytes(self.out_features, self.in_features),
            Data::Floats(floats) => floats.nbytes() / self.num_experts,
        }
    }

    /// How products split the inputs.
    pub fn splits(&self) -> Splits {
        plan::splits(self.out_features, self.in_features)
    }
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
