//! Best-of-N: whole answers, each scored when it ends; a decisive score stops the rest. A token budget starts as many at
//! a time as it can be expected to finish.

use super::context::{Cut, Search};
use super::outcome::{SearchError, Stopped};
use super::tree::Tree;
use crate::reward::Scorer;

pub(super) async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let mut ended = Vec::new();
    let mut num_started = 0;
    while num_started < n && !search.is_over() {
        let wave = search.affordable(Tree::ROOT, n - num_started).max(1);
        num_started += wave;
        let mut running = search.start(&[(Tree::ROOT, wave)], Cut::Never).await?;
        while let Some(finished) = running.next().await {
            let finished = finished?;
            if search.is_nothing(&finished.continuation) {
                continue;
            }
            let (id, is_new) = search.add(Tree::ROOT, finished.index, finished.continuation);
            if is_new {
                ended.push(id);
            }
            if is_new && !is_relative {
                search.score(&[id]).await?;
                if search.stopped == Some(Stopped::Decided) {
                    running.stop();
                    break;
                }
            }
        }
    }
    if is_relative {
        search.score(&ended).await?;
    }
    Ok(())
}
