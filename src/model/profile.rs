//! Where a forward pass spends its time, operator by operator.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A part of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Embedding rows and the attention plan.
    Embed,
    /// RMS norms with the quantisation of their results.
    Norm,
    /// Q, K and V in one section.
    Qkv,
    /// QK-norm, rotation and the KV cache write.
    RotateAndCache,
    Attention,
    /// Quantisation of attention's result.
    Quantise,
    /// Attention's output product with the residual add.
    AttentionOutput,
    /// Gate and up with the activation and its quantisation.
    GateUp,
    /// Down with the residual add.
    Down,
    /// Router logits of a mixture-of-experts layer.
    Router,
    /// Its experts, with the residual add.
    Experts,
    /// The final norm and the logits of the rows that want them.
    Head,
}

impl Operator {
    pub const ALL: [Operator; 12] = [
        Operator::Embed,
        Operator::Norm,
        Operator::Qkv,
        Operator::RotateAndCache,
        Operator::Attention,
        Operator::Quantise,
        Operator::AttentionOutput,
        Operator::GateUp,
        Operator::Down,
        Operator::Router,
        Operator::Experts,
        Operator::Head,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Operator::Embed => "embed",
            Operator::Norm => "norm + quantise",
            Operator::Qkv => "qkv",
            Operator::RotateAndCache => "rope + kv write",
            Operator::Attention => "attention",
            Operator::Quantise => "quantise",
            Operator::AttentionOutput => "attention output",
            Operator::GateUp => "gate, up, act",
            Operator::Down => "down",
            Operator::Router => "router",
            Operator::Experts => "experts",
            Operator::Head => "head",
        }
    }
}

/// Nanoseconds of each operator over all steps; shared with whoever reads them.
#[derive(Debug, Default)]
pub struct OperatorTimes {
    nanoseconds: [AtomicU64; Operator::ALL.len()],
    steps: AtomicU64,
}

impl OperatorTimes {
    fn add(&self, operator: Operator, nanoseconds: u64) {
        self.nanoseconds[operator as usize].fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The nanoseconds of each operator and the number of steps since the last call.
    pub fn take(&self) -> ([u64; Operator::ALL.len()], u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let times = std::array::from_fn(|index| take(&self.nanoseconds[index]));
        (times, take(&self.steps))
    }
}

/// Attributes the time since the last mark; does nothing when nobody wants it.
pub(super) struct Stopwatch<'a> {
    times: Option<&'a OperatorTimes>,
    last: Option<Instant>,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn start(times: Option<&'a OperatorTimes>) -> Self {
        if let Some(times) = times {
            times.steps.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            times,
            last: times.map(|_| Instant::now()),
        }
    }

    /// `operator` has just ended.
    pub(super) fn mark(&mut self, operator: Operator) {
        if let (Some(times), Some(last)) = (self.times, &mut self.last) {
            let now = Instant::now();
            times.add(operator, (now - *last).as_nanos() as u64);
            *last = now;
        }
    }
}
