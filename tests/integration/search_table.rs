//! The documents name what the table of strategies has.

use ponder::search::{Defaults, STRATEGIES};

/// A default by its name in the API.
fn value(defaults: &Defaults, name: &str) -> Option<f64> {
    match name {
        "n" => Some(defaults.n as f64),
        "branch" => Some(defaults.branch as f64),
        "max_depth" => Some(defaults.max_depth as f64),
        "iterations" => Some(defaults.iterations as f64),
        "exploration" => Some(defaults.exploration),
        "threshold" => defaults.threshold,
        "cost" => defaults.cost,
        "warm_up" => defaults.confidence.map(|it| it.warm_up as f64),
        "keep" => defaults.confidence.map(|it| it.keep),
        "window" => defaults.confidence.map(|it| it.window as f64),
        _ => None,
    }
}

#[test]
fn the_documents_list_every_strategy_with_its_defaults() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/search-reference.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("## Strategies").nth(1).unwrap();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .skip(1);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| !line.starts_with("| `kind`"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .collect();
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row[0].trim_matches([' ', '`']))
        .collect();
    let expected: Vec<&str> = STRATEGIES.iter().map(|strategy| strategy.name()).collect();
    assert_eq!(names, expected);
    for (row, strategy) in rows.iter().zip(STRATEGIES) {
        let defaults = strategy.defaults();
        let column = row.last().unwrap().trim();
        if let Some(other) = column.strip_prefix("as ") {
            let other = ponder::search::find(other.trim_matches('`')).unwrap();
            assert_eq!(other.defaults(), defaults, "{}", strategy.name());
            continue;
        }
        for part in column.split(", ") {
            let (name, number) = part.split_once(' ').unwrap();
            let number: f64 = number.parse().unwrap();
            let expected = value(&defaults, name.trim_matches('`'));
            assert_eq!(Some(number), expected, "{}: {part}", strategy.name());
        }
    }
}
