//! What the fuzz targets share: inputs of several parts, a mutator that knows JSON, the smallest
//! model, and folders in memory.

pub mod files;
pub mod model;
pub mod mutate;
pub mod parts;
pub mod server;
#[path = "../../tests/integration/tiny.rs"]
pub mod tiny;
pub mod words;

/// Where the first inputs of a target lie.
pub fn seeds(target: &str) -> std::path::PathBuf {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    fuzz.join("seeds").join(target)
}

/// What came of an input, for whoever looks at one: told when the variable is set.
pub fn tell(what: impl FnOnce() -> String) {
    if std::env::var_os("PONDER_FUZZ_TELL").is_some() {
        eprintln!("{}", what());
    }
}
