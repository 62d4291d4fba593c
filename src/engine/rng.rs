//! Counter-based randomness: a number is a pure function of its key, so an answer never depends on
//! which other requests run beside it.

use xxhash_rust::xxh3::Xxh3;

/// A uniform number in [0, 1) for one draw: the token at `position` of the branch `branch_path`.
pub(super) fn uniform(seed: u64, branch_path: &[u32], position: usize) -> f64 {
    let mut hasher = Xxh3::with_seed(seed);
    for branch in branch_path {
        hasher.update(&branch.to_le_bytes());
    }
    // The path's length keeps ([1], 2) and ([1, 2], ..) apart.
    hasher.update(&(branch_path.len() as u64).to_le_bytes());
    hasher.update(&(position as u64).to_le_bytes());
    (hasher.digest() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_differ_by_every_part_of_the_key() {
        let mut buckets = [0_u32; 16];
        for position in 0..16_000 {
            buckets[(uniform(7, &[0], position) * 16.0) as usize] += 1;
        }
        // Chi-square with 15 degrees of freedom: 37.7 is the 0.1 % point.
        let chi: f64 = buckets
            .iter()
            .map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0)
            .sum();
        assert!(chi < 37.7, "{chi}");
        let keys = [
            uniform(7, &[0], 1),
            uniform(8, &[0], 1),
            uniform(7, &[1], 1),
            uniform(7, &[0, 0], 1),
            uniform(7, &[0], 2),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b));
        }
    }
}
