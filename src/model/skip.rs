//! Forward passes that leave sub-layers out: the draft model of SWIFT (Xia et al. 2025, section 3).

use serde::{Deserialize, Serialize};

/// The sub-layers that a draft leaves out: the residual stream passes them unchanged. Empty sets leave nothing out.
///
/// The first and the last layer are always kept: without the first nothing works, and past the last one's attention only the
/// rows of logits remain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SkipSet {
    /// Layers, ascending.
    attention: Vec<usize>,
    mlp: Vec<usize>,
}

/// A sub-layer that may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SubLayer {
    Attention(usize),
    Mlp(usize),
}

impl SkipSet {
    /// Those of `sub_layers` that may be left out of a model of `num_layers`.
    pub fn new(num_layers: usize, sub_layers: impl IntoIterator<Item = SubLayer>) -> Self {
        let mut set = Self::default();
        let inner = 1..num_layers.saturating_sub(1);
        for sub_layer in sub_layers {
            match sub_layer {
                SubLayer::Attention(layer) if inner.contains(&layer) => set.attention.push(layer),
                SubLayer::Mlp(layer) if inner.contains(&layer) => set.mlp.push(layer),
                SubLayer::Attention(_) | SubLayer::Mlp(_) => {}
            }
        }
        for layers in [&mut set.attention, &mut set.mlp] {
            layers.sort_unstable();
            layers.dedup();
        }
        set
    }

    /// All that may be left out: attention of the inner layers, then their MLPs.
    pub fn candidates(num_layers: usize) -> Vec<SubLayer> {
        let inner = 1..num_layers.saturating_sub(1);
        let attention = inner.clone().map(SubLayer::Attention);
        attention.chain(inner.map(SubLayer::Mlp)).collect()
    }

    pub fn skips(&self, sub_layer: SubLayer) -> bool {
        match sub_layer {
            SubLayer::Attention(layer) => self.attention.binary_search(&layer).is_ok(),
            SubLayer::Mlp(layer) => self.mlp.binary_search(&layer).is_ok(),
        }
    }

    pub fn sub_layers(&self) -> impl Iterator<Item = SubLayer> + '_ {
        let attention = self.attention.iter().copied().map(SubLayer::Attention);
        attention.chain(self.mlp.iter().copied().map(SubLayer::Mlp))
    }

    /// Sub-layers left out.
    pub fn len(&self) -> usize {
        self.attention.len() + self.mlp.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the set was made for a model of this depth.
    pub fn fits(&self, num_layers: usize) -> bool {
        *self == Self::new(num_layers, self.sub_layers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_layer_are_kept() {
        let all = SkipSet::new(
            4,
            (0..4).flat_map(|l| [SubLayer::Mlp(l), SubLayer::Attention(l)]),
        );
        assert_eq!(all.sub_layers().collect::<Vec<_>>(), SkipSet::candidates(4));
        assert_eq!(all.len(), 4);
        assert!(all.skips(SubLayer::Mlp(2)) && !all.skips(SubLayer::Mlp(3)));
        assert!(all.fits(4) && !all.fits(3));
        assert!(SkipSet::new(2, [SubLayer::Mlp(0), SubLayer::Mlp(1)]).is_empty());
        assert!(SkipSet::candidates(1).is_empty());
    }
}
