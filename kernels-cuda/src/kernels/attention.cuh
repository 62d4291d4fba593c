// Paged attention: what its kernels share.
//
// The context of a row is cut into splits of a fixed number of tokens. Inside a split, tiles of
// TILE tokens go through an online softmax from a fresh state; the states of splits are merged in
// order by `merge`. Both orders are fixed by positions alone, so a row has the same bits in a
// prefill chunk, alone, or beside forks. A tile that a row sees nothing of leaves its state as it
// is: the largest score stays, old sums are multiplied by exactly one, and zeros are added.
//
// Sums and products are written so that the compiler fuses none: what it fuses differs from kernel
// to kernel, and from branch to branch.
#pragma once

#include "common.cuh"

// Tokens of a tile.
#define TILE 32
// No token, no state.
#define NONE 0xffffffffu
// In a unit's number of splits: their states are merged into one.
#define FOLDED 0x80000000u
// In a row's number of folded splits: it is a leaf of a draft tree.
#define LEAF 0x80000000u
// Floats of a state before its sums of values: the largest score, the sum of weights, two of no
// use.
#define STATE_HEAD 4

struct AttentionArgs {
    // [num_rows, num_heads * head_dim]
    const float *q;
    float *out;
    // Of one layer: [num_blocks, num_kv_heads, block_size, padded head_dim] of f16.
    const uint8_t *keys;
    const uint8_t *values;
    // Two each: see `Unit`. Zeros past the last one: no tokens.
    const uint4 *units;
    // Batch row, position, first state (NONE: the result itself is written), folded splits | LEAF.
    // NONE past the last row.
    const uint4 *rows;
    const uint32_t *tables;
    // [num_states, num_heads, STATE_HEAD + padded head_dim]
    float *states;
    uint32_t num_heads, num_kv_heads, head_dim, block_size;
    uint32_t split_tokens;
    // A row sees this many tokens, itself included.
    uint32_t window;
    // Scores are in units of log2: q k * score_scale, or cap * tanh(q k * score_scale).
    float score_scale, cap;
    // Of the block size, where it is a power of two; otherwise NONE.
    uint32_t block_shift;
};

// Rows that read the same tokens together.
struct Unit {
    uint32_t first_row, num_rows;
    // Of each row: heads among those of one KV head.
    uint32_t first_head, num_heads;
    // Where the block table begins.
    uint32_t table;
    uint32_t first_split, num_splits;
    bool is_folded;
    // Tokens from here on are seen by no row.
    uint32_t limit;
    uint32_t min_position;
    // The token that takes the place of the last one, of a leaf's unit.
    uint32_t own;
};

DEVICE Unit read_unit(const uint4 *units, uint32_t index) {
    uint4 a = units[2 * index], b = units[2 * index + 1];
    Unit unit;
    unit.first_row = a.x;
    unit.num_rows = a.y & 0xff;
    unit.num_heads = a.y >> 8 & 0xff;
    unit.first_head = a.y >> 16;
    unit.table = a.z;
    unit.first_split = a.w;
    unit.num_splits = b.x & ~FOLDED;
    unit.is_folded = (b.x & FOLDED) != 0;
    unit.limit = b.y;
    unit.min_position = b.z;
    unit.own = b.w;
    return unit;
}

// The first token that a row sees.
DEVICE uint32_t window_start(uint32_t position, uint32_t window) {
    return position >= window ? position + 1 - window : 0;
}

// ---- the one formula that merges states --------------------------------------------------------

struct MergeWeights {
    float max, old, added;
};

DEVICE MergeWeights merge_weights(float old_max, float added_max) {
    MergeWeights weights;
    weights.max = fmaxf(old_max, added_max);
    // Neither saw a token: nothing minus nothing is not a number.
    float shift = weights.max == -INFINITY ? 0.0f : weights.max;
    weights.old = exp2_approx(__fsub_rn(old_max, shift));
    weights.added = exp2_approx(__fsub_rn(added_max, shift));
    return weights;
}

DEVICE float merge(float old, float added, const MergeWeights &weights) {
    return fmaf(old, weights.old, __fmul_rn(added, weights.added));
}

// A sum of weighted values over the sum of weights. Zero has one sign.
DEVICE float finish(float value, float inverse) { return __fadd_rn(__fmul_rn(value, inverse), 0.0f); }

DEVICE float invert(float sum) { return sum > 0.0f ? 1.0f / sum : sum; }
