// Rows of a table by token id: out[row][k] = table[token_ids[row]][k] * scale. A packed table's
// values are those that products multiply: rounded to bf16.
#include "dequant.cuh"

struct EmbedArgs {
    const uint8_t *table;
    const uint32_t *token_ids;
    // [num_rows, in_features]
    float *out;
    // Of the table; ids past its end give zeros.
    uint32_t num_tokens;
    uint32_t in_features;
    float scale;
    uint32_t padding;
};

// A thread takes what one lane of the product's warp would hold of one k block. Blocks: (rows, parts
// of the width): there may be more rows than a grid's second dimension has room for.
template <int TYPE> DEVICE void embed_packed(const EmbedArgs &args) {
    typedef WeightLayout<TYPE> Layout;
    const uint32_t row = blockIdx.x, quarter = blockIdx.y * blockDim.x + threadIdx.x;
    const uint32_t k_block = quarter / 4, t = quarter % 4, k_blocks = (args.in_features + K_BLOCK - 1) / K_BLOCK;
    if (k_block >= k_blocks) return;
    const uint32_t id = args.token_ids[row], m = id < args.num_tokens ? id : 0;
    const uint32_t thread = m % M_BLOCK / 16 * 32 + m % 8 * 4 + t, is_upper = m % 16 / 8;
    const uint8_t *m_block = args.table + (uint64_t)(m / M_BLOCK) * Layout::m_block_bytes(k_blocks);
    Weights<TYPE> weights;
    if (Layout::IS_SUPER) weights.read_header(m_block + Layout::offset_of(k_block / SUPER_BLOCKS * SUPER_BLOCKS) - Layout::HEADER_BYTES, thread);
    weights.read_block(m_block + Layout::offset_of(k_block), thread);
    float *out = args.out + (uint64_t)row * args.in_features;
    const float scale = id < args.num_tokens ? args.scale : 0.0f;
#pragma unroll
    for (int step = 0; step < K_STEPS; step++) {
        uint32_t a[4];
        weights.fragment(step, a);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t pair = is_upper ? a[2 * half + 1] : a[2 * half];
            uint32_t k = k_block * K_BLOCK + step * K_STEP + half * 8 + 2 * t;
            if (k < args.in_features) out[k] = of_bf16((uint16_t)pair) * scale;
            if (k + 1 < args.in_features) out[k + 1] = of_bf16((uint16_t)(pair >> 16)) * scale;
        }
    }
}

#define EMBED(type, TYPE) \
    KERNEL embed_##type(const EmbedArgs args) { embed_packed<TYPE>(args); } \
    EXPORT(embed_##type)

EMBED(bf16, BF16)
EMBED(q4_0, Q4_0)
EMBED(q4_1, Q4_1)
EMBED(q5_0, Q5_0)
EMBED(q5_1, Q5_1)
EMBED(q8_0, Q8_0)
EMBED(q4_k, Q4_K)
EMBED(q5_k, Q5_K)
EMBED(q6_k, Q6_K)

// The same of a table of f32, `[num_tokens, in_features]`; a thread takes 16 values, as above.
KERNEL embed_f32(const EmbedArgs args) {
    const uint32_t row = blockIdx.x, id = args.token_ids[row];
    const float *table = (const float *)args.table + (uint64_t)(id < args.num_tokens ? id : 0) * args.in_features;
    const float scale = id < args.num_tokens ? args.scale : 0.0f;
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t k = (blockIdx.y * 16 + i) * blockDim.x + threadIdx.x;
        if (k < args.in_features) args.out[(uint64_t)row * args.in_features + k] = table[k] * scale;
    }
}
EXPORT(embed_f32)
