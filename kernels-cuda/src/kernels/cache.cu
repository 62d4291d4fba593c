// Queries and keys are normed and rotated; keys and values go to the cache. Blocks of it are
// copied.

#include "common.cuh"

// A slot that nothing is written to.
#define NO_SLOT 0xffffffffu
#define WARPS 4
#define HALF_MAX 65504.0f

struct RotateArgs {
    // [num_rows, num_heads * head_dim], rotated in place.
    float *q;
    // [num_rows, num_kv_heads * head_dim]
    const float *k;
    const float *v;
    // Of one layer: [num_blocks, num_kv_heads, block_size, padded_dim] of f16.
    uint16_t *keys;
    uint16_t *values;
    // [num_positions, rotary_dim / 2] of (cos, sin).
    const float2 *angles;
    // [head_dim], or null.
    const float *q_norm;
    const float *k_norm;
    // [num_rows]
    const uint32_t *positions;
    const uint32_t *slot_mapping;
    uint32_t num_heads, num_kv_heads, head_dim, padded_dim, block_size;
    uint32_t rotary_dim, num_positions;
    // Halves rotate together, otherwise neighbours.
    uint32_t is_neox;
    float eps;
};

// One over the root of the mean of squares, where there is a norm.
DEVICE float norm_scale(const float *head, const float *norm, uint32_t head_dim, float eps) {
    if (!norm) return 1.0f;
    float sum = 0.0f;
    for (uint32_t dim = threadIdx.x % 32; dim < head_dim; dim += 32) sum = fmaf(head[dim], head[dim], sum);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return 1.0f / sqrtf(sum / (float)head_dim + eps);
}

DEVICE float normed(const float *head, const float *norm, float scale, uint32_t dim) {
    return norm ? head[dim] * (scale * norm[dim]) : head[dim];
}

// Calls `write(dim, value)` for every dim of the rotated head.
template <class Write>
DEVICE void rotate(const RotateArgs &args, const float *head, const float *norm, uint32_t position, Write write) {
    float scale = norm_scale(head, norm, args.head_dim, args.eps);
    uint32_t half = args.rotary_dim / 2, lane = threadIdx.x % 32;
    const float2 *angles = args.angles + (uint64_t)min(position, args.num_positions - 1) * half;
    for (uint32_t pair = lane; pair < half; pair += 32) {
        uint32_t low = args.is_neox ? pair : 2 * pair, high = args.is_neox ? pair + half : 2 * pair + 1;
        float a = normed(head, norm, scale, low), b = normed(head, norm, scale, high);
        float2 angle = angles[pair];
        write(low, fmaf(a, angle.x, -(b * angle.y)));
        write(high, fmaf(a, angle.y, b * angle.x));
    }
    for (uint32_t dim = 2 * half + lane; dim < args.head_dim; dim += 32) write(dim, normed(head, norm, scale, dim));
}

// Grid: rows, warps of heads. A warp has one head of Q, K or V.
KERNEL __launch_bounds__(WARPS * 32) rotate_and_cache(RotateArgs args) {
    uint32_t row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32, head_dim = args.head_dim;
    if (head >= args.num_heads + 2 * args.num_kv_heads) return;
    uint32_t position = args.positions[row];
    if (head < args.num_heads) {
        float *q = args.q + ((uint64_t)row * args.num_heads + head) * head_dim;
        rotate(args, q, args.q_norm, position, [=](uint32_t dim, float x) { q[dim] = x; });
        return;
    }
    uint32_t slot = args.slot_mapping[row];
    if (slot == NO_SLOT) return;
    bool is_key = head < args.num_heads + args.num_kv_heads;
    uint32_t kv_head = head - args.num_heads - (is_key ? 0 : args.num_kv_heads);
    uint64_t source = ((uint64_t)row * args.num_kv_heads + kv_head) * head_dim;
    uint64_t place = (uint64_t)(slot / args.block_size) * args.num_kv_heads + kv_head;
    place = (place * args.block_size + slot % args.block_size) * args.padded_dim;
    if (is_key) {
        uint16_t *key = args.keys + place;
        rotate(args, args.k + source, args.k_norm, position, [=](uint32_t dim, float x) { key[dim] = f16_of(x); });
        return;
    }
    const float *v = args.v + source;
    uint16_t *value = args.values + place;
    // Values in the cache are finite: times a weight of zero they are nothing, whoever's they were.
    for (uint32_t dim = threadIdx.x % 32; dim < head_dim; dim += 32)
        value[dim] = f16_of(fminf(fmaxf(v[dim], -HALF_MAX), HALF_MAX));
}
EXPORT(rotate_and_cache)

// Copies whole blocks. Grid: pairs, layers times two (keys, values). No block is written and read,
// or written twice, by pairs of one launch.
KERNEL __launch_bounds__(256) copy_blocks(uint4 *cache, const uint2 *pairs, uint32_t num_blocks, uint32_t chunks_per_block) {
    uint2 pair = pairs[blockIdx.x];
    uint4 *region = cache + (uint64_t)blockIdx.y * num_blocks * chunks_per_block;
    const uint4 *from = region + (uint64_t)pair.x * chunks_per_block;
    uint4 *to = region + (uint64_t)pair.y * chunks_per_block;
    for (uint32_t chunk = threadIdx.x; chunk < chunks_per_block; chunk += blockDim.x) to[chunk] = from[chunk];
}
EXPORT(copy_blocks)
