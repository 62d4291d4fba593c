//! Which instruction sets there are, and which one this process runs.

use std::sync::OnceLock;

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512, and AMX tiles for products of many rows.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx-int8",
        }
    }

    /// What a multiply-add of quantised weights costs beside one with AVX-512, roughly.
    pub(crate) fn relative_mac_cost(self) -> f64 {
        match self {
            Isa::Portable => 40.0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 2.0,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => 1.0,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => 0.6,
        }
    }

    /// The sets this machine has, best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                if super::amx::is_available() {
                    sets.push(Isa::Amx);
                }
                sets.push(Isa::Avx512);
            }
            if avx2 {
                sets.push(Isa::Avx2);
            }
        }
        sets.push(Isa::Portable);
        sets
    }
}

/// The variable that names the instruction set to use, for tests and comparisons.
const ISA_VARIABLE: &str = "PONDER_ISA";

/// The best instruction set of this machine, or the one that `PONDER_ISA` names if the machine has
/// it; found once.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let available = Isa::available();
        let wanted = std::env::var(ISA_VARIABLE).unwrap_or_default();
        let named = available.iter().find(|isa| isa.name() == wanted);
        *named.unwrap_or(&available[0])
    })
}
