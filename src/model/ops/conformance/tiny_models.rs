//! The models that whole decoders are checked with.

use std::path::Path;

use crate::model::ModelFiles;
use crate::model::families::{FAMILIES, Family};
use crate::model::testing::TinyModel;

/// A tiny model of each family, where it lies, and the family's name. Dense ones come from the
/// registry; others need a folder.
pub(super) fn models() -> Vec<(String, &'static str, ModelFiles)> {
    let folder = tempfile::tempdir().unwrap();
    let mut models = Vec::new();
    let is_dense = |family: &&&Family| family.experts.is_none() && !family.has_latent_attention;
    for family in FAMILIES.iter().filter(is_dense) {
        let name = family.gguf_names[0];
        let path = folder.path().join(name).with_extension("gguf");
        std::fs::write(&path, TinyModel::random(name, 5).to_gguf()).unwrap();
        let files = ModelFiles::open(&path).unwrap();
        models.push((name.to_owned(), family.name, files));
    }
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for (place, name) in [
        ("moe/olmoe", "olmoe"),
        ("moe/qwen2_moe/model.gguf", "qwen2_moe"),
        ("moe/qwen3_moe", "qwen3_moe"),
        ("moe/mixtral", "mixtral"),
        ("moe/granitemoe", "granitemoe"),
        ("moe/deepseek_v2", "deepseek_v2"),
        ("moe/deepseek_v2/model-kv_b.gguf", "deepseek_v2"),
        ("moe/deepseek_v2_grouped/model.gguf", "deepseek_v2"),
        ("families/phi4_mini", "phi3"),
        ("families/glm4/model.gguf", "glm4"),
        ("families/gpt_oss", "gpt_oss"),
    ] {
        let files = ModelFiles::open(&goldens.join(place)).unwrap();
        models.push((place.to_owned(), name, files));
    }
    models
}
