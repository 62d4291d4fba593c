//! A folder in Hugging Face layout: `config.json`, `tokenizer.json`, `*.safetensors`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ponder_kernels::{DType, MappedFile};
use safetensors::SafeTensors;
use serde_json::Value;

use super::config::{Architecture, ModelConfig};
use super::weights::{LoadError, RawTensor, WeightSource};

/// Why a folder is not a model.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{}: {message}", path.display())]
    Format { path: PathBuf, message: String },
    #[error("the folder has no *.safetensors file")]
    NoWeights,
    #[error("tensor {0:?} is in two files")]
    Duplicate(String),
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

/// An opened folder.
#[derive(Debug)]
pub struct SafetensorsDir {
    path: PathBuf,
    config: Value,
    maps: Vec<MappedFile>,
    entries: HashMap<String, Entry>,
}

impl SafetensorsDir {
    /// Maps every `*.safetensors` file and checks its header.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| SafetensorsError::Io { path, source }
        };
        let config_path = path.join("config.json");
        let text = std::fs::read(&config_path).map_err(io(&config_path))?;
        let config = serde_json::from_slice(&text)?;
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(io(path))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "safetensors")
            })
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(SafetensorsError::NoWeights);
        }
        let (mut maps, mut entries) = (Vec::new(), HashMap::new());
        for file in files {
            let map = MappedFile::open(&file).map_err(io(&file))?;
            read_directory(&file, &map, maps.len(), &mut entries)?;
            maps.push(map);
        }
        Ok(Self {
            path: path.to_owned(),
            config,
            maps,
            entries,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &Value {
        &self.config
    }
}

fn read_directory(
    path: &Path,
    map: &MappedFile,
    file: usize,
    entries: &mut HashMap<String, Entry>,
) -> Result<(), SafetensorsError> {
    let tensors = SafeTensors::deserialize(map).map_err(|error| SafetensorsError::Format {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    for (name, view) in tensors.iter() {
        let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
        let entry = Entry {
            file,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            start,
            len: view.data().len(),
        };
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(SafetensorsError::Duplicate(name.to_owned()));
        }
    }
    Ok(())
}

/// The folder's tensors under GGUF names.
pub struct HfWeights<'a> {
    folder: &'a SafetensorsDir,
    /// Gemma stores norm weights minus one; GGUF files hold them whole.
    norms_minus_one: bool,
    architecture: Architecture,
}

impl<'a> HfWeights<'a> {
    pub fn new(folder: &'a SafetensorsDir, config: &ModelConfig) -> Self {
        Self {
            folder,
            norms_minus_one: config.architecture == Architecture::Gemma3,
            architecture: config.architecture,
        }
    }
}

impl WeightSource for HfWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        let Some(hf_name) = hf_name(name, self.architecture) else {
            return Ok(None);
        };
        let nested = format!("language_model.{hf_name}");
        let entries = &self.folder.entries;
        let Some(entry) = entries.get(&hf_name).or_else(|| entries.get(&nested)) else {
            return Ok(None);
        };
        let Some(dtype) = dtype_of(entry.dtype) else {
            return Err(LoadError::UnsupportedType {
                name: hf_name,
                dtype: format!("{:?}", entry.dtype),
            });
        };
        let data = &self.folder.maps[entry.file][entry.start..entry.start + entry.len];
        if self.norms_minus_one && name.ends_with("norm.weight") {
            let mut values = vec![0.0; entry.shape.iter().product()];
            ponder_kernels::reference::dequantize(dtype, data, &mut values);
            let data = values
                .iter()
                .flat_map(|value| (value + 1.0).to_le_bytes())
                .collect();
            return Ok(Some(RawTensor {
                dtype: DType::F32,
                shape: entry.shape.clone(),
                data: Cow::Owned(data),
            }));
        }
        Ok(Some(RawTensor {
            dtype,
            shape: entry.shape.clone(),
            data: Cow::Borrowed(data),
        }))
    }
}

/// The kernels' name of a type of floats.
pub(super) fn dtype_of(dtype: safetensors::Dtype) -> Option<DType> {
    match dtype {
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::F16 => Some(DType::F16),
        safetensors::Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`
fn hf_name(name: &str, architecture: Architecture) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let is_gemma = architecture == Architecture::Gemma3;
    let part = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_norm" => "input_layernorm",
        "ffn_norm" if is_gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}
