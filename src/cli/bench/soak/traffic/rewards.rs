//! What searches are decided by.

use serde_json::{Value, json};

use crate::cli::bench::soak::client::Client;

/// Strategies that must score unfinished answers.
const BY_STEPS: [&str; 4] = ["beam", "dvts", "rebase", "particle_filtering"];

/// A reward that a strategy can search by.
pub(super) fn of_strategy(client: &mut Client, strategy: &str) -> Value {
    match BY_STEPS.contains(&strategy) {
        true => of_steps(client),
        false => any(client),
    }
}

fn of_steps(client: &mut Client) -> Value {
    let mut rewards = vec![
        json!({"kind": "likelihood"}),
        json!({"kind": "judge"}),
        json!([{"kind": "likelihood", "weight": 2}, {"kind": "judge", "instruction": "Is it short?"}]),
    ];
    if client.shared.has_prm {
        rewards.push(json!({"kind": "prm"}));
    }
    client.dice.pick(&rewards).clone()
}

/// Any reward that this server has.
pub(super) fn any(client: &mut Client) -> Value {
    let mut rewards = vec![
        of_steps(client),
        json!({"kind": "majority"}),
        json!({"kind": "verifier", "type": "exact", "answer": "33"}),
        json!({"kind": "verifier", "type": "math", "answer": "\\frac{66}{2}"}),
        json!({"kind": "verifier", "type": "regex", "pattern": "(?i)\\b(the|a)\\b"}),
        json!({"kind": "verifier", "type": "json_schema", "schema":
            {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}),
    ];
    if client.shared.may_run_code {
        let tests = ["assert median([3, 1, 2]) == 2", "assert median([1]) == 1"];
        rewards.push(json!({"kind": "verifier", "type": "python", "tests": tests}));
    }
    client.dice.pick(&rewards).clone()
}
