//! Made-up matrices for tests.

use half::f16;
use ponder_kernels::DType;

/// Numbers of a small generator: the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u32
    }

    /// -1 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        self.next() as f32 / u32::MAX as f32 * 2.0 - 1.0
    }
}

/// Where the f16 scales of a block are.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q6K => &[208],
        _ => &[],
    }
}

/// Blocks of random codes and scales; a scale now and then is zero, negative, or below the normal
/// numbers of f16.
pub(crate) fn random_blocks(dtype: DType, count: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut data = vec![0_u8; dtype.byte_count(count).expect("whole blocks")];
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        match dtype {
            DType::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            DType::F16 => block.copy_from_slice(&f16::from_f32(random.unit()).to_le_bytes()),
            DType::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(random.unit()).to_le_bytes());
            }
            _ => block.fill_with(|| (random.next() >> 3) as u8),
        }
        for at in halves(dtype) {
            let scale = match random.next() % 16 {
                0 => f16::ZERO,
                1 => f16::from_bits((random.next() % 1024) as u16),
                _ => f16::from_f32(random.unit() * 0.02),
            };
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    data
}

/// Equal bits, or zeros of either sign.
pub(crate) fn same_value(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a == 0.0 && b == 0.0)
}

/// The weights of a matrix as products take them: rounded to bf16.
#[cfg(feature = "emulator")]
pub(crate) fn rounded_weights(dtype: DType, data: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    ponder_kernels::reference::dequantize(dtype, data, &mut values);
    values.into_iter().map(rounded).collect()
}

#[cfg(feature = "emulator")]
pub(crate) fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Where tiles have an element.
#[cfg(feature = "emulator")]
fn place(row: usize, k: usize, row_stride: usize) -> usize {
    (k / 64 * row_stride + row) * 64 + ((k % 64 / 8) ^ (row % 8)) * 8 + k % 8
}

/// Rows as products read them; what has no meaning is NaN.
#[cfg(feature = "emulator")]
pub(crate) fn activations(gpu: &crate::Gpu, values: &[f32], width: usize) -> crate::Activations {
    let num_rows = values.len() / width;
    let mut x = crate::Activations::new(false);
    x.reshape(gpu, num_rows, width).unwrap();
    let stride = x.row_stride();
    let padded = width.next_multiple_of(64);
    let mut tiles = vec![0x7fff_u16; stride * padded];
    for row in 0..num_rows {
        for k in 0..padded {
            let value = if k < width {
                values[row * width + k]
            } else {
                0.0
            };
            tiles[place(row, k, stride)] = half::bf16::from_f32(value).to_bits();
        }
    }
    gpu.write(x.tiles_mut().unwrap(), 0, &tiles).unwrap();
    x
}

/// Values of tiles, `[num_rows, width up to a multiple of 64]`.
#[cfg(feature = "emulator")]
pub(crate) fn values_of(gpu: &crate::Gpu, x: &mut crate::Activations) -> Vec<f32> {
    let (num_rows, stride) = (x.num_rows(), x.row_stride());
    let padded = x.width().next_multiple_of(64);
    let mut tiles = vec![0_u16; stride * padded];
    gpu.read(x.tiles_mut().unwrap(), 0, &mut tiles).unwrap();
    let all = (0..num_rows).flat_map(|row| (0..padded).map(move |k| place(row, k, stride)));
    all.map(|at| half::bf16::from_bits(tiles[at]).to_f32())
        .collect()
}

#[cfg(feature = "emulator")]
pub(crate) fn read_rows(gpu: &crate::Gpu, rows: &crate::Rows) -> Vec<f32> {
    let mut values = vec![0.0; rows.num_rows() * rows.width()];
    gpu.read(rows.buffer().unwrap(), 0, &mut values).unwrap();
    values
}
