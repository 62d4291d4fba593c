//! What a strategy is, and the table of all strategies. A new strategy is a file of its own and a
//! row here. The API's names and schema, model names with a strategy, the command line's help and
//! the test of `docs/search-reference.md` read the table.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use futures::future::{BoxFuture, FutureExt};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::auto::Auto;
use super::beam::Beam;
use super::best_of_n::BestOfN;
use super::confidence::ConfidenceSpec;
use super::context::Search;
use super::deepconf::DeepConf;
use super::dvts::Dvts;
use super::mcts::Mcts;
use super::outcome::SearchError;
use super::particle_filtering::ParticleFiltering;
use super::rebase::Rebase;
use super::self_consistency::SelfConsistency;
use super::spec::{SearchSpec, SpecError};
use super::vm_mcts::VmMcts;
use crate::reward::Weighted;

/// How a search spends its budget.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// The name in the API.
    fn name(&self) -> &'static str;

    /// What holds where a request says nothing.
    fn defaults(&self) -> Defaults;

    /// Whether it can search as asked with this scorer.
    fn check(&self, _spec: &SearchSpec, _scorer: Option<&Weighted>) -> Result<(), SpecError> {
        Ok(())
    }

    /// Leaves whole answers in the search's tree. Ends early once [`Search::is_over`].
    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>>;

    /// Gives the whole answers the values that they are ranked by, once the scores of all are known
    /// and unless one of them has decided the search. They keep their own where nothing is done.
    fn choose(&self, _search: &mut Search<'_>) {}
}

/// All that a request may name, in the order in which they are listed.
pub static STRATEGIES: [&dyn Strategy; 10] = [
    &Auto,
    &SelfConsistency,
    &DeepConf,
    &BestOfN,
    &Beam,
    &Dvts,
    &Rebase,
    &ParticleFiltering,
    &Mcts,
    &VmMcts,
];

/// The answer that a request without a search gets; listed nowhere, but it has a name.
pub static PLAIN: &dyn Strategy = &Plain;

/// The names that a request may give, [`PLAIN`]'s first.
static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| all().map(|s| s.name()).collect());

fn all() -> impl Iterator<Item = &'static dyn Strategy> {
    std::iter::once(PLAIN).chain(STRATEGIES)
}

/// A row of the table by its name.
pub fn find(name: &str) -> Option<&'static dyn Strategy> {
    let mut rows = STRATEGIES.into_iter();
    rows.find(|strategy| strategy.name() == name)
}

/// What holds where a request says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    pub n: usize,
    pub branch: usize,
    pub max_depth: usize,
    pub iterations: usize,
    pub exploration: f64,
    pub threshold: Option<f64>,
    /// What ends a step.
    pub delimiter: &'static str,
    /// `branch` is bounded by `n` rather than by what the engine runs at once.
    pub is_branch_within_n: bool,
    /// Votes decide and not values: without a reward all count the same, and `threshold` is a confidence.
    pub is_vote: bool,
    /// `cost` may be asked for, and this holds where it is not.
    pub takes_cost: bool,
    pub cost: Option<f64>,
    /// A reward weighs the votes even where none is named.
    pub needs_reward: bool,
    /// `confidence` may be asked for, and this holds where it is not.
    pub confidence: Option<ConfidenceSpec>,
}

impl Defaults {
    /// Samples, and beams as in search-and-learn: 8, of which each kept one has 4 children, over 40 rounds. The rest is
    /// read by some strategies only.
    pub const COMMON: Self = Self {
        n: 8,
        branch: 4,
        max_depth: 40,
        iterations: 16,
        exploration: 0.7,
        threshold: None,
        delimiter: "\n\n",
        is_branch_within_n: true,
        is_vote: false,
        takes_cost: false,
        cost: None,
        needs_reward: false,
        confidence: None,
    };
}

/// No search: the one answer that every search without an answer finishes.
#[derive(Debug)]
struct Plain;

impl Strategy for Plain {
    fn name(&self) -> &'static str {
        "none"
    }

    fn defaults(&self) -> Defaults {
        Defaults::COMMON
    }

    fn run<'s>(&'s self, _: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        async { Ok(()) }.boxed()
    }
}

impl Serialize for dyn Strategy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for &'static dyn Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        let found = all().find(|strategy| strategy.name() == name);
        found.ok_or_else(|| serde::de::Error::unknown_variant(&name, &NAMES))
    }
}

/// The schema of a strategy's name.
pub struct StrategyName;

impl PartialSchema for StrategyName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("How a search spends its budget."))
            .enum_values(Some(NAMES.iter().copied()))
            .into()
    }
}

impl ToSchema for StrategyName {
    fn name() -> Cow<'static, str> {
        "Strategy".into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::search::cut::Cut;
    use crate::search::scripted::ScriptedPolicy;
    use crate::search::tree::Tree;
    use crate::search::{SearchRequest, Stopped};

    /// One answer after the other, until one is long enough.
    #[derive(Debug)]
    struct UntilLong;

    impl Strategy for UntilLong {
        fn name(&self) -> &'static str {
            "until_long"
        }

        fn defaults(&self) -> Defaults {
            Defaults {
                iterations: 5,
                is_vote: true,
                ..Defaults::COMMON
            }
        }

        fn check(&self, spec: &SearchSpec, _: Option<&Weighted>) -> Result<(), SpecError> {
            match spec.n {
                1 => Ok(()),
                n => Err(SpecError {
                    param: "n".to_owned(),
                    message: format!("n must be 1, not {n}"),
                }),
            }
        }

        fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
            async move {
                for _ in 0..search.spec.iterations {
                    let mut samples = search.start(&[(Tree::ROOT, 1)], Cut::Never).await?;
                    while let Some(sample) = search.next(&mut samples).await? {
                        let length = sample.continuation.text.len();
                        let (id, _) = search.add(sample);
                        search.tree.nodes[id].value = length as f64 / 100.0;
                        if length > 6 {
                            search.stopped = Some(Stopped::Decided);
                            return Ok(());
                        }
                    }
                }
                Ok(())
            }
            .boxed()
        }
    }

    #[test]
    fn a_strategy_needs_nothing_but_its_trait() {
        let mut request = SearchRequest::of(&UntilLong);
        assert_eq!(json!(request)["strategy"], "until_long");
        let spec = request.resolve(64, "likelihood").unwrap();
        assert_eq!((spec.iterations, spec.rewards.len()), (5, 0));
        assert_eq!(spec.check_scorer(None).unwrap_err().param, "n");
        request.n = Some(1);
        let spec = request.resolve(64, "likelihood").unwrap();
        spec.check_scorer(None).unwrap();
        // The second expansion says so.
        let policy = ScriptedPolicy::new(None, |_, path, _| {
            let text = ["short", "long enough", "never seen"][path[0] as usize];
            (text.to_owned(), true)
        });
        let search = Search::new(&policy, None, &spec, None);
        let outcome = futures::executor::block_on(search.run()).unwrap();
        outcome.tree.check_invariants();
        assert_eq!(outcome.answers[0].text, "long enough");
        assert_eq!(outcome.tree.nodes.len(), 3);
        assert_eq!(outcome.stopped, Some(Stopped::Decided));
    }

    #[test]
    fn names_are_found_and_none_is_told_twice() {
        for strategy in STRATEGIES {
            let found = find(strategy.name()).unwrap();
            assert_eq!(found.name(), strategy.name());
            let name = json!(strategy.name());
            let read: &'static dyn Strategy = serde_json::from_value(name.clone()).unwrap();
            assert_eq!(json!(read), name);
        }
        assert!(find(PLAIN.name()).is_none());
        let names: std::collections::HashSet<&str> = NAMES.iter().copied().collect();
        assert_eq!(names.len(), STRATEGIES.len() + 1);
        let error = serde_json::from_value::<&'static dyn Strategy>(json!("best")).unwrap_err();
        let expected =
            "unknown variant `best`, expected one of `none`, `auto`, `self_consistency`,";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
