//! What a path on disk holds: a GGUF file or a folder of safetensors.

use std::path::{Path, PathBuf};

use super::config::{ConfigError, ModelConfig};
use super::gguf::{GgufError, GgufFile};
use super::safetensors::{SafetensorsDir, SafetensorsError};

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
        GgufFile::open(path)
            .map(ModelFiles::Gguf)
            .map_err(|source| OpenError::Gguf {
                path: path.to_owned(),
                source,
            })
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
            ModelFiles::Safetensors(folder) => ModelConfig::from_hf(folder.config()),
        }
    }
}
