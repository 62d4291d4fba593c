//! Best-of-N: whole answers, each scored when it ends; a decisive score stops the rest. A token
//! budget starts as many at a time as it can be expected to finish. With `cost`, answers are
//! sampled until one more is expected to raise the best value by less than that, in waves that
//! double what there is.

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::improvement::{Scale, expected_improvement};
use super::outcome::{SearchError, Stopped, is_whole};
use super::spec::{SearchSpec, SpecError};
use super::strategy::{Defaults, Strategy};
use super::tree::Tree;
use crate::reward::{Scorer, Weighted};

/// Answers of the first wave that may be the last: two, so that a batch is one.
const FIRST_WAVE: usize = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BestOfN;

impl Strategy for BestOfN {
    fn name(&self) -> &'static str {
        "best_of_n"
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            takes_cost: true,
            ..Defaults::COMMON
        }
    }

    fn check(&self, spec: &SearchSpec, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        let is_relative = scorer.is_some_and(Scorer::is_relative);
        if spec.cost.is_none() || !is_relative {
            return Ok(());
        }
        Err(SpecError {
            param: "cost".to_owned(),
            message: "cost needs the value of each answer by itself: leave out the reward \
                      majority, or cost"
                .to_owned(),
        })
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let n = search.spec.n;
    let is_relative = search.scorer.is_some_and(Scorer::is_relative);
    let mut ended = Vec::new();
    // One a whole answer, those that repeat another included.
    let mut values = Vec::new();
    let mut num_started = 0;
    while num_started < n && !search.is_over() {
        let most = match search.spec.cost {
            None => n,
            Some(_) => num_started.max(FIRST_WAVE),
        };
        let wave = search
            .affordable(Tree::ROOT, most.min(n - num_started))
            .max(1);
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
            if is_relative {
                continue;
            }
            if is_new {
                search.score(&[id]).await?;
            }
            let node = search.tree.node(id);
            if is_whole(node.end) && node.score.is_some() {
                values.push(node.value);
            }
            if !is_worth_more(search, &values) {
                search.stopped.get_or_insert(Stopped::Decided);
            }
            if search.stopped == Some(Stopped::Decided) {
                samples.stop();
                break;
            }
        }
    }
    if is_relative {
        search.score(&ended).await?;
    }
    Ok(())
}

/// Whether one more answer is expected to gain what it costs.
fn is_worth_more(search: &Search<'_>, values: &[f64]) -> bool {
    let Some(cost) = search.spec.cost.filter(|_| !values.is_empty()) else {
        return true;
    };
    let is_decisive = search.scorer.is_some_and(Scorer::is_decisive);
    let scale = if is_decisive {
        Scale::Decisive
    } else {
        Scale::Graded
    };
    expected_improvement(values, scale) > cost
}
