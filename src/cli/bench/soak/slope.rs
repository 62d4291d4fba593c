//! How fast memory grows.

use super::sampler::Sample;

/// Seconds that the judged part of a life must have: over less, one buffer that grows once looks like
/// a slope.
const SHORTEST: f64 = 120.0;
/// What is held for moments is no growth: of so many seconds the least counts.
const WINDOW: f64 = 10.0;
const MIB: f64 = 1024.0 * 1024.0;

/// The growth of the longest life, over its second half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Growth {
    pub mib_per_minute: f64,
    /// The mean of the same time.
    pub mib: f64,
    /// How long that was.
    pub seconds: f64,
}

/// The slope of a line through points, by least squares; 0 where there is none.
fn slope(points: &[(f64, f64)]) -> f64 {
    let num = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / num.max(1.0);
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    match variance > 0.0 {
        true => covariance / variance,
        false => 0.0,
    }
}

/// `None` where no life was long enough, or the system does not tell.
pub(super) fn growth(samples: &[Sample]) -> Option<Growth> {
    let mut longest: (f64, &[Sample]) = (0.0, &[]);
    for life in samples.chunk_by(|a, b| a.life == b.life) {
        let seconds = life[life.len() - 1].seconds - life[0].seconds;
        if seconds > longest.0 {
            longest = (seconds, life);
        }
    }
    let (seconds, life) = longest;
    let judged = seconds / 2.0;
    if judged < SHORTEST {
        return None;
    }
    let from = life[0].seconds + judged;
    let judged = life.iter().filter(|sample| sample.seconds >= from);
    let sizes = judged.filter_map(|sample| Some((sample.seconds, sample.process?.rss_bytes)));
    let sizes: Vec<(f64, u64)> = sizes.collect();
    let windows = sizes.chunk_by(|a, b| (a.0 / WINDOW).floor() == (b.0 / WINDOW).floor());
    let least = windows.filter_map(|window| window.iter().min_by_key(|(_, bytes)| *bytes));
    let points: Vec<(f64, f64)> = least
        .map(|(seconds, bytes)| (seconds / 60.0, *bytes as f64 / MIB))
        .collect();
    let (first, last) = (sizes.first()?, sizes.last()?);
    Some(Growth {
        mib_per_minute: slope(&points),
        mib: points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64,
        seconds: last.0 - first.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::soak::sampler::{Metrics, Process};

    fn samples(life: u64, seconds: std::ops::Range<u64>, mib: fn(f64) -> f64) -> Vec<Sample> {
        let sample = |second: u64| Sample {
            seconds: second as f64,
            life,
            health_ms: 1.0,
            metrics: Metrics::default(),
            process: Some(Process {
                rss_bytes: (mib(second as f64) * MIB) as u64,
                ..Process::default()
            }),
        };
        seconds.map(sample).collect()
    }

    #[test]
    fn lines_have_their_slope() {
        assert_eq!(slope(&[]), 0.0);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        assert_eq!(slope(&[(1.0, 5.0), (2.0, 3.0), (3.0, 1.0)]), -2.0);
        // numpy.polyfit([0, 1, 2, 3], [0, 2, 1, 4], 1)[0]
        let points = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.0), (3.0, 4.0)];
        assert!((slope(&points) - 1.1).abs() < 1e-12);
    }

    #[test]
    fn the_second_half_of_the_longest_life_counts() {
        // A steep start, then 3 MiB a minute; before it a shorter life that grows fast.
        let mut all = samples(1, 0..100, |second| 10.0 * second);
        all.extend(samples(2, 100..400, |second| match second < 200.0 {
            true => second,
            false => 200.0 + (second - 200.0) / 20.0,
        }));
        let growth = growth(&all).unwrap();
        assert!((growth.mib_per_minute - 3.0).abs() < 1e-3, "{growth:?}");
        assert!((growth.seconds - 149.0).abs() < 1.0, "{growth:?}");
        assert!((growth.mib - 206.0).abs() < 1.0, "{growth:?}");
    }

    #[test]
    fn what_is_held_for_moments_is_no_growth() {
        let all = samples(1, 0..400, |second| match second % 10.0 < 7.0 {
            // Ever larger, and given back.
            true => 100.0 + second,
            false => 100.0,
        });
        assert_eq!(growth(&all).unwrap().mib_per_minute, 0.0);
    }

    #[test]
    fn short_lives_tell_nothing() {
        assert_eq!(growth(&[]), None);
        assert_eq!(growth(&samples(1, 0..100, |_| 5.0)), None);
        let mut silent = samples(1, 0..300, |_| 5.0);
        for sample in &mut silent {
            sample.process = None;
        }
        assert_eq!(growth(&silent), None);
    }
}
