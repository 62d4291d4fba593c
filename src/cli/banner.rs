//! What a server says once it answers: where it is, and a command that asks it something.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::api::{Served, ServedEncoders};
use crate::encoding::EncoderKind;

/// What the served model is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Use {
    Chat,
    /// It has no chat template.
    Completion,
    Embedding,
    Rerank,
}

impl Use {
    pub(super) fn new(model: Option<&Served>, encoders: &ServedEncoders) -> Self {
        let is_embedder = |kind: &EncoderKind| matches!(kind, EncoderKind::Embedder(_));
        match model {
            Some(model) if model.chat_template.is_some() => Self::Chat,
            Some(_) => Self::Completion,
            None if encoders.all.iter().any(|it| is_embedder(&it.kind)) => Self::Embedding,
            None => Self::Rerank,
        }
    }

    fn request(self, model: &str) -> (&'static str, Value) {
        match self {
            Self::Chat => (
                "/v1/chat/completions",
                json!({"model": model, "messages": [{"role": "user", "content": "Who are you?"}],
                    "max_tokens": 100}),
            ),
            Self::Completion => (
                "/v1/completions",
                json!({"model": model, "prompt": "Once upon a time", "max_tokens": 32}),
            ),
            Self::Embedding => ("/v1/embeddings", json!({"model": model, "input": "A text"})),
            Self::Rerank => (
                "/v1/rerank",
                json!({"model": model, "query": "A question", "documents": ["One", "Two"]}),
            ),
        }
    }
}

/// A server that answers.
pub(super) struct Banner<'a> {
    pub address: SocketAddr,
    /// The names of what is served.
    pub models: &'a [String],
    pub use_of_model: Use,
    pub has_keys: bool,
    /// Whether browsers find a page at `/`.
    pub has_page: bool,
    /// What computes, and how long it took to load.
    pub how: &'a str,
}

impl Banner<'_> {
    /// Lines for a terminal. The first one has the address that the server listens on, and those
    /// who start servers wait for it.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "ponder {} serves {} on http://{} (API under /v1, docs at /docs)\n",
            env!("CARGO_PKG_VERSION"),
            self.models.join(", "),
            self.address
        );
        if self.has_page {
            text += &format!("  open  http://{}/\n", self.reachable());
        }
        text += &format!("  ask   {}\n", self.command());
        if self.has_keys {
            text += "        (with a key in PONDER_API_KEY)\n";
        }
        text + self.how
    }

    /// One line for a shell.
    fn command(&self) -> String {
        let model = self.models.first().map_or("", String::as_str);
        let (path, body) = self.use_of_model.request(model);
        let key = match self.has_keys {
            true => " -H \"Authorization: Bearer $PONDER_API_KEY\"",
            false => "",
        };
        format!(
            "curl http://{}{path}{key} -H 'Content-Type: application/json' -d '{}'",
            self.reachable(),
            body.to_string().replace('\'', r"'\''")
        )
    }

    /// The address from this machine: one that stands for all of a machine's is none to connect to.
    fn reachable(&self) -> SocketAddr {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner<'a>(address: &str, models: &'a [String], use_of_model: Use) -> Banner<'a> {
        Banner {
            address: address.parse().unwrap(),
            models,
            use_of_model,
            has_keys: false,
            has_page: true,
            how: "2 threads",
        }
    }

    #[test]
    fn the_first_lines_say_where_and_how() {
        let models = ["m".to_owned(), "n".to_owned()];
        let text = banner("127.0.0.1:80", &models, Use::Chat).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains(" serves m, n on http://127.0.0.1:80 ("));
        assert_eq!(lines[1].trim(), "open  http://127.0.0.1:80/");
        let (_, body) = Use::Chat.request("m");
        let command = format!(
            "ask   curl http://127.0.0.1:80/v1/chat/completions \
             -H 'Content-Type: application/json' -d '{body}'"
        );
        assert_eq!(lines[2].trim(), command);
        assert_eq!(lines[3], "2 threads");
    }

    #[test]
    fn keys_quotes_and_addresses_of_all_are_cared_for() {
        let models = ["it's".to_owned()];
        let mut banner = banner("[::]:80", &models, Use::Embedding);
        (banner.has_keys, banner.has_page) = (true, false);
        let text = banner.text();
        assert!(text.contains("on http://[::]:80 ("), "{text}");
        assert!(text.contains("curl http://[::1]:80/v1/embeddings -H \"Auth"));
        assert!(text.contains(r#"{"model":"it'\''s","#), "{text}");
        assert!(text.contains("PONDER_API_KEY)") && !text.contains("open "));
        banner.address = "0.0.0.0:1".parse().unwrap();
        assert!(banner.text().contains("curl http://127.0.0.1:1/"));
    }
}
