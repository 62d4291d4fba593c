//! What a step costs by its rows, measured on this machine and model.

use std::time::Duration;

/// Row counts that are measured; between them costs are interpolated, beyond them extrapolated.
pub(super) const MEASURED_ROWS: [usize; 8] = [1, 2, 4, 8, 16, 17, 24, 32];
/// Share of a new measurement in what is remembered of all counts.
const NEW_SHARE: f64 = 0.1;
/// Share of it in what is remembered of its own count of rows, beside that: little, since a plain
/// batch sees one count alone, which then says nothing of the others.
const OWN_SHARE: f64 = 0.01;
/// A step that took more than this many times what was expected, or less than one such part, was disturbed: it counts as no more.
const OUTLIER: f64 = 2.0;

/// Seconds of a step that only decodes, by its number of rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepCosts {
    /// `(rows, seconds)`, ascending in rows.
    points: Vec<(usize, f64)>,
}

impl StepCosts {
    /// Every row costs the same: before anything is measured drafting never looks cheap.
    pub(super) fn unmeasured() -> Self {
        Self::new([(1, Duration::from_millis(1)), (2, Duration::from_millis(2))])
    }

    pub(super) fn new(points: impl IntoIterator<Item = (usize, Duration)>) -> Self {
        let points = points
            .into_iter()
            .map(|(rows, time)| (rows, time.as_secs_f64().max(1e-9)));
        Self {
            points: points.collect(),
        }
    }

    /// Of what could be measured, when that is enough.
    pub(super) fn measured(
        points: impl IntoIterator<Item = Option<(usize, Duration)>>,
    ) -> Option<Self> {
        let costs = Self::new(points.into_iter().flatten());
        (costs.points.len() > 1).then_some(costs)
    }

    /// Seconds of a step of `rows` rows.
    pub(super) fn seconds(&self, rows: usize) -> f64 {
        let after = self.points.iter().position(|(at, _)| *at >= rows);
        let after = after.unwrap_or(self.points.len() - 1).max(1);
        let ((r0, t0), (r1, t1)) = (self.points[after - 1], self.points[after]);
        let slope = (t1 - t0) / (r1 - r0) as f64;
        // Noise must not make a line that falls below zero.
        (t0 + slope * (rows as f64 - r0 as f64)).max(t0.min(t1))
    }

    /// Learns from a step. What makes a step take longer than expected is mostly the contexts that
    /// it reads, which make steps of all counts longer alike. Were it put down to this step's count
    /// alone, then more rows, which no plain step has, would look cheaper than they are.
    pub(super) fn observe(&mut self, rows: usize, elapsed: Duration) {
        let expected = self.seconds(rows);
        let ratio = (elapsed.as_secs_f64() / expected).clamp(1.0 / OUTLIER, OUTLIER);
        for (at, seconds) in &mut self.points {
            let own_share = if *at == rows { OWN_SHARE } else { 0.0 };
            *seconds *= 1.0 + (NEW_SHARE + own_share) * (ratio - 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn costs() -> StepCosts {
        StepCosts::new([(1, ms(10)), (4, ms(16)), (16, ms(40))])
    }

    #[test]
    fn costs_are_interpolated_and_extrapolated() {
        let near = |rows, expected: f64| {
            let seconds = costs().seconds(rows);
            assert!((seconds - expected).abs() < 1e-9, "{rows}: {seconds}");
        };
        near(1, 0.010);
        near(2, 0.012);
        near(4, 0.016);
        near(10, 0.028);
        near(20, 0.048);
    }

    #[test]
    fn a_longer_step_makes_all_longer_and_its_own_count_most() {
        let mut costs = costs();
        for _ in 0..100 {
            costs.observe(4, ms(20));
        }
        let grown = |rows, before: f64| costs.seconds(rows) / before;
        assert!((grown(4, 0.016) - 1.25).abs() < 0.01);
        for (rows, before) in [(1, 0.010), (16, 0.040)] {
            let grown = grown(rows, before);
            assert!(grown > 1.2 && grown < 1.24, "{rows}: {grown}");
        }
    }

    #[test]
    fn contexts_that_grow_make_no_draft_look_cheaper() {
        // Sixteen rows take 2.1 times what eight take, whatever the context: eight drafts never
        // pay.
        let mut costs = StepCosts::new([(1, ms(34)), (8, ms(60)), (16, ms(126))]);
        for step in 0..200 {
            costs.observe(8, ms(60 + step / 5));
            let gain = 2.0 * costs.seconds(8) / costs.seconds(16);
            assert!(gain < 1.0, "{step}: {gain}");
        }
    }

    #[test]
    fn a_disturbed_step_teaches_little() {
        let mut costs = costs();
        costs.observe(4, ms(9000));
        assert!(costs.seconds(4) < 0.0181, "{}", costs.seconds(4));
    }
}
