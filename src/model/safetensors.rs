//! A folder in Hugging Face layout: `config.json`, `tokenizer.json`, `*.safetensors`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ponder_kernels::{DType, MappedFile};
use safetensors::SafeTensors;
use serde_json::Value;

use super::config::ConfigError;
use super::families::Family;
use super::files::{MAX_JSON_BYTES, read_bounded};
use super::joined_experts::ExpertsPart;
use super::read_ahead::{Maps, ReadAhead};
use super::shards;
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
    #[error("the folder has no *.safetensors file{0}")]
    NoWeights(String),
    #[error("the folder is not a model: it has no config.json{0}")]
    NoConfig(String),
    #[error("{} is missing{}: put all {count} files of weights into the folder", path.display(), others(*num_others))]
    MissingShard {
        path: PathBuf,
        num_others: usize,
        count: usize,
    },
    #[error("tensor {0:?} is in two files")]
    Duplicate(String),
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        _ => format!(" (and {count} more)"),
    }
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
    weight_files: Vec<PathBuf>,
    config: Value,
    maps: Maps,
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
        if !config_path.exists() {
            return Err(SafetensorsError::NoConfig(shards::instead(path)));
        }
        let text = read_bounded(&config_path, MAX_JSON_BYTES).map_err(io(&config_path))?;
        let config = serde_json::from_slice(&text)?;
        let weight_files = shards::weight_files(path)?;
        let (mut maps, mut entries) = (Vec::new(), HashMap::new());
        for file in &weight_files {
            let map = map(file)?;
            read_directory(file, &map, maps.len(), &mut entries)?;
            maps.push(map);
        }
        Ok(Self {
            path: path.to_owned(),
            weight_files,
            config,
            maps: Maps::new(maps),
            entries,
        })
    }

    /// The files that hold the weights, in order.
    pub fn weight_files(&self) -> &[PathBuf] {
        &self.weight_files
    }

    /// Reads the weights before they are asked for, as long as the result lives.
    pub fn read_ahead(&self) -> ReadAhead {
        self.maps.read_ahead()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensor of this name as it lies in the file.
    pub(super) fn raw(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        let entry = self.entries.get(name);
        entry.map(|entry| self.read(name, entry)).transpose()
    }

    fn read(&self, name: &str, entry: &Entry) -> Result<RawTensor<'_>, LoadError> {
        let dtype = dtype_of(entry.dtype).ok_or_else(|| LoadError::UnsupportedType {
            name: name.to_owned(),
            dtype: format!("{:?}", entry.dtype),
        })?;
        let data = self.maps.bytes(entry.file, entry.start, entry.len);
        Ok(RawTensor {
            dtype,
            shape: entry.shape.clone(),
            data: Cow::Borrowed(data),
        })
    }

    /// A configuration that says that the head is not the embeddings needs a head.
    pub(super) fn check_head(&self) -> Result<(), ConfigError> {
        let config = self.config.get("text_config").unwrap_or(&self.config);
        let is_own = config["tie_word_embeddings"] == false;
        let has_head = self
            .entries
            .keys()
            .any(|name| name.ends_with("lm_head.weight"));
        match is_own && !has_head && !self.entries.is_empty() {
            true => Err(ConfigError::Missing("lm_head.weight".to_owned())),
            false => Ok(()),
        }
    }
}

/// Checks the header of a file's bytes.
///
/// # Errors
/// What is wrong, in words.
pub fn check_header(bytes: &[u8]) -> Result<(), String> {
    let read = SafeTensors::deserialize(bytes);
    read.map(drop).map_err(|error| error.to_string())
}

fn map(file: &Path) -> Result<MappedFile, SafetensorsError> {
    MappedFile::open(file).map_err(|source| {
        let path = file.to_owned();
        match source.kind() {
            std::io::ErrorKind::UnexpectedEof => SafetensorsError::Format {
                path,
                message: shards::explain(&[], ""),
            },
            _ => SafetensorsError::Io { path, source },
        }
    })
}

fn read_directory(
    path: &Path,
    map: &MappedFile,
    file: usize,
    entries: &mut HashMap<String, Entry>,
) -> Result<(), SafetensorsError> {
    let tensors = SafeTensors::deserialize(map).map_err(|error| SafetensorsError::Format {
        path: path.to_owned(),
        message: shards::explain(map, &error.to_string()),
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
    family: &'static Family,
}

impl<'a> HfWeights<'a> {
    pub fn new(folder: &'a SafetensorsDir, family: &'static Family) -> Self {
        Self { folder, family }
    }
}

impl HfWeights<'_> {
    fn entry(&self, hf_name: &str) -> Option<&Entry> {
        let entries = &self.folder.entries;
        let nested = || entries.get(&format!("language_model.{hf_name}"));
        entries.get(hf_name).or_else(nested)
    }

    pub(super) fn raw(&self, hf_name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        let entry = self.entry(hf_name);
        entry
            .map(|entry| self.folder.read(hf_name, entry))
            .transpose()
    }
}

/// Shape and values of a tensor of bytes.
type ByteTensor<'a> = (&'a [usize], &'a [u8]);

impl HfWeights<'_> {
    /// A tensor of bytes; `None` where there is none of this name.
    pub(super) fn bytes(&self, hf_name: &str) -> Result<Option<ByteTensor<'_>>, LoadError> {
        let Some(entry) = self.entry(hf_name) else {
            return Ok(None);
        };
        if entry.dtype != safetensors::Dtype::U8 {
            return Err(LoadError::UnsupportedType {
                name: hf_name.to_owned(),
                dtype: format!("{:?}", entry.dtype),
            });
        }
        let data = (self.folder.maps).bytes(entry.file, entry.start, entry.len);
        Ok(Some((&entry.shape, data)))
    }
}

impl WeightSource for HfWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, LoadError> {
        if let Some(part) = ExpertsPart::new(name, self.family) {
            return part.read(self);
        }
        let Some(hf_name) = hf_name(name, self.family) else {
            return Ok(None);
        };
        let Some(mut tensor) = self.raw(&hf_name)? else {
            return Ok(None);
        };
        if self.family.hf_tensors.norms_minus_one && name.ends_with("norm.weight") {
            let mut values = vec![0.0; tensor.shape.iter().product()];
            ponder_kernels::reference::dequantize(tensor.dtype, &tensor.data, &mut values);
            let bytes = values.iter().flat_map(|value| (value + 1.0).to_le_bytes());
            tensor.dtype = DType::F32;
            tensor.data = Cow::Owned(bytes.collect());
        }
        Ok(Some(tensor))
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
fn hf_name(name: &str, family: &Family) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let names = &family.hf_tensors;
    let part = match part {
        "ffn_gate_inp" => {
            let (moe, router) = (names.moe, names.router);
            return Some(format!("model.layers.{layer}.{moe}.{router}.{kind}"));
        }
        "attn_sinks" => return Some(format!("model.layers.{layer}.self_attn.sinks")),
        "exp_probs_b" => {
            let moe = names.moe;
            return Some(format!(
                "model.layers.{layer}.{moe}.gate.e_score_correction_bias"
            ));
        }
        "ffn_gate_inp_shexp" => "mlp.shared_expert_gate",
        "ffn_gate_shexp" | "ffn_up_shexp" | "ffn_down_shexp" => {
            let shared = names.shared_expert;
            let own = part.trim_start_matches("ffn_").trim_end_matches("_shexp");
            return Some(format!(
                "model.layers.{layer}.mlp.{shared}.{own}_proj.{kind}"
            ));
        }
        "attn_q_a" => "self_attn.q_a_proj",
        "attn_q_a_norm" => "self_attn.q_a_layernorm",
        "attn_q_b" => "self_attn.q_b_proj",
        "attn_kv_a_mqa" => "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm" => "self_attn.kv_a_layernorm",
        "attn_kv_b" => "self_attn.kv_b_proj",
        "attn_qkv" => names.joined_qkv?,
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => names.ffn_norm,
        "post_attention_norm" => names.post_norms[0],
        "post_ffw_norm" => names.post_norms[1],
        "ffn_gate" if names.joined_gate_up.is_some() => return None,
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => names.joined_gate_up.unwrap_or("mlp.up_proj"),
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}
