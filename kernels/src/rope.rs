//! Rotary position embeddings.

use crate::norm::for_rows;
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

    /// Rotates `x` (`[num_rows, num_heads * head_dim]`) in place; elements past the rotary dimension
    /// stay as they are.
    ///
    /// # Panics
    /// When a position is outside the table or lengths do not fit.
    pub fn apply(
        &self,
        pool: &ThreadPool,
        kind: RopeKind,
        x: &mut [f32],
        head_dim: usize,
        positions: &[u32],
    ) {
        if positions.is_empty() {
            return;
        }
        let half = self.half_dim;
        assert!(2 * half <= head_dim, "the rotary dimension fits a head");
        assert!(
            positions
                .iter()
                .all(|position| (*position as usize) < self.num_positions),
            "position out of range"
        );
        let width = x.len() / positions.len();
        for_rows(pool, x, width, |row, x| {
            let angles = &self.angles[positions[row] as usize * half..][..half];
            for head in x.chunks_exact_mut(head_dim) {
                match kind {
                    RopeKind::Norm => {
                        for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles)
                        {
                            let [a, b] = *pair;
                            *pair = [a * cos - b * sin, a * sin + b * cos];
                        }
                    }
                    RopeKind::Neox => {
                        let (low, high) = head.split_at_mut(half);
                        for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
                            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                        }
                    }
                }
            }
        });
    }
}
