//! Best-of-N: whole answers, each scored when it ends; a decisive score stops the rest. A token budget starts as many at
//! a time as it can be expected to finish.

use futures::future::{BoxFuture, FutureExt};

use super::context::{Cut, Search};
use super::outcome::{SearchError, Stopped};
use super::strategy::{Defaults, Strategy};
use super::tree::Tree;
use crate::reward::Scorer;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BestOfN;

impl Strategy for BestOfN {
    fn name(&self) -> &'static str {
        "best_of_n"
    }

    fn defaults(&self) -> Defaults {
        Defaults::COMMON
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let mut ended = Vec::new();
    let mut num_started = 0;
    while num_started < n && !search.is_over() {
        let wave = search.affordable(Tree::ROOT, n - num_started).max(1);
        num_started += wave;
        let mut samples = search.start(&[(Tree::ROOT, wave)], Cut::Never).await?;
        while let Some(sample) = search.next(&mut samples).await? {
            if search.is_nothing(&sample.continuation) {
                continue;
            }
            let (id, is_new) = search.add(sample);
            if is_new {
                ended.push(id);
            }
            if is_new && !is_relative {
                search.score(&[id]).await?;
                if search.stopped == Some(Stopped::Decided) {
                    samples.stop();
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
