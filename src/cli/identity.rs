//! What a trace says of the files that made it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use xxhash_rust::xxh3::Xxh3;

use crate::model::catalogue::{self, Source};
use crate::trace::Identity;

const TOKENIZER_FILE: &str = "tokenizer.json";
const BUFFER_BYTES: usize = 1 << 20;

/// Of the model at `path` with the weights `files`, which was asked for as `model`.
pub(super) fn identity(model: &str, path: &Path, files: &[PathBuf]) -> anyhow::Result<Identity> {
    let known = match catalogue::resolve(model) {
        // Checked when it was fetched.
        Ok(Source::Catalogue(entry)) => Some(format!("sha256:{}", entry.sha256)),
        _ => None,
    };
    let is_folder = path.is_dir();
    let weights = match known {
        Some(known) => known,
        None => hash(files)?,
    };
    let tokenizer = match is_folder {
        true => hash(&[path.join(TOKENIZER_FILE)])?,
        // A GGUF file holds both.
        false => weights.clone(),
    };
    Ok(Identity {
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        weights,
        tokenizer,
        ..Identity::default()
    })
}

/// Of the files' bytes, one after the other. Not cryptographic: it tells files apart, it does not guard them.
pub(super) fn hash(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    for path in files {
        let failed = || format!("{}", path.display());
        let mut file = File::open(path).with_context(failed)?;
        loop {
            let length = file.read(&mut buffer).with_context(failed)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(format!("xxh3-128:{:032x}", hasher.digest128()))
}
