// Merges the states of splits in order, by the formula of `attention.cuh`.
//
// Grid: rows of the plan (rounded up), heads. A thread has one dim of a head.

#include "attention.cuh"

// States that are asked for together.
#define AHEAD 8

struct CombineArgs {
    float *out;
    // As in `AttentionArgs`.
    const uint4 *rows;
    const float *states;
    uint32_t head_dim, split_tokens, window;
};

KERNEL __launch_bounds__(256) attention_combine(CombineArgs args) {
    uint4 row = args.rows[blockIdx.x];
    if (row.z == NONE) return;
    uint32_t num_heads = gridDim.y, head = blockIdx.y, dim = threadIdx.x;
    uint32_t folded = row.w & ~LEAF;
    // States of splits before the window are not written.
    uint32_t first_split = window_start(row.y, args.window) / args.split_tokens;
    uint32_t first = first_split < folded ? 0 : first_split - folded + 1;
    uint32_t last = row.y / args.split_tokens - folded + 1;
    uint32_t state_len = STATE_HEAD + blockDim.x;
    const float *states = args.states + ((uint64_t)row.z * num_heads + head) * state_len;
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
    for (uint32_t index = first; index <= last; index += AHEAD) {
        float maxes[AHEAD], sums[AHEAD], outs[AHEAD];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            const float *state = states + (uint64_t)min(index + i, last) * num_heads * state_len;
            // A state past the last one is empty: it changes nothing.
            bool is_here = index + i <= last;
            maxes[i] = is_here ? state[0] : -INFINITY;
            sums[i] = is_here ? state[1] : 0.0f;
            outs[i] = is_here ? state[STATE_HEAD + dim] : 0.0f;
        }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            MergeWeights weights = merge_weights(max, maxes[i]);
            max = weights.max;
            sum = merge(sum, sums[i], weights);
            out = merge(out, outs[i], weights);
        }
    }
    if (dim < args.head_dim)
        args.out[((uint64_t)row.x * num_heads + head) * args.head_dim + dim] = finish(out, invert(sum));
}
EXPORT(attention_combine)
