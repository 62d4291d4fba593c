//! Flags of `ponder bench soak`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};

use crate::cli::values::MAX_SECONDS;
use crate::model::catalogue::DEFAULT_MODEL;

#[derive(Debug, Clone, Args)]
pub struct BenchSoakArgs {
    /// What the server under test serves: catalogue name, .gguf file, safetensors folder or hf:ORG/REPO/FILE
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,
    /// How long there is traffic
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    pub minutes: f64,
    /// Number of clients at the same time
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u64).range(1..=1024))]
    pub clients: u64,
    /// Of what is asked when, and of the kills
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds between two ends of the server, on average, in the first half of the time; 0 lets it live
    #[arg(long, default_value_t = 45.0, value_parser = seconds)]
    pub kill_every: f64,
    /// Only these kinds of traffic, as the table calls them (several: repeat, or separate by commas)
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Write all counts, checks and samples there, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Further flags of `ponder serve`, after --
    #[arg(last = true, value_name = "FLAGS")]
    pub serve: Vec<String>,
}

impl BenchSoakArgs {
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }

    pub(super) fn kill_every(&self) -> Option<Duration> {
        (self.kill_every > 0.0).then(|| Duration::from_secs_f64(self.kill_every))
    }

    /// Whether the server under test gets a flag from the command line.
    pub(super) fn serves_with(&self, flag: &str) -> bool {
        let is_flag = |word: &String| {
            let name = word.split('=').next();
            name == Some(flag)
        };
        self.serve.iter().any(is_flag)
    }
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = within(text, MAX_SECONDS as f64 / 60.0)?;
    match minutes > 0.0 {
        true => Ok(minutes),
        false => Err("must be above 0".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, MAX_SECONDS as f64)
}

fn within(text: &str, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match (0.0..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("is not in 0..={most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_bounded() {
        for bad in ["0", "-1", "nan", "inf", "1e18", "soon"] {
            assert!(minutes(bad).is_err(), "{bad}");
        }
        assert_eq!(minutes("0.05"), Ok(0.05));
        assert_eq!(seconds("0"), Ok(0.0));
        assert!(seconds("1e300").is_err());
    }
}
