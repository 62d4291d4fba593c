//! Beam search over steps (search-and-learn): all beams compete for the places of a round.

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::outcome::{SearchError, is_whole};
use super::spec::{SearchSpec, SpecError};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use crate::reward::{Scorer, Weighted};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Beam;

impl Strategy for Beam {
    fn name(&self) -> &'static str {
        "beam"
    }

    fn defaults(&self) -> Defaults {
        Defaults::COMMON
    }

    fn check(&self, _: &SearchSpec, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        check_steps(self.name(), scorer)
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        let group_size = search.spec.n;
        let num_kept = num_kept(search.spec);
        rounds(search, group_size, num_kept).boxed()
    }
}

/// Beams compare answers that have not ended.
pub(super) fn check_steps(name: &str, scorer: Option<&Weighted>) -> Result<(), SpecError> {
    if scorer.is_some_and(Scorer::scores_steps) {
        return Ok(());
    }
    Err(SpecError {
        param: "reward".to_owned(),
        message: format!(
            "{name} compares answers that have not ended: add a reward that scores steps, such as likelihood"
        ),
    })
}

/// Beams that are continued each round.
fn num_kept(spec: &SearchSpec) -> usize {
    (spec.n / spec.branch).max(1)
}

/// Beams compete within groups of `group_size` first steps; `kept_per_group` of each go on each round. All are expanded
/// in one batch.
pub(super) async fn rounds(
    search: &mut Search<'_>,
    group_size: usize,
    kept_per_group: usize,
) -> Result<(), SearchError> {
    let (n, width) = (search.spec.n, search.spec.branch);
    let num_kept = num_kept(search.spec);
    let step = search.spec.step.clone();
    let mut first = search
        .expand(&[(Tree::ROOT, n)], Cut::AfterStep(&step))
        .await?;
    let first = first.pop().unwrap_or_default();
    search.score(&first).await?;
    let groups = first.chunks(group_size).map(<[NodeId]>::to_vec);
    let mut groups: Vec<Vec<NodeId>> = groups.collect();
    let mut num_whole = 0;
    for _ in 1..search.spec.max_depth {
        let mut live = Vec::new();
        for group in &mut groups {
            keep_best(search, group, kept_per_group, &mut num_whole);
            live.extend(group.iter().copied());
        }
        if live.is_empty() || num_whole >= num_kept || search.is_over() || search.must_finish() {
            break;
        }
        if num_whole == 0 {
            search.agree(&live);
        }
        let requests: Vec<(NodeId, usize)> = live.iter().map(|id| (*id, width)).collect();
        let children = search.expand(&requests, Cut::AfterStep(&step)).await?;
        search.score(&children.concat()).await?;
        let mut children = children.into_iter();
        for group in &mut groups {
            let next = children.by_ref().take(group.len());
            *group = next.flatten().collect();
        }
    }
    Ok(())
}

/// Leaves the best beams that can go on in `group`; whole answers are counted and set aside.
fn keep_best(
    search: &mut Search<'_>,
    group: &mut Vec<NodeId>,
    num_kept: usize,
    num_whole: &mut usize,
) {
    group.sort_by(|a, b| {
        let value = |id: NodeId| search.tree.node(id).value;
        value(*b).total_cmp(&value(*a)).then(a.cmp(b))
    });
    let pruned = group.split_off(num_kept.min(group.len()));
    for id in pruned {
        search.prune(id);
    }
    group.retain(|id| {
        let end = search.tree.node(*id).end;
        *num_whole += usize::from(is_whole(end));
        end.is_none()
    });
}
