//! What test-time adaptation changes in a forward pass of one sequence.

/// Vectors that are added while a sequence is computed. Nothing of the model's weights changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steering {
    /// By layer: added to the raw router logits of every row, `[num_experts]` ("Rewiring Experts on the Fly",
    /// <https://arxiv.org/abs/2510.14853>). Layers past the end have none.
    pub router: Vec<Option<Vec<f32>>>,
    /// Added to the normed final hidden state before the head, `[hidden_size]` (SLOT, <https://arxiv.org/abs/2505.12392>).
    pub hidden: Option<Vec<f32>>,
}

impl Steering {
    /// What is added to the router logits of `layer`.
    pub fn router_delta(&self, layer: usize) -> Option<&[f32]> {
        self.router.get(layer)?.as_deref()
    }

    /// Whether keys and values under it differ from those without.
    pub fn changes_kv(&self) -> bool {
        self.router.iter().any(Option::is_some)
    }
}
