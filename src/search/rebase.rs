//! REBASE (arXiv 2408.00724, section 3.2 and the released code): reward-balanced search. At each
//! depth the samples that are left are shared out among the open nodes by their values; the answers
//! are put to a vote weighted by theirs.

use futures::future::{BoxFuture, FutureExt};

use super::beam::check_steps;
use super::context::Search;
use super::cut::Cut;
use super::outcome::{SearchError, is_whole};
use super::spec::{SearchSpec, SpecError};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use super::vote::weighted_vote;
use super::weights::exponentials;
use crate::reward::Weighted;

/// T_b, which divides values before their softmax (`softmax_temperature` of the released
/// `rebase.yaml`).
const BALANCE_TEMPERATURE: f64 = 0.2;
/// What rounding may leave of a share that is a whole number.
const ROUNDING: f64 = 1e-9;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rebase;

impl Strategy for Rebase {
    fn name(&self) -> &'static str {
        "rebase"
    }

    fn defaults(&self) -> Defaults {
        Defaults::COMMON
    }

    fn check(&self, _: &SearchSpec, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        check_steps(self.name(), scorer)
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }

    fn choose(&self, search: &mut Search<'_>) {
        weighted_vote(search);
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let step = search.spec.step.clone();
    let mut layer = vec![(Tree::ROOT, n)];
    let mut num_finished = 0;
    for depth in 1..=search.spec.max_depth {
        let children = search.expand(&layer, Cut::AfterStep(&step)).await?.concat();
        search.score(&children).await?;
        let (open, ended): (Vec<NodeId>, Vec<NodeId>) = children
            .into_iter()
            .partition(|id| search.tree.node(*id).end.is_none());
        let whole = ended
            .iter()
            .filter(|id| is_whole(search.tree.node(**id).end));
        num_finished += whole
            .map(|id| num_samples(&search.tree, *id))
            .sum::<usize>();
        let is_last = depth == search.spec.max_depth || open.is_empty() || num_finished >= n;
        if is_last || search.is_over() || search.must_finish() {
            break;
        }
        layer = share_out(search, &open, n - num_finished);
        let going_on: Vec<NodeId> = layer.iter().map(|(id, _)| *id).collect();
        search.agree(&going_on);
    }
    Ok(())
}

/// Samples that ended in a node: equal ones are merged.
fn num_samples(tree: &Tree, id: NodeId) -> usize {
    1 + tree.node(id).duplicate_paths.len()
}

/// How often each node is continued, `budget` times in all; a node that gets nothing is given up.
fn share_out(search: &mut Search<'_>, open: &[NodeId], budget: usize) -> Vec<(NodeId, usize)> {
    let values: Vec<f64> = open.iter().map(|id| search.tree.node(*id).value).collect();
    // Samples that were merged each have a weight of their own.
    let weights = exponentials(&values, BALANCE_TEMPERATURE);
    let weights = open.iter().zip(weights);
    let weights: Vec<f64> = weights
        .map(|(id, weight)| weight * num_samples(&search.tree, *id) as f64)
        .collect();
    let mut order: Vec<usize> = (0..open.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let weights: Vec<f64> = order.iter().map(|at| weights[*at]).collect();
    let mut layer = Vec::with_capacity(open.len());
    for (at, share) in order.into_iter().zip(shares(&weights, budget)) {
        match share {
            0 => search.prune(open[at]),
            _ => layer.push((open[at], share)),
        }
    }
    layer
}

/// Shares `budget` out in proportion to weights, the best first. As in the released code each takes
/// its share of what is left, rounded up, so that the shares sum to the budget.
fn shares(weights: &[f64], budget: usize) -> Vec<usize> {
    let mut left = budget;
    let mut shares = Vec::with_capacity(weights.len());
    for (at, weight) in weights.iter().enumerate() {
        let rest: f64 = weights[at..].iter().sum();
        let share = left as f64 * weight / rest;
        let share = ((share - ROUNDING).ceil() as usize).min(left);
        shares.push(share);
        left -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_the_budget() {
        assert_eq!(shares(&[1.0; 4], 4), [1, 1, 1, 1]);
        assert_eq!(shares(&[1.0; 4], 8), [2, 2, 2, 2]);
        assert_eq!(shares(&[1.0; 3], 8), [3, 3, 2]);
        assert_eq!(shares(&[1.0; 4], 2), [1, 1, 0, 0]);
        // 8 * 4/7 = 4.6, 3 * 2/3 = 2, 1.
        assert_eq!(shares(&[4.0, 2.0, 1.0], 8), [5, 2, 1]);
        assert_eq!(shares(&[1.0, 1e-9], 16), [16, 0]);
        for budget in 1..40 {
            for count in 1..9 {
                let weights: Vec<f64> = (0..count).map(|at| 0.7_f64.powi(at)).collect();
                assert_eq!(shares(&weights, budget).iter().sum::<usize>(), budget);
            }
        }
    }
}
