//! Unquantised weights in panels of [`PANEL_ROWS`] interleaved output rows.
//!
//! A panel is a sequence of lines, the inputs in order. A line of F32 and of F16 is one input of
//! sixteen rows. A line of BF16 is two inputs, pairs side by side as `vdpbf16ps` reads them: word
//! `2 r + i` is input `i` of row `r`. What is not there (rows behind the last, the second input of
//! an odd number) is zero.

use half::{bf16, f16};

use crate::cost;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::memory::{PageBuffer, Room};
use crate::panel::PANEL_ROWS;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// One input of sixteen rows.
pub(crate) type LineF32 = [f32; PANEL_ROWS];
/// One input of sixteen rows, as bits.
pub(crate) type LineF16 = [u16; PANEL_ROWS];
/// Two inputs of sixteen rows, as bits.
pub(crate) type LineBF16 = [u16; 2 * PANEL_ROWS];

/// A float matrix in panels.
#[derive(Debug)]
pub(crate) struct FloatPanels {
    dtype: DType,
    /// Lines of a panel.
    num_lines: usize,
    bytes: PageBuffer,
}

/// One panel's lines.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FloatPanel<'a> {
    F32(&'a [LineF32]),
    F16(&'a [LineF16]),
    BF16(&'a [LineBF16]),
}

impl FloatPanels {
    /// Packs row-major bytes (`[out_features, in_features]`, checked before) of a float type.
    pub(crate) fn pack(
        pool: &ThreadPool,
        dtype: DType,
        data: &[u8],
        [out_features, in_features]: [usize; 2],
        room: Room,
    ) -> Result<Self, KernelError> {
        let inputs = inputs_of_line(dtype);
        let num_lines = in_features.div_ceil(inputs);
        let value_bytes = dtype.block_bytes();
        let panel_bytes = num_lines * inputs * PANEL_ROWS * value_bytes;
        let num_panels = out_features.div_ceil(PANEL_ROWS);
        let too_large = KernelError::BadShape {
            out_features,
            in_features,
        };
        let len = num_panels.checked_mul(panel_bytes).ok_or(too_large)?;
        let mut bytes = room(len).ok_or(KernelError::OutOfMemory { bytes: len })?;
        let shared = SharedSlice::new(&mut bytes[..]);
        let work = cost::values(out_features * in_features);
        for_each(pool, work, num_panels, |index| {
            // SAFETY: each panel is taken once.
            let panel = unsafe { shared.slice_mut(index * panel_bytes, panel_bytes) };
            let first = index * PANEL_ROWS;
            let count = PANEL_ROWS.min(out_features - first);
            let row_bytes = in_features * value_bytes;
            let rows = &data[first * row_bytes..][..count * row_bytes];
            match dtype {
                DType::F32 => interleave::<4, 1>(rows, row_bytes, panel),
                DType::F16 => interleave::<2, 1>(rows, row_bytes, panel),
                _ => interleave::<2, 2>(rows, row_bytes, panel),
            }
        });
        Ok(Self {
            dtype,
            num_lines,
            bytes,
        })
    }

    /// Bytes held in memory.
    pub(crate) fn nbytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether products read activations rounded to bf16 where the machine multiplies such pairs.
    pub(crate) fn is_bf16(&self) -> bool {
        self.dtype == DType::BF16
    }

    pub(crate) fn panel(&self, index: usize) -> FloatPanel<'_> {
        let range = index * self.num_lines..(index + 1) * self.num_lines;
        match self.dtype {
            DType::F32 => FloatPanel::F32(&self.bytes.floats().as_chunks().0[range]),
            DType::F16 => FloatPanel::F16(&self.bytes.words().as_chunks().0[range]),
            _ => FloatPanel::BF16(&self.bytes.words().as_chunks().0[range]),
        }
    }
}

impl FloatPanel<'_> {
    /// Reads rows back, `[rows, in_features]` from row `lane` of the panel on.
    pub(crate) fn read(&self, lane: usize, in_features: usize, out: &mut [f32]) {
        let rows = out.chunks_exact_mut(in_features);
        match self {
            FloatPanel::F32(lines) => {
                for (lane, out) in (lane..).zip(rows) {
                    for (out, line) in out.iter_mut().zip(*lines) {
                        *out = line[lane];
                    }
                }
            }
            FloatPanel::F16(lines) => {
                for (lane, out) in (lane..).zip(rows) {
                    for (out, line) in out.iter_mut().zip(*lines) {
                        *out = f16::from_bits(line[lane]).to_f32();
                    }
                }
            }
            FloatPanel::BF16(lines) => {
                for (lane, out) in (lane..).zip(rows) {
                    for (out, line) in out.chunks_mut(2).zip(*lines) {
                        for (out, bits) in out.iter_mut().zip(&line[2 * lane..]) {
                            *out = bf16::from_bits(*bits).to_f32();
                        }
                    }
                }
            }
        }
    }
}

/// Inputs of a line.
fn inputs_of_line(dtype: DType) -> usize {
    match dtype {
        DType::BF16 => 2,
        _ => 1,
    }
}

/// Puts rows of values of `BYTES` bytes side by side, `INPUTS` values of each in a line. Files are
/// little-endian, and lines are read as numbers of the machine.
fn interleave<const BYTES: usize, const INPUTS: usize>(
    rows: &[u8],
    row_bytes: usize,
    panel: &mut [u8],
) {
    let (values, _) = panel.as_chunks_mut::<BYTES>();
    let to_native = |mut bytes: [u8; BYTES]| {
        if cfg!(target_endian = "big") {
            bytes.reverse();
        }
        bytes
    };
    // A few inputs of all rows at a time: lines are written whole, and rows read by cache lines.
    let (values_of_row, at_once) = (row_bytes / BYTES, 64 / BYTES);
    for first in (0..values_of_row).step_by(at_once) {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let row = &row.as_chunks::<BYTES>().0[first..(first + at_once).min(values_of_row)];
            for (input, value) in (first..).zip(row) {
                let line = input / INPUTS * INPUTS * PANEL_ROWS;
                values[line + lane * INPUTS + input % INPUTS] = to_native(*value);
            }
        }
    }
}
