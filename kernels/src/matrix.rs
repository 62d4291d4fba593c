//! Weight matrices in the layout that the kernels stream.

use crate::cost;
use crate::cpu::{self, PanelBlock};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::float_panel::FloatPanels;
use crate::memory::{PageBuffer, Room};
use crate::panel::{self, BLOCK_INPUTS, PANEL_ROWS, Panel, PanelFormat};
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

#[derive(Debug)]
pub(crate) enum Storage {
    /// Quantised: see [`crate::panel`].
    Panels {
        format: PanelFormat,
        bytes: PageBuffer,
    },
    /// Unquantised: see [`crate::float_panel`].
    Floats(FloatPanels),
}

/// A weight matrix `[out_features, in_features]` in kernel layout.
#[derive(Debug)]
pub struct PackedMatrix {
    out_features: usize,
    in_features: usize,
    pub(crate) storage: Storage,
}

impl PackedMatrix {
    /// Repacks row-major GGUF bytes. Nothing is rounded.
    pub fn pack(
        pool: &ThreadPool,
        dtype: DType,
        data: &[u8],
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        let shape = [out_features, in_features];
        Self::pack_in(pool, dtype, data, shape, PageBuffer::beside_others)
    }

    /// [`Self::pack`] into memory of another kind: that of a matrix that does not live as long as
    /// its model.
    pub(crate) fn pack_in(
        pool: &ThreadPool,
        dtype: DType,
        data: &[u8],
        [out_features, in_features]: [usize; 2],
        room: Room,
    ) -> Result<Self, KernelError> {
        check(dtype, data, out_features, in_features)?;
        let shape = [out_features, in_features];
        let storage = match PanelFormat::of(dtype) {
            Some(format) => Storage::Panels {
                format,
                bytes: pack_panels(pool, dtype, format, data, shape, room)?,
            },
            None => {
                let panels = FloatPanels::pack(pool, dtype, data, shape, room)?;
                Storage::Floats(panels)
            }
        };
        Ok(Self {
            out_features,
            in_features,
            storage,
        })
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Whether products read the activations' int8 codes; float weights read their values.
    pub fn is_quantised(&self) -> bool {
        matches!(self.storage, Storage::Panels { .. })
    }

    pub(crate) fn num_panels(&self) -> usize {
        self.out_features.div_ceil(PANEL_ROWS)
    }

    /// Bytes held in memory.
    pub fn nbytes(&self) -> usize {
        match &self.storage {
            Storage::Panels { bytes, .. } => bytes.len(),
            Storage::Floats(panels) => panels.nbytes(),
        }
    }

    /// The panels of a float matrix.
    pub(crate) fn floats(&self) -> Option<&FloatPanels> {
        match &self.storage {
            Storage::Panels { .. } => None,
            Storage::Floats(panels) => Some(panels),
        }
    }

    /// Panel `index` of a quantised matrix.
    pub(crate) fn panel(&self, index: usize) -> Option<Panel<'_>> {
        let Storage::Panels { format, bytes } = &self.storage else {
            return None;
        };
        let blocks = self.in_features / BLOCK_INPUTS;
        let panel_bytes = format.panel_bytes(blocks);
        let bytes = &bytes[index * panel_bytes..][..panel_bytes];
        Some(Panel::new(*format, blocks, bytes))
    }

    /// Asks for what [`Self::read_block`] reads of a quantised matrix.
    pub(crate) fn prefetch_block(&self, index: usize, block: usize) {
        let Some(panel) = self.panel(index) else {
            return;
        };
        let bytes = panel.format.codes.block_bytes();
        let (own, header) = panel.scale_entries(block);
        for part in [&panel.codes[block * bytes..][..bytes], own, header] {
            cpu::prefetch(part, part.len());
        }
    }

    /// Reads back as f32 what panel `index` has of a block of 32 inputs, rows and columns
    /// exchanged; what is not there is zero.
    pub(crate) fn read_block(&self, index: usize, block: usize, out: &mut PanelBlock) {
        match (self.floats(), self.panel(index)) {
            (None, Some(panel)) => cpu::unpack_block(&panel, block, out),
            (Some(panels), _) => {
                cpu::read_block(&panels.panel(index), block, self.in_features, out)
            }
            (None, None) => unreachable!("a matrix has panels of one kind"),
        }
    }

    /// Writes row `row` (`in_features` values) as f32: an embedding lookup.
    ///
    /// # Panics
    /// When `row` or `out` do not fit the matrix.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.out_features,
            "row {row} of {}",
            self.out_features
        );
        assert_eq!(out.len(), self.in_features, "one value per input feature");
        match &self.storage {
            Storage::Floats(panels) => {
                let panel = panels.panel(row / PANEL_ROWS);
                panel.read(row % PANEL_ROWS, self.in_features, out);
            }
            Storage::Panels { .. } => {
                let panel = self.panel(row / PANEL_ROWS).expect("the storage is panels");
                for (index, out) in out.chunks_exact_mut(BLOCK_INPUTS).enumerate() {
                    let row = panel.row(index, row % PANEL_ROWS);
                    for (input, value) in out.iter_mut().enumerate() {
                        let sub = row.subs[input / 16];
                        *value = sub.scale * f32::from(row.codes[input]) + sub.offset;
                    }
                }
            }
        }
    }
}

fn check(
    dtype: DType,
    data: &[u8],
    out_features: usize,
    in_features: usize,
) -> Result<(), KernelError> {
    let bad_shape = KernelError::BadShape {
        out_features,
        in_features,
    };
    if out_features == 0 || in_features == 0 {
        return Err(bad_shape);
    }
    let ragged = |block_size| KernelError::RaggedBlock {
        dtype: dtype.name(),
        block_size,
        in_features,
    };
    let row_bytes = dtype
        .byte_count(in_features)
        .ok_or_else(|| ragged(dtype.block_size()))?;
    let expected = row_bytes.checked_mul(out_features).ok_or(bad_shape)?;
    if expected != data.len() {
        return Err(KernelError::WrongByteCount {
            dtype: dtype.name(),
            out_features,
            in_features,
            expected,
            actual: data.len(),
        });
    }
    Ok(())
}

fn pack_panels(
    pool: &ThreadPool,
    dtype: DType,
    format: PanelFormat,
    data: &[u8],
    [out_features, in_features]: [usize; 2],
    room: Room,
) -> Result<PageBuffer, KernelError> {
    let num_panels = out_features.div_ceil(PANEL_ROWS);
    let panel_bytes = format.panel_bytes(in_features / BLOCK_INPUTS);
    let row_bytes = data.len() / out_features;
    let len = num_panels * panel_bytes;
    let mut bytes = room(len).ok_or(KernelError::OutOfMemory { bytes: len })?;
    let shared = SharedSlice::new(&mut bytes[..]);
    let work = cost::values(out_features * in_features);
    for_each(pool, work, num_panels, |index| {
        // SAFETY: each panel is taken once.
        let panel = unsafe { shared.slice_mut(index * panel_bytes, panel_bytes) };
        let first = index * PANEL_ROWS;
        let num_rows = PANEL_ROWS.min(out_features - first);
        let rows = &data[first * row_bytes..][..num_rows * row_bytes];
        panel::pack_panel(dtype, format, rows, row_bytes, panel);
    });
    Ok(bytes)
}
