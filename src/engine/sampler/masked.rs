//! Passes over a row of logits under a mask. Most words of most masks are empty or full.

use ponder_kernels::logits;

use crate::engine::request::TokenMask;

/// Tokens of a word of a mask.
const WORD: usize = u32::BITS as usize;
/// Of so many tokens one may be allowed for a mask to be sparse.
const SPARSE: usize = 16;

/// The largest of the allowed logits and its index, ties to the lower index; `None` when none is
/// above negative infinity.
pub(super) fn argmax(mask: &TokenMask, row: &[f32], memory: &mut Vec<f32>) -> Option<(usize, f32)> {
    let num_allowed: u32 = mask.words().iter().map(|word| word.count_ones()).sum();
    if num_allowed as usize > row.len() / SPARSE {
        // The largest of all is most often allowed.
        let best = logits::argmax(row)?;
        if mask.is_allowed(best.0 as u32) {
            return Some(best);
        }
        memory.clear();
        memory.extend_from_slice(row);
        mask.apply(memory);
        return logits::argmax(memory);
    }
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (index, (word, logits)) in mask.words().iter().zip(row.chunks(WORD)).enumerate() {
        let mut left = *word;
        while left != 0 {
            let bit = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(logit) = logits.get(bit).filter(|logit| **logit > largest) {
                (best, largest) = (Some(index * WORD + bit), *logit);
            }
        }
    }
    best.map(|index| (index, largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks of every density, over vocabularies that fill their last word and that do not.
    #[test]
    fn passes_under_masks_equal_their_definitions() {
        let mut state = 7_u32;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        for len in [1, 31, 32, 33, 64, 1000, 5000] {
            for density in [0, 1, 2, 8, 40, 97, 100] {
                // Few values, so that some are equal.
                let mut row: Vec<f32> = (0..len).map(|_| (random() % 50) as f32).collect();
                row[random() as usize % len] = f32::NAN;
                let mut mask = TokenMask::none(len);
                let is_block = random() % 2 == 0;
                for token_id in 0..len as u32 {
                    let dice = if is_block {
                        token_id / 100 * 37
                    } else {
                        random()
                    };
                    if dice % 100 < density {
                        mask.allow(token_id);
                    }
                }
                let is_allowed = |id: &usize| mask.is_allowed(*id as u32) && !row[*id].is_nan();
                let expected = (0..len)
                    .filter(is_allowed)
                    .fold(None, |best, id| match best {
                        Some((_, largest)) if row[id] <= largest => best,
                        _ => Some((id, row[id])),
                    });
                let mut memory = Vec::new();
                assert_eq!(
                    argmax(&mask, &row, &mut memory),
                    expected,
                    "{len} {density}"
                );
                let mut masked = row.clone();
                mask.apply(&mut masked);
                for (id, (got, logit)) in masked.iter().zip(&row).enumerate() {
                    let wanted = match mask.is_allowed(id as u32) {
                        true => *logit,
                        false => f32::NEG_INFINITY,
                    };
                    assert_eq!(got.to_bits(), wanted.to_bits());
                }
            }
        }
    }
}
