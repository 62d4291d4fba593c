//! What several modules of these tests need: the small model that they run, loaded.

use std::sync::OnceLock;

use ponder::model::catalogue::{CATALOGUE, Entry, Progress, Source, pull};
use ponder::model::{CausalLm, LoadOptions, ModelFiles, load};

/// The model that tests run: the smallest one of the catalogue, whose answers the goldens hold.
pub const TEST_MODEL: &str = "smollm2-135m";

/// The client wants a TLS provider even for plain HTTP.
pub fn install_tls() {
    static TLS: OnceLock<()> = OnceLock::new();
    TLS.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: u64, _: u64, _: &str) {}
}

/// A catalogue model's files; fetched when missing.
pub fn files(entry: &'static Entry) -> ModelFiles {
    let path = pull(&Source::Catalogue(entry), &Silent).expect("the model can be fetched");
    ModelFiles::open(&path).expect("the model opens")
}

/// Those of [`TEST_MODEL`].
pub fn default_files() -> ModelFiles {
    files(Entry::find(TEST_MODEL).unwrap())
}

/// The models to test: [`TEST_MODEL`]; with PONDER_TEST_ALL_MODELS=1 all that are cached.
pub fn models() -> Vec<(&'static Entry, ModelFiles)> {
    let all = std::env::var_os("PONDER_TEST_ALL_MODELS").is_some();
    CATALOGUE
        .iter()
        .filter(|entry| {
            entry.name == TEST_MODEL || (all && entry.is_cached() && !entry.is_encoder())
        })
        .map(|entry| (entry, files(entry)))
        .collect()
}

pub fn load_model(files: &ModelFiles, max_model_len: usize) -> Box<dyn CausalLm> {
    let options = LoadOptions {
        num_threads: 2,
        max_model_len: Some(max_model_len),
        operator_times: None,
        ..LoadOptions::default()
    };
    load(files, options).expect("the model loads")
}

/// A file of `tests/goldens`.
pub fn golden(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
