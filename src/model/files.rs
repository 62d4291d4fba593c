//! What a path on disk holds: a GGUF file or a folder of safetensors.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::config::{ConfigError, ModelConfig};
use super::gguf::{GgufError, GgufFile};
use super::mistaken::text_in_place_of_a_model;
use super::read_ahead::ReadAhead;
use super::safetensors::{SafetensorsDir, SafetensorsError};

/// Bytes of a JSON file beside a model's weights. The largest `tokenizer.json` known has 35 MB.
pub const MAX_JSON_BYTES: u64 = 256 << 20;
/// Bytes of an adapter's weights.
pub(super) const MAX_ADAPTER_BYTES: u64 = 8 << 30;

/// Reads a file of `max_bytes` at most. Devices and pipes, which may never end, are not read, and
/// neither are Git LFS pointers and web pages in the file's place.
pub fn read_bounded(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let refused = |what: String| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return refused("not a regular file".to_owned());
    }
    if metadata.len() > max_bytes {
        let len = metadata.len();
        return refused(format!("it has {len} bytes; {max_bytes} are read"));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // A file may grow meanwhile.
    std::fs::File::open(path)?
        .take(max_bytes)
        .read_to_end(&mut bytes)?;
    match text_in_place_of_a_model(&bytes) {
        Some(what) => refused(what),
        None => Ok(bytes),
    }
}

/// The files of one model.
#[derive(Debug)]
pub enum ModelFiles {
    Gguf(GgufFile),
    Safetensors(SafetensorsDir),
}

/// Why a path is not a model.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{}: {source}", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("{}: {source}", path.display())]
    Safetensors {
        path: PathBuf,
        source: SafetensorsError,
    },
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{}: give the folder that holds the safetensors file, with its config.json and tokenizer.json", .0.display())]
    OneFile(PathBuf),
}

impl ModelFiles {
    /// Opens a `.gguf` file or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if path.is_dir() {
            return SafetensorsDir::open(path)
                .map(ModelFiles::Safetensors)
                .map_err(|source| OpenError::Safetensors {
                    path: path.to_owned(),
                    source,
                });
        }
        if !path.exists() {
            return Err(OpenError::Missing(path.to_owned()));
        }
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            return Err(OpenError::OneFile(path.to_owned()));
        }
        GgufFile::open(path)
            .map(ModelFiles::Gguf)
            .map_err(|source| OpenError::Gguf {
                path: path.to_owned(),
                source,
            })
    }

    /// The files that hold the weights, in order.
    pub fn weight_files(&self) -> &[PathBuf] {
        match self {
            ModelFiles::Gguf(file) => file.paths(),
            ModelFiles::Safetensors(folder) => folder.weight_files(),
        }
    }

    /// Reads the weights before they are asked for, as long as the result lives: for those who
    /// load the model.
    pub fn read_ahead(&self) -> ReadAhead {
        match self {
            ModelFiles::Gguf(file) => file.read_ahead(),
            ModelFiles::Safetensors(folder) => folder.read_ahead(),
        }
    }

    /// Whether the model takes images too, by its config.json.
    pub fn sees_images(&self) -> bool {
        match self {
            ModelFiles::Gguf(_) => false,
            ModelFiles::Safetensors(folder) => folder.config()["vision_config"].is_object(),
        }
    }

    pub fn config(&self) -> Result<ModelConfig, ConfigError> {
        match self {
            ModelFiles::Gguf(file) => ModelConfig::from_gguf(file),
            ModelFiles::Safetensors(folder) => {
                folder.check_head()?;
                ModelConfig::from_hf(folder.config())
            }
        }
    }
}
