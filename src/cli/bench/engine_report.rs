//! What `ponder bench engine` measured, as a table or as JSON.

use serde_json::{Value, json};

use super::constrained::{Comparison, Constrained};
use super::statistics::{percentile, sorted};
use crate::model::Operator;

/// All that was measured.
pub(super) struct Report {
    pub name: String,
    pub threads: usize,
    pub device: String,
    pub load_seconds: f64,
    pub results: Vec<Measured>,
    pub grammar: Option<Constrained>,
    /// With the grammar and without, by the number of sequences.
    pub compared: Vec<(usize, Comparison)>,
}

impl Report {
    pub fn to_json(&self) -> Value {
        let of = |is_prefill: bool| {
            let results = self.results.iter();
            let wanted = results.filter(|result| result.is_prefill == is_prefill);
            wanted.map(Measured::to_json).collect::<Vec<_>>()
        };
        let mut result = json!({
            "model": self.name,
            "threads": self.threads,
            "isa": ponder_kernels::isa(),
            "device": self.device,
            "load_seconds": self.load_seconds,
            "prefill": of(true).into_iter().next(),
            "decode": of(false),
        });
        if let Some(grammar) = &self.grammar {
            let compared = self.compared.iter();
            result["grammar"] = grammar.to_json();
            result["constrained"] = compared.map(|(batch, of)| of.to_json(*batch)).collect();
        }
        result
    }

    pub fn print(&self) {
        println!(
            "{}: {} threads ({}), loaded in {:.1} s, tok/s median (min)",
            self.name,
            self.threads,
            ponder_kernels::isa(),
            self.load_seconds
        );
        self.results.iter().for_each(Measured::print);
        if let Some(grammar) = &self.grammar {
            grammar.print();
        }
        for (batch, comparison) in &self.compared {
            comparison.print(*batch);
        }
    }
}

/// The rates of one kind of work.
pub(super) struct Measured {
    pub is_prefill: bool,
    /// Tokens of the prompt, or sequences decoded together.
    pub size: usize,
    /// Tokens a second, ascending.
    pub rates: Vec<f64>,
    /// Of the model alone, where `rates` are those with an adapter.
    pub base: Option<BaseRates>,
    pub profile: Option<Profile>,
}

impl Measured {
    pub fn to_json(&self) -> Value {
        let key = if self.is_prefill { "tokens" } else { "batch" };
        let mut value = json!({
            key: self.size, "median": percentile(&self.rates, 0.5), "min": self.rates[0],
        });
        if let Some(base) = &self.base {
            value["without_adapter"] = base.to_json();
        }
        if let Some(profile) = &self.profile {
            value["profile"] = profile.to_json();
        }
        value
    }

    pub fn print(&self) {
        let (median, min) = (percentile(&self.rates, 0.5), self.rates[0]);
        let base = self.base.as_ref().map_or_else(String::new, BaseRates::text);
        if self.is_prefill {
            println!("prefill {:>4}   {median:>8.1} ({min:.1}){base}", self.size);
        } else {
            println!("decode x{:<4}  {median:>8.1} ({min:.1}){base}", self.size);
        }
        if let Some(profile) = &self.profile {
            profile.print();
        }
    }
}

/// What the model does without the adapter, measured in turns with it.
pub(super) struct BaseRates {
    /// Tokens a second, ascending.
    rates: Vec<f64>,
    /// Median of the rate with the adapter to the rate without, turn by turn.
    ratio: f64,
}

impl BaseRates {
    /// `with` and `without` are in the order of the turns; `None` where nothing was measured
    /// without.
    pub fn new(with: &[f64], without: Vec<f64>) -> Option<Self> {
        let ratios = with.iter().zip(&without).map(|(with, base)| with / base);
        let ratio = percentile(&sorted(ratios.collect()), 0.5);
        (!without.is_empty()).then(|| Self {
            rates: sorted(without),
            ratio,
        })
    }

    fn to_json(&self) -> Value {
        let median = percentile(&self.rates, 0.5);
        json!({ "median": median, "min": self.rates[0], "ratio": self.ratio })
    }

    fn text(&self) -> String {
        let (median, min) = (percentile(&self.rates, 0.5), self.rates[0]);
        format!(
            "   alone {median:>8.1} ({min:.1})   {:.2} of it",
            self.ratio
        )
    }
}

/// How the time of the last repeat divides.
pub(super) struct Profile {
    /// Milliseconds a step, by operator and outside the model.
    pub parts: Vec<(&'static str, f64)>,
    pub step_ms: f64,
}

impl Profile {
    pub fn new((nanoseconds, steps): ([u64; Operator::ALL.len()], u64), seconds: f64) -> Self {
        let a_step = |milliseconds: f64| milliseconds / steps.max(1) as f64;
        let step_ms = a_step(seconds * 1e3);
        let mut parts: Vec<_> = Operator::ALL
            .iter()
            .zip(nanoseconds)
            .map(|(operator, ns)| (operator.name(), a_step(ns as f64 / 1e6)))
            .collect();
        let inside: f64 = parts.iter().map(|(_, ms)| ms).sum();
        parts.push(("outside the model", (step_ms - inside).max(0.0)));
        Self { parts, step_ms }
    }

    pub fn to_json(&self) -> Value {
        let parts = self
            .parts
            .iter()
            .map(|(name, ms)| ((*name).to_owned(), json!(ms)));
        json!({"step_ms": self.step_ms, "operators_ms": Value::Object(parts.collect())})
    }

    pub fn print(&self) {
        for (name, ms) in &self.parts {
            let share = 100.0 * ms / self.step_ms;
            println!("    {name:<18} {ms:>9.3} ms {share:>5.1} %");
        }
        println!("    {:<18} {:>9.3} ms", "step", self.step_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_compared_turn_by_turn() {
        let base = BaseRates::new(&[9.0, 40.0, 80.0], vec![10.0, 50.0, 80.0]).unwrap();
        assert_eq!(base.rates, [10.0, 50.0, 80.0]);
        assert!((base.ratio - 0.9).abs() < 1e-12);
        assert!(BaseRates::new(&[9.0], Vec::new()).is_none());
    }
}
