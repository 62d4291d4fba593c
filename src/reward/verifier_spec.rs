//! The verifiers that a request may name, checked and made into scorers.

use std::sync::Arc;
use std::time::Instant;

use super::spec::{
    BuildError, RewardContext, RewardResources, RewardSpec, RewardSpecError, invalid,
};
use super::verifier::python::PythonTests;
use super::verifier::schema::SchemaError;
use super::verifier::{TextCheck, TextScorer};
use super::{Scorer, ScorerError};
use crate::text::Pattern;

const MAX_TESTS: usize = 256;
const MAX_TEST_BYTES: usize = 64 << 10;

impl RewardSpec {
    pub(super) async fn verifier(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn Scorer>, BuildError> {
        let scorer = |check| -> Arc<dyn Scorer> {
            Arc::new(TextScorer {
                check,
                pool: context.pool.clone(),
                tenant: context.tenant,
            })
        };
        match self.check.as_deref() {
            Some("math") => {
                self.check_unused(&["type", "answer"])?;
                Ok(scorer(TextCheck::Math(self.known_answer()?)))
            }
            Some("exact") => {
                self.check_unused(&["type", "answer"])?;
                Ok(scorer(TextCheck::Exact(self.known_answer()?)))
            }
            Some("regex") => {
                self.check_unused(&["type", "pattern"])?;
                Ok(scorer(TextCheck::Regex(
                    self.regex(context, deadline).await?,
                )))
            }
            Some("json_schema") => {
                self.check_unused(&["type", "schema"])?;
                self.json_schema(resources, context, deadline).await
            }
            Some("python") => {
                self.check_unused(&["type", "tests", "prefix"])?;
                Ok(self.python(resources, context)?)
            }
            other => Ok(invalid(
                ".type",
                format!(
                    "a verifier's type is math, exact, regex, json_schema or python, not {}",
                    other.unwrap_or("absent")
                ),
            )?),
        }
    }

    fn known_answer(&self) -> Result<String, RewardSpecError> {
        match &self.answer {
            Some(answer) if !answer.trim().is_empty() => Ok(answer.clone()),
            _ => invalid(".answer", "this verifier needs the right answer"),
        }
    }

    async fn regex(
        &self,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Pattern, BuildError> {
        let Some(pattern) = self.pattern.clone() else {
            return Ok(invalid(".pattern", "this verifier needs a pattern")?);
        };
        let what = "compiling the pattern";
        let build = move |_: &_| Ok(Pattern::new(&pattern));
        let built = context.pool.run(what, context.tenant, deadline, build);
        let built = built
            .await
            .map_err(|error| ScorerError::work("verifier", error))?;
        Ok(built.or_else(|message| invalid(".pattern", message))?)
    }

    async fn json_schema(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn Scorer>, BuildError> {
        let Some(schema) = &self.schema else {
            return Ok(invalid(".schema", "this verifier needs a JSON schema")?);
        };
        let Some(checker) = &resources.schemas else {
            let message = "this server cannot check schemas: that needs a process with limits, \
                which this system does not have";
            return Ok(invalid(".type", message)?);
        };
        match checker
            .scorer(schema.clone(), context.tenant, deadline)
            .await
        {
            Ok(scorer) => Ok(Arc::new(scorer)),
            Err(SchemaError::Invalid(message)) => Ok(invalid(".schema", message)?),
            Err(SchemaError::Scorer(error)) => Err(error.into()),
        }
    }

    fn python(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
    ) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        let Some(runner) = &resources.python else {
            return invalid(
                ".type",
                "this server does not run code: the operator must start it with \
                 --allow-code-execution",
            );
        };
        let tests = self.tests.clone().unwrap_or_default();
        if tests.is_empty() || tests.len() > MAX_TESTS {
            return invalid(".tests", format!("tests takes 1 to {MAX_TESTS} statements"));
        }
        if tests.iter().map(String::len).sum::<usize>() > MAX_TEST_BYTES {
            return invalid(
                ".tests",
                format!("tests takes at most {MAX_TEST_BYTES} bytes"),
            );
        }
        let prefix = self.prefix.clone().unwrap_or_default();
        let tests = PythonTests::new(runner.clone(), tests, prefix, context.tenant);
        Ok(Arc::new(tests))
    }
}
