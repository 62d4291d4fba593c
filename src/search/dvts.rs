//! DVTS, diverse verifier tree search (search-and-learn): independent subtrees, each following its
//! own best child.

use futures::future::{BoxFuture, FutureExt};

use super::beam::{check_steps, rounds};
use super::context::Search;
use super::outcome::SearchError;
use super::spec::{SearchSpec, SpecError};
use super::strategy::{Defaults, Strategy};
use crate::reward::Weighted;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Dvts;

impl Strategy for Dvts {
    fn name(&self) -> &'static str {
        "dvts"
    }

    fn defaults(&self) -> Defaults {
        Defaults::COMMON
    }

    fn check(&self, _: &SearchSpec, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        check_steps(self.name(), scorer)
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        let group_size = search.spec.branch;
        rounds(search, group_size, 1).boxed()
    }
}
