//! The decoder families that the native engine runs: one file each, and one list of them all.
//!
//! Nothing else in this room knows a family by name. Configuration, both kinds of files, layers and
//! adapters read what differs from the fields of [`Family`].

mod deepseek_v2;
mod gemma3;
mod glm4;
mod gpt_oss;
mod granitemoe;
mod llama;
mod mixtral;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
pub(super) mod shapes;
mod smollm3;

use ponder_kernels::Glu;
use serde_json::Value;

/// Every family. Adding one is a file beside this and a line here.
pub static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma3::FAMILY,
    &smollm3::FAMILY,
    &phi3::FAMILY,
    &glm4::FAMILY,
    &gpt_oss::FAMILY,
    &olmoe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &mixtral::FAMILY,
    &granitemoe::FAMILY,
    &deepseek_v2::FAMILY,
];

/// What sets a family of decoders apart from the others. A file writes its differences from another one:
/// `Family { name: "…", ..llama::FAMILY }`.
pub struct Family {
    /// As messages and metrics show it: the name that transformers uses.
    pub name: &'static str,
    /// `general.architecture` of GGUF files. Two families may share one when only one of them has experts.
    pub gguf_names: &'static [&'static str],
    /// `model_type` of `config.json`.
    pub hf_names: &'static [&'static str],
    pub(super) adjacent_pairs: AdjacentPairs,
    pub(super) attention_scale: AttentionScale,
    /// Biases of Q, K and V.
    pub(super) qkv_bias: Bias,
    /// Attention's output projection has a bias.
    pub(super) output_bias: bool,
    /// Each head has a score beside those of the tokens, of no value.
    pub(super) attention_sinks: bool,
    /// The norm before the feed-forward part, in GGUF files.
    pub(super) ffn_norm: &'static str,
    /// YaRN rounds the bounds of what it blends, in GGUF files, which do not say.
    pub(super) yarn_truncates: bool,
    pub(super) qk_norm: QkNorm,
    /// RMS norms on the outputs of attention and MLP too.
    pub(super) post_norms: bool,
    pub(super) glu: Glu,
    /// Embeddings are multiplied by the root of the hidden size where files do not say.
    pub(super) scales_embeddings: bool,
    /// Of families with layers that attend through a sliding window.
    pub(super) local_layers: Option<LocalLayers>,
    /// One layer in so many leaves queries and keys as they are, where files do not say.
    pub(super) unrotated_every: Option<usize>,
    /// The part of a head that is rotated where `config.json` does not say; `None`: all of it,
    /// whatever files say.
    pub(super) partial_rotary: Option<f32>,
    /// Of families with mixture-of-experts layers.
    pub(super) experts: Option<ExpertsFamily>,
    /// Keys and values come from a latent vector.
    pub(super) has_latent_attention: bool,
    pub(super) hf_tensors: HfTensors,
}

/// In which files rows of Q and K are stored so that adjacent elements of a head rotate together; elsewhere its halves do.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdjacentPairs {
    pub gguf: bool,
    pub hf: bool,
}

impl AdjacentPairs {
    pub(super) const NOWHERE: Self = Self {
        gguf: false,
        hf: false,
    };
}

/// What multiplies q·k, before the scaling of positions changes it.
#[derive(Clone, Copy)]
pub(super) struct AttentionScale {
    /// Where a GGUF file does not say.
    pub gguf: fn(&AttentionSizes) -> f32,
    /// By `config.json` and the head size.
    pub hf: fn(&Value, usize) -> f32,
}

/// What a scale of attention may depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionSizes {
    pub num_layers: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    pub head_dim: usize,
}

/// What a family's mixture-of-experts layers have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertsFamily {
    /// The chosen experts' weights are divided by their sum where files do not say.
    pub normalise: bool,
    /// `norm_topk_prob` counts only where scores are sigmoids.
    pub normalise_key_needs_sigmoid: bool,
    /// Where `config.json` has the width of what every row goes through beside its experts.
    pub shared: SharedWidth,
    /// Of the router and of each expert's projections.
    pub has_biases: bool,
}

impl ExpertsFamily {
    /// Weights that are not divided by their sum, no shared expert, no biases.
    pub(super) const PLAIN: Self = Self {
        normalise: false,
        normalise_key_needs_sigmoid: false,
        shared: SharedWidth::None,
        has_biases: false,
    };
}

/// How `config.json` gives the width of the shared expert.
#[derive(Debug, Clone, Copy)]
pub(super) enum SharedWidth {
    /// There is no shared expert.
    None,
    /// Under this key.
    Key(&'static str),
    /// So many times the width of an expert.
    Experts(&'static str),
}

/// Whether products have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    Always,
    /// `attention_bias` of `config.json` says so, or they lie in the GGUF file.
    Stored,
}

/// How tensors are called in Hugging Face files, where families differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct HfTensors {
    /// Norm weights are stored minus one; GGUF files hold them whole.
    pub norms_minus_one: bool,
    /// The norm before the feed-forward part.
    pub ffn_norm: &'static str,
    /// The norms after attention and MLP, of families with post-norms.
    pub post_norms: [&'static str; 2],
    /// Q, K and V in one tensor.
    pub joined_qkv: Option<&'static str>,
    /// Gate and up in one tensor.
    pub joined_gate_up: Option<&'static str>,
    /// The module of experts in a layer.
    pub moe: &'static str,
    /// The router in that module.
    pub router: &'static str,
    /// Gate, up and down of an expert that lies alone.
    pub expert: [&'static str; 3],
    /// Gate and up of all experts in one tensor, and their downs.
    pub joined_experts: [&'static str; 2],
    pub experts_layout: ExpertsLayout,
    /// The shared expert's module.
    pub shared_expert: &'static str,
}

/// How the projections of all experts lie in joined tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertsLayout {
    /// `[experts, outputs, inputs]`, the gate's outputs before those of up.
    Halves,
    /// `[experts, inputs, outputs]`, the outputs of gate and up in turns; biases `[experts,
    /// outputs]` lie under the same name with `_bias`, and MXFP4 weights with `_blocks` (`[experts,
    /// outputs, blocks, 16]`) and `_scales` (`[experts, outputs, blocks]`).
    Turns,
}

/// Which layers attend through the sliding window, where a file names one.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalLayers {
    /// One layer in so many is global: it sees the whole context. `None`: all are local.
    pub global_every: Option<usize>,
    /// Base frequency of the local ones, where it is not the model's own.
    pub rope_theta: Option<f32>,
}

impl LocalLayers {
    pub(super) fn has(&self, layer: usize) -> bool {
        self.global_every
            .is_none_or(|every| !(layer + 1).is_multiple_of(every))
    }
}

/// RMS norm of Q and K before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head on its own.
    Heads,
    /// All heads as one vector.
    Whole,
}

impl Family {
    /// The family of a GGUF file with this `general.architecture`. Of two with one name, that with or without experts as
    /// the file is.
    pub(super) fn of_gguf(name: &str, has_experts: bool) -> Option<&'static Self> {
        let named =
            || (FAMILIES.iter().copied()).filter(|family| family.gguf_names.contains(&name));
        let fits = |family: &&Self| family.experts.is_some() == has_experts;
        named().find(fits).or_else(|| named().next())
    }

    /// The family of a `config.json` with this `model_type`.
    pub(super) fn of_hf(name: &str) -> Option<&'static Self> {
        let mut families = FAMILIES.iter().copied();
        families.find(|family| family.hf_names.contains(&name))
    }

    /// What multiplies embeddings where files do not say.
    pub(super) fn embedding_scale(&self, hidden_size: usize) -> f32 {
        match self.scales_embeddings {
            true => (hidden_size as f32).sqrt(),
            false => 1.0,
        }
    }

    /// Whether a layer attends through the sliding window.
    pub(super) fn is_local(&self, layer: usize) -> bool {
        self.local_layers.is_some_and(|local| local.has(layer))
    }

    /// The names of all families, for messages.
    pub fn supported() -> String {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        names.join(", ")
    }
}

/// Families are told apart by their names.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Family({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_name_leads_to_its_family_and_to_no_other() {
        for (index, family) in FAMILIES.iter().enumerate() {
            for name in family.gguf_names {
                let found = Family::of_gguf(name, family.experts.is_some());
                assert_eq!(found, Some(*family), "{name}");
            }
            for name in family.hf_names {
                assert_eq!(Family::of_hf(name), Some(*family), "{name}");
            }
            assert!(family.hf_names.contains(&family.name), "{}", family.name);
            let is_other = |other: &&&Family| other.name == family.name;
            assert_eq!(
                FAMILIES.iter().position(|other| is_other(&other)),
                Some(index)
            );
        }
        assert_eq!(Family::of_gguf("llama", false), Some(&llama::FAMILY));
        assert_eq!(Family::of_gguf("llama", true), Some(&mixtral::FAMILY));
        // A file that says both is refused by its configuration, under the family it names.
        assert_eq!(Family::of_gguf("qwen2", true), Some(&qwen2::FAMILY));
        assert_eq!(Family::of_gguf("gpt2", false), None);
        assert_eq!(Family::of_hf("gpt2"), None);
    }

    /// What differs is read from a family's fields, not from its name.
    #[test]
    fn no_other_file_of_this_room_knows_a_family() {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model");
        let mut folders = vec![room.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let place = path.strip_prefix(&room).unwrap();
                let is_own = ["families", "ops/conformance"]
                    .iter()
                    .any(|own| place.starts_with(own));
                match path.is_dir() {
                    true if is_own => {}
                    true => folders.push(path),
                    false => check_file(&path),
                }
            }
        }
    }

    fn check_file(path: &Path) {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        let names = FAMILIES
            .iter()
            .flat_map(|f| f.gguf_names.iter().chain(f.hf_names));
        for name in names {
            let is_named = code.contains(&format!("\"{name}\""));
            assert!(!is_named, "{} knows {name}", path.display());
        }
    }

    #[test]
    fn the_readme_names_every_family() {
        let readme = include_str!("../../../README.md").to_lowercase();
        let plain = |text: &str| text.replace(['-', '_', ' '], "");
        let readme = plain(&readme);
        for family in FAMILIES {
            assert!(readme.contains(&plain(family.name)), "{}", family.name);
        }
    }
}
