//! What is asked, and in which ways.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The arm without a search.
pub(super) const GREEDY: &str = "greedy";

/// A question, how a search may judge its answers, and how the benchmark does.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Problem {
    pub messages: Vec<Value>,
    #[serde(default)]
    pub reward: Option<Value>,
    pub grade: Value,
}

/// One way to ask.
#[derive(Debug, Clone)]
pub(super) struct Arm {
    pub name: String,
    /// Absent for the greedy answer.
    pub search: Option<Value>,
}

pub(super) fn read_problems(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Problem>> {
    let text = std::fs::read_to_string(path);
    let path = path.display();
    let text = text.with_context(|| format!("{path}"))?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let problems: Vec<Problem> = lines
        .take(limit.unwrap_or(usize::MAX))
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("{path}, line {}", number + 1))
        })
        .collect::<anyhow::Result<_>>()?;
    ensure!(!problems.is_empty(), "{path} has no problems");
    Ok(problems)
}

impl Arm {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if text == GREEDY {
            return Ok(Self {
                name: GREEDY.to_owned(),
                search: None,
            });
        }
        let search: Value = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).with_context(|| format!("--search {text}"))?,
            false => serde_json::json!({"strategy": text}),
        };
        let strategy = search["strategy"].as_str();
        let strategy = strategy.with_context(|| format!("--search {text} has no strategy"))?;
        let mut name = strategy.to_owned();
        for part in ["n", "branch"] {
            if let Some(number) = search[part].as_u64() {
                name.push_str(&format!(" {part}={number}"));
            }
        }
        if let Some(kind) = search["reward"]["kind"].as_str() {
            name.push_str(&format!(", {kind}"));
        }
        Ok(Self {
            name,
            search: Some(search),
        })
    }

    /// The search of one problem: the problem's reward where the arm names none, and the budget.
    pub fn search_of(&self, problem: &Problem, tokens: Option<u64>) -> Option<Value> {
        let mut search = self.search.clone()?;
        if search["reward"].is_null()
            && let Some(reward) = &problem.reward
        {
            search["reward"] = reward.clone();
        }
        if let Some(tokens) = tokens {
            search["budget"]["tokens"] = tokens.into();
        }
        Some(search)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_arm_keeps_its_own_reward_and_takes_the_problems_otherwise() {
        let problem = Problem {
            messages: Vec::new(),
            reward: Some(json!({"kind": "majority"})),
            grade: json!({"kind": "likelihood"}),
        };
        let plain = Arm::parse("best_of_n").unwrap();
        assert_eq!(
            plain.search_of(&problem, Some(9)).unwrap(),
            json!({"strategy": "best_of_n", "reward": {"kind": "majority"}, "budget": {"tokens": 9}})
        );
        let own = r#"{"strategy": "beam", "n": 4, "reward": {"kind": "prm"}}"#;
        let own = Arm::parse(own).unwrap();
        assert_eq!(own.name, "beam n=4, prm");
        let search = own.search_of(&problem, None).unwrap();
        assert_eq!(search["reward"], json!({"kind": "prm"}));
        let greedy = Arm::parse(GREEDY).unwrap();
        assert!(greedy.search_of(&problem, Some(9)).is_none());
        assert!(Arm::parse("{}").is_err());
    }
}
