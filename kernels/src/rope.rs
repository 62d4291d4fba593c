//! Rotary position embeddings.

use crate::cpu;
use crate::kv_cache::KvCache;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// Which elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Adjacent pairs `(2 i, 2 i + 1)`: llama weights in GGUF files.
    Norm,
    /// Halves `(i, i + dim / 2)`: Hugging Face weights, qwen, gemma.
    Neox,
}

/// Cosines and sines of every position, computed once in f64.
#[derive(Debug)]
pub struct RopeTable {
    half_dim: usize,
    num_positions: usize,
    /// `[num_positions, half_dim]` of (cos, sin).
    angles: Vec<(f32, f32)>,
}

impl RopeTable {
    /// `freq_factors` divide the inverse frequencies one by one (llama 3's long-context scaling);
    /// `linear_scale` divides positions (linear scaling).
    pub fn new(
        rotary_dim: usize,
        num_positions: usize,
        theta: f32,
        freq_factors: Option<&[f32]>,
        linear_scale: f32,
    ) -> Self {
        let half_dim = rotary_dim / 2;
        let frequencies: Vec<f64> = (0..half_dim)
            .map(|i| {
                let power = 2.0 * i as f64 / rotary_dim as f64;
                let factor = freq_factors.and_then(|factors| factors.get(i)).copied();
                f64::from(theta).powf(-power)
                    / f64::from(factor.unwrap_or(1.0))
                    / f64::from(linear_scale)
            })
            .collect();
        let angles = (0..num_positions)
            .flat_map(|position| {
                frequencies.iter().map(move |frequency| {
                    let angle = position as f64 * frequency;
                    (angle.cos() as f32, angle.sin() as f32)
                })
            })
            .collect();
        Self {
            half_dim,
            num_positions,
            angles,
        }
    }

    /// The same angles with cosines and sines times `magnitude`: what is rotated is scaled too
    /// (long-rope, YaRN).
    pub fn scaled(mut self, magnitude: f32) -> Self {
        if magnitude != 1.0 {
            for (cos, sin) in &mut self.angles {
                (*cos, *sin) = (*cos * magnitude, *sin * magnitude);
            }
        }
        self
    }

    /// Rotates the heads of one row in place; elements past the rotary dimension stay as they are.
    ///
    /// # Panics
    /// When the position is outside the table.
    fn rotate(&self, kind: RopeKind, row: &mut [f32], head_dim: usize, position: u32) {
        let half = self.half_dim;
        let angles = &self.angles[position as usize * half..][..half];
        for head in row.chunks_exact_mut(head_dim) {
            match kind {
                RopeKind::Norm => {
                    for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                        let [a, b] = *pair;
                        *pair = [a * cos - b * sin, a * sin + b * cos];
                    }
                }
                RopeKind::Neox => {
                    let (low, high) = head.split_at_mut(half);
                    cpu::rotate_halves(low, high, angles);
                }
            }
        }
    }

    /// The transpose of the rotation: what becomes of a gradient of rotated heads.
    ///
    /// # Panics
    /// When the position is outside the table.
    pub fn rotate_back(&self, kind: RopeKind, row: &mut [f32], head_dim: usize, position: u32) {
        let half = self.half_dim;
        let angles = &self.angles[position as usize * half..][..half];
        for head in row.chunks_exact_mut(head_dim) {
            for (pair, (cos, sin)) in angles.iter().enumerate() {
                let (low, high) = match kind {
                    RopeKind::Norm => (2 * pair, 2 * pair + 1),
                    RopeKind::Neox => (pair, half + pair),
                };
                let (a, b) = (head[low], head[high]);
                (head[low], head[high]) = (a * cos + b * sin, b * cos - a * sin);
            }
        }
    }

    fn check(&self, head_dim: usize, positions: &[u32]) {
        assert!(
            2 * self.half_dim <= head_dim,
            "the rotary dimension fits a head"
        );
        assert!(
            positions
                .iter()
                .all(|position| (*position as usize) < self.num_positions),
            "position out of range"
        );
    }
}

/// How queries and keys become what attention reads.
pub struct Rotation<'a> {
    pub table: &'a RopeTable,
    pub kind: RopeKind,
    /// `[head_dim]`: RMS norm on each head of Q, of K, before the rotation.
    pub q_norm: Option<&'a [f32]>,
    pub k_norm: Option<&'a [f32]>,
    pub eps: f32,
    /// `[num_rows]`
    pub positions: &'a [u32],
}

/// Normalises and rotates `q` and `k` in place and writes `k` and `v` into one layer of the cache, in one
/// pass over the rows. `q` is `[num_rows, num_heads * head_dim]`, `k` and `v` are
/// `[num_rows, num_kv_heads * head_dim]`; row `i` goes to `slot_mapping[i]`.
///
/// # Panics
/// When shapes, positions or slots do not fit.
#[allow(clippy::too_many_arguments)]
pub fn rotate_and_cache(
    pool: &ThreadPool,
    rotation: &Rotation<'_>,
    cache: &mut KvCache,
    layer: usize,
    slot_mapping: &[u32],
    q: &mut [f32],
    k: &mut [f32],
    v: &[f32],
) {
    let num_rows = rotation.positions.len();
    let (head_dim, kv_width) = (cache.head_dim(), cache.num_kv_heads() * cache.head_dim());
    rotation.table.check(head_dim, rotation.positions);
    assert_eq!(slot_mapping.len(), num_rows, "one slot a row");
    assert_eq!(
        k.len(),
        num_rows * kv_width,
        "k is [rows, kv_heads * head_dim]"
    );
    assert_eq!(v.len(), k.len(), "v is shaped as k");
    let q_width = q.len() / num_rows.max(1);
    let writer = cache.writer(layer, slot_mapping);
    let (q, k) = (SharedSlice::new(q), SharedSlice::new(k));
    for_rows(pool, num_rows, q_width + 2 * kv_width, |row| {
        // SAFETY: each row is taken once.
        let (q, k) = unsafe {
            (
                q.slice_mut(row * q_width, q_width),
                k.slice_mut(row * kv_width, kv_width),
            )
        };
        let norms = [rotation.q_norm, rotation.k_norm];
        for (values, norm) in [&mut *q, &mut *k].into_iter().zip(norms) {
            if let Some(norm) = norm {
                for head in values.chunks_exact_mut(head_dim) {
                    cpu::rms_norm_row(head, norm, rotation.eps);
                }
            }
            rotation
                .table
                .rotate(rotation.kind, values, head_dim, rotation.positions[row]);
        }
        // SAFETY: each row is taken once.
        unsafe { writer.write(row, k, &v[row * kv_width..][..kv_width]) };
    });
}
