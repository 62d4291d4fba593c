//! Products with matrices of f32, in f32.

use ponder_kernels::Glu;

use super::{RowList, activate};
use crate::experts::Routing;
use crate::{Activations, Args, Buffer, CudaError, Gpu, Grid, Plain, Rows};

/// Threads of a block.
const THREADS: usize = 128;
/// Rows, and output features, that the larger variants take at once.
const NUM_ROWS_AT_ONCE: usize = 8;
const NUM_OUTS_AT_ONCE: usize = 4;
/// Blocks from which on a multiprocessor has enough to do without more of them.
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;

/// A matrix of f32, `[out_features, in_features]`.
pub struct FloatMatrix {
    values: Buffer<f32>,
    out_features: usize,
    in_features: usize,
}

/// One matrix of f32 of every expert, `[num_experts, out_features, in_features]`.
pub struct FloatExperts {
    values: Buffer<f32>,
    num_experts: usize,
    out_features: usize,
    in_features: usize,
}

impl FloatMatrix {
    /// Copies a row-major matrix to the device.
    ///
    /// # Panics
    /// Unless there are `out_features * in_features` values.
    pub fn upload(
        gpu: &Gpu,
        values: &[f32],
        [out_features, in_features]: [usize; 2],
    ) -> Result<Self, CudaError> {
        assert_eq!(values.len(), out_features * in_features, "a whole matrix");
        Ok(Self {
            values: gpu.upload(values)?,
            out_features,
            in_features,
        })
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn values(&self) -> &Buffer<f32> {
        &self.values
    }
}

impl FloatExperts {
    /// Copies row-major matrices to the device.
    ///
    /// # Panics
    /// Unless there are so many values.
    pub fn upload(
        gpu: &Gpu,
        values: &[f32],
        [num_experts, out_features, in_features]: [usize; 3],
    ) -> Result<Self, CudaError> {
        let len = num_experts * out_features * in_features;
        assert_eq!(values.len(), len, "whole matrices");
        Ok(Self {
            values: gpu.upload(values)?,
            num_experts,
            out_features,
            in_features,
        })
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

    pub fn nbytes(&self) -> usize {
        self.values.nbytes()
    }
}

/// Where rows of f32 lie.
#[derive(Clone, Copy)]
pub(super) struct FloatRows {
    address: u64,
    num_rows: usize,
    width: usize,
}

impl From<&Rows> for FloatRows {
    fn from(rows: &Rows) -> Self {
        Self {
            address: rows.address(),
            num_rows: rows.num_rows(),
            width: rows.width(),
        }
    }
}

impl From<&Activations> for FloatRows {
    fn from(x: &Activations) -> Self {
        assert!(x.keeps_floats(), "activations keep floats; this is a bug");
        Self {
            address: x.floats(),
            num_rows: x.num_rows(),
            width: x.width(),
        }
    }
}

/// As `FloatProductArgs` in `float_product.cu`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct ProductArgs {
    x: u64,
    weights: u64,
    bias: u64,
    out: u64,
    x_rows: u64,
    out_rows: u64,
    tiles: u64,
    num_rows: u32,
    in_features: u32,
    out_features: u32,
    accumulates: u32,
}

// SAFETY: numbers without padding between them.
unsafe impl Plain for ProductArgs {}

/// Threads that share an output feature: they are what the order of a sum depends on, so the shape
/// alone decides.
fn lanes_of(out_features: usize, in_features: usize) -> usize {
    match in_features {
        0..=128 => 8,
        // Long rows of few features, as routers have them: a block each.
        1024.. if out_features <= 1024 => 128,
        _ => 32,
    }
}

/// `out[out_rows[i]] (+)= x[x_rows[i]] · matrix^T + bias`, rows themselves where there is no list.
pub(super) struct Product<'a> {
    pub matrix: &'a FloatMatrix,
    pub bias: Option<&'a Buffer<f32>>,
    pub x: FloatRows,
    pub x_rows: Option<RowList<'a>>,
    pub out: FloatRows,
    pub out_rows: Option<RowList<'a>>,
    pub num_rows: usize,
    pub accumulates: bool,
}

impl<'a> Product<'a> {
    /// Of no rows yet.
    pub fn new(matrix: &'a FloatMatrix) -> Self {
        let nothing = FloatRows {
            address: 0,
            num_rows: 0,
            width: 0,
        };
        Self {
            matrix,
            bias: None,
            x: nothing,
            x_rows: None,
            out: nothing,
            out_rows: None,
            num_rows: 0,
            accumulates: false,
        }
    }

    fn args(&self) -> ProductArgs {
        let (outs, ins) = (self.matrix.out_features, self.matrix.in_features);
        assert_eq!(self.x.width, ins, "an input for each weight");
        assert_eq!(self.out.width, outs, "a place for each output");
        assert!(
            self.bias.is_none_or(|bias| bias.len() == outs),
            "a bias each"
        );
        let address = |list: Option<RowList<'_>>, rows: FloatRows| {
            match list {
                Some(list) => assert_eq!(list.len, self.num_rows, "a list of these rows"),
                None => assert_eq!(rows.num_rows, self.num_rows, "these rows"),
            }
            list.map_or(0, RowList::address)
        };
        ProductArgs {
            x: self.x.address,
            weights: self.matrix.values.address(),
            bias: self.bias.map_or(0, Buffer::address),
            out: self.out.address,
            x_rows: address(self.x_rows, self.x),
            out_rows: address(self.out_rows, self.out),
            tiles: 0,
            num_rows: self.num_rows as u32,
            in_features: ins as u32,
            out_features: outs as u32,
            accumulates: u32::from(self.accumulates),
        }
    }

    pub fn launch(&self, gpu: &Gpu) -> Result<(), CudaError> {
        let enough = BLOCKS_PER_MULTIPROCESSOR * gpu.properties().num_multiprocessors;
        let at_once = match self.num_rows {
            0 => return Ok(()),
            1 => [1, 1],
            _ => {
                let wide = [NUM_ROWS_AT_ONCE, NUM_OUTS_AT_ONCE];
                let [x, y, _] = self.grid(wide).blocks;
                match (x * y) as usize >= enough {
                    true => wide,
                    false => [NUM_ROWS_AT_ONCE, 1],
                }
            }
        };
        self.launch_at_once(gpu, at_once)
    }

    fn lanes(&self) -> usize {
        lanes_of(self.matrix.out_features, self.matrix.in_features)
    }

    fn grid(&self, [rows, outs]: [usize; 2]) -> Grid {
        let outs_per_block = THREADS / self.lanes() * outs;
        let x = self.matrix.out_features.div_ceil(outs_per_block) as u32;
        let y = self.num_rows.div_ceil(rows) as u32;
        Grid {
            blocks: [x, y, 1],
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }

    /// Takes so many rows and output features at once. All variants give the same bits.
    pub(super) fn launch_at_once(&self, gpu: &Gpu, at_once: [usize; 2]) -> Result<(), CudaError> {
        let kernel = match (self.lanes(), at_once) {
            (8, [1, 1]) => "float_product_8_1x1",
            (8, [_, 1]) => "float_product_8_8x1",
            (8, _) => "float_product_8_8x4",
            (32, [1, 1]) => "float_product_32_1x1",
            (32, [_, 1]) => "float_product_32_8x1",
            (32, _) => "float_product_32_8x4",
            (_, [1, 1]) => "float_product_128_1x1",
            (_, [_, 1]) => "float_product_128_8x1",
            _ => "float_product_128_8x4",
        };
        let args = Args::new().value(self.args());
        // SAFETY: `args` checked the shapes.
        unsafe { gpu.launch(kernel, self.grid(at_once), &args) }
    }
}

/// `out = x · matrix^T + bias`, `[num_rows, out_features]`.
///
/// # Panics
/// When shapes do not fit, or the activations keep no floats.
pub fn project(
    gpu: &Gpu,
    x: &Activations,
    matrix: &FloatMatrix,
    bias: Option<&Buffer<f32>>,
    out: &mut Rows,
) -> Result<(), CudaError> {
    out.reshape(gpu, x.num_rows(), matrix.out_features)?;
    let product = Product {
        bias,
        x: x.into(),
        out: FloatRows::from(&*out),
        num_rows: x.num_rows(),
        ..Product::new(matrix)
    };
    product.launch(gpu)
}

/// `out += x · matrix^T + bias`
///
/// # Panics
/// When shapes do not fit, or the activations keep no floats.
pub fn project_add(
    gpu: &Gpu,
    x: &Activations,
    matrix: &FloatMatrix,
    bias: Option<&Buffer<f32>>,
    out: &mut Rows,
) -> Result<(), CudaError> {
    let product = Product {
        bias,
        x: x.into(),
        out: FloatRows::from(&*out),
        num_rows: x.num_rows(),
        accumulates: true,
        ..Product::new(matrix)
    };
    product.launch(gpu)
}

/// `out = act(x · gate^T) * (x · up^T)`, as the next product reads it. `scratch` is room for both
/// products.
///
/// # Panics
/// When shapes do not fit, or the activations keep no floats.
pub fn gate_up(
    gpu: &Gpu,
    x: &Activations,
    [gate, up]: [&FloatMatrix; 2],
    glu: Glu,
    [of_gate, of_up]: [&mut Rows; 2],
    out: &mut Activations,
) -> Result<(), CudaError> {
    project(gpu, x, gate, None, of_gate)?;
    project(gpu, x, up, None, of_up)?;
    activate(gpu, of_gate, of_up, glu, out)
}

/// `out = x · experts[e]^T` of each row's expert `e`. `x` has the rows sorted by expert
/// ([`crate::experts::gather`]), and so does `out`, `[capacity, out_features]`.
///
/// # Panics
/// When shapes do not fit, or the activations keep no floats.
pub fn grouped_project(
    gpu: &Gpu,
    x: &Activations,
    experts: &FloatExperts,
    routing: &Routing,
    out: &mut Rows,
) -> Result<(), CudaError> {
    let (outs, ins) = (experts.out_features, experts.in_features);
    assert_eq!(x.width(), ins, "an input for each weight");
    assert_eq!(x.num_rows(), routing.capacity(), "rows sorted by expert");
    assert_eq!(experts.num_experts, routing.num_experts(), "these experts");
    out.reshape(gpu, x.num_rows(), outs)?;
    let args = ProductArgs {
        x: FloatRows::from(x).address,
        weights: experts.values.address(),
        out: out.address(),
        tiles: routing.tiles(),
        in_features: ins as u32,
        out_features: outs as u32,
        ..ProductArgs::default()
    };
    let lanes = lanes_of(outs, ins);
    let kernel = match lanes {
        8 => "grouped_float_product_8",
        32 => "grouped_float_product_32",
        _ => "grouped_float_product_128",
    };
    let grid = Grid {
        blocks: [
            outs.div_ceil(THREADS / lanes) as u32,
            routing.max_tiles() as u32,
            1,
        ],
        threads: THREADS as u32,
        shared_bytes: 0,
    };
    // SAFETY: the shapes fit, and tiles name rows below the capacity and experts that exist.
    unsafe { gpu.launch(kernel, grid, &Args::new().value(args)) }
}

/// [`gate_up`] with each row's expert, of rows sorted by expert.
///
/// # Panics
/// When shapes do not fit, or the activations keep no floats.
pub fn grouped_gate_up(
    gpu: &Gpu,
    x: &Activations,
    [gate, up]: [&FloatExperts; 2],
    glu: Glu,
    routing: &Routing,
    [of_gate, of_up]: [&mut Rows; 2],
    out: &mut Activations,
) -> Result<(), CudaError> {
    grouped_project(gpu, x, gate, routing, of_gate)?;
    grouped_project(gpu, x, up, routing, of_up)?;
    activate(gpu, of_gate, of_up, glu, out)
}
