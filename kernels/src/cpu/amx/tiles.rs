//! Whether AMX tiles can be used, and their shapes.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use crate::panel::{Codes, LINE_BYTES, PanelFormat};

/// Linux's `arch_prctl` and its request for the tile data state.
const SYS_ARCH_PRCTL: i64 = 158;
const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
const XFEATURE_XTILEDATA: i64 = 18;

/// Whether this machine has int8 tiles and the operating system lets this process use them.
pub(in crate::cpu) fn is_available() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if !cfg!(target_os = "linux") || __cpuid(0).eax < 7 {
        return false;
    }
    if __cpuid_count(7, 0).edx & (TILE | INT8) != TILE | INT8 {
        return false;
    }
    let result: i64;
    // SAFETY: the call changes only which processor state this process may use; the kernel's other
    // registers are kept but for rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Whether products of a format use tiles; the others are AVX-512's for any number of rows.
pub(in crate::cpu) fn has_tiles(format: PanelFormat) -> bool {
    match format.codes {
        Codes::Bits4 | Codes::Bits5 | Codes::Bits6 | Codes::Bits8 => true,
        Codes::Bits2 | Codes::Bits3 | Codes::Named(_) => false,
    }
}

/// The operand of `ldtilecfg`. Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.
#[repr(C, align(64))]
pub(super) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    column_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Tiles of `rows` activation rows, for pieces of `piece_inputs` inputs.
    pub(super) fn new(rows: usize, piece_inputs: usize) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            column_bytes: [0; 16],
            rows: [0; 16],
        };
        let shapes = [
            (0..4, rows, LINE_BYTES),
            (4..6, rows, piece_inputs),
            (6..8, piece_inputs / 4, LINE_BYTES),
        ];
        for (tiles, rows, column_bytes) in shapes {
            for tile in tiles {
                config.rows[tile] = rows as u8;
                config.column_bytes[tile] = column_bytes as u16;
            }
        }
        config
    }
}
