//! Best-of-N: whole answers, each scored when it ends; a decisive score stops the rest.

use super::context::{Cut, Search};
use super::outcome::{SearchError, Stopped};
use super::tree::Tree;
use crate::reward::Scorer;

pub(super) async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let mut running = search.start(&[(Tree::ROOT, n)], Cut::Never).await?;
    let mut ended = Vec::new();
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
    if is_relative {
        search.score(&ended).await?;
    }
    Ok(())
}
