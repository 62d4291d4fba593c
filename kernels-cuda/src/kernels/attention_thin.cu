// Attention of thin units: one warp, few rows, one split.

#include "attention_unit.cuh"

#define THIN(D, V, STAGES, KEPT)                                                    \
    KERNEL __launch_bounds__(32, 8) attention_thin_##D(AttentionArgs args) {        \
        attend<D, V, 1, STAGES, KEPT>(args);                                        \
    }                                                                               \
    EXPORT(attention_thin_##D)

// Head dims, dims of a part of values, stages, and k steps of queries in registers. `launch.rs`
// knows them too.
THIN(32, 32, 4, 2)
THIN(64, 64, 4, 4)
THIN(96, 96, 3, 6)
THIN(128, 128, 3, 8)
THIN(192, 96, 3, 8)
THIN(256, 128, 3, 8)
