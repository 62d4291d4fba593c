//! Lists the kernels' sources, so that a new file needs no entry anywhere.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder =
        Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(&folder).expect("the kernels' folder is there");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    files.sort();
    let mut text = String::new();
    for (table, extension) in [("SOURCES", ".cu"), ("HEADERS", ".cuh")] {
        writeln!(text, "pub(crate) const {table}: &[(&str, &str)] = &[")
            .expect("a string takes it");
        for file in files.iter().filter_map(|file| file.to_str()) {
            if file.ends_with(extension) {
                let path = folder.join(file);
                writeln!(text, "    ({file:?}, include_str!({path:?})),")
                    .expect("a string takes it");
            }
        }
        text.push_str("];\n");
    }
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("sources.rs");
    fs::write(out, text).expect("the output folder takes a file");
}
