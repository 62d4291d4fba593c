//! Every kernel compiles for every architecture that is served, without a device: NVRTC needs none.

use ponder_kernels_cuda::compile::{LIBRARY_VARIABLE, compile_all, compiler_version};

/// Ampere, Ada, Hopper, Blackwell.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

/// Without the library there is nothing to test; `.ci/run` names one, and then there must be one.
#[test]
fn every_kernel_compiles_for_every_architecture() {
    let Some(version) = compiler_version() else {
        assert!(
            std::env::var_os(LIBRARY_VARIABLE).is_none(),
            "{LIBRARY_VARIABLE} names no libnvrtc"
        );
        eprintln!("skipped: no libnvrtc");
        return;
    };
    for arch in ARCHITECTURES {
        let files = compile_all(arch).unwrap_or_else(|error| panic!("{version:?}: {error}"));
        assert!(!files.is_empty(), "no kernels");
        for (file, nbytes) in files {
            assert!(nbytes > 0, "{file} is empty for {arch}");
        }
    }
}
