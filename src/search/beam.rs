//! Beam search over steps, and DVTS (diverse verifier tree search): independent subtrees, each following its
//! own best child (search-and-learn).

use super::context::{Cut, Search};
use super::outcome::{SearchError, is_whole};
use super::spec::Strategy;
use super::tree::{NodeId, Tree};

pub(super) async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let (n, width) = (search.spec.n, search.spec.branch);
    let num_kept = (n / width).max(1);
    let step = search.spec.step.clone();
    // Every subtree (one for beam search) has its own beams; all are expanded in one batch.
    let mut first = search
        .expand(&[(Tree::ROOT, n)], Cut::AfterStep(&step))
        .await?;
    let first = first.pop().unwrap_or_default();
    search.score(&first).await?;
    let mut groups: Vec<Vec<NodeId>> = match search.spec.strategy {
        Strategy::Dvts => first.chunks(width).map(<[NodeId]>::to_vec).collect(),
        _ => vec![first],
    };
    let kept_per_group = match search.spec.strategy {
        Strategy::Dvts => 1,
        _ => num_kept,
    };
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
