// Attention of wide units: tokens are read once for the rows of four warps.

#include "attention_unit.cuh"

#define WIDE(D, V, BLOCKS, KEPT)                                                    \
    KERNEL __launch_bounds__(128, BLOCKS) attention_wide_##D(AttentionArgs args) {  \
        attend<D, V, 4, 2, KEPT>(args);                                             \
    }                                                                               \
    EXPORT(attention_wide_##D)

// Head dims, dims of a part of values, blocks that a multiprocessor should hold, and k steps of
// queries in registers. `launch.rs` knows them too.
WIDE(32, 32, 4, 2)
WIDE(64, 64, 4, 2)
WIDE(96, 96, 3, 4)
WIDE(128, 128, 3, 3)
WIDE(192, 96, 2, 10)
WIDE(256, 128, 2, 8)
