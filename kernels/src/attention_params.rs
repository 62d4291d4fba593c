//! What attention is told of a layer and of the rows of a step.

/// Shape and variant of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// A row sees this many tokens, itself included.
    pub sliding_window: Option<usize>,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// The rows of one sequence: the last `num_rows` of its `context_len` tokens. The very last of them
/// may be leaves of a tree of draft tokens: other tokens for a position that one of the rows before
/// has too.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRows<'a> {
    /// Blocks behind the sliding window of all rows are never read: they need not exist.
    pub block_table: &'a [u32],
    pub num_rows: usize,
    pub context_len: usize,
    /// The position of each leaf, one a row at the end. A leaf sees the tokens before its position
    /// and itself: its own key and value, which lie where its row is in the context, take the place
    /// of those at its position.
    pub leaves: &'a [u32],
}
