// Packed weights, taken apart into the fragments that the tensor cores multiply.
//
// A matrix is blocks of 64 outputs (m) one after the other, padded with zeros. Such a block is
// blocks of 64 inputs (k) one after the other; before every fourth lies the header of a super-block
// of 256 inputs, where the type has one. Within a k block: codes, upper bits of codes, scales
// (`product/layout.rs` tells the bits). A warp takes 16 of the 64 outputs. Lane l = 4 g + t holds
// rows g and g + 8 of them, and of every step of 16 inputs k = 2t, 2t+1, 2t+8, 2t+9: the fragment
// of `mma_bf16`, which is also that of `wgmma`.
//
// A weight is its f32 value, scale * code + offset, rounded once to bf16: every operation before
// that is exact.
#pragma once

#include "common.cuh"

// As `product/layout.rs` counts them.
enum WeightType : uint32_t { BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

// Inputs and outputs of a block, the inputs of a fragment, and k blocks of a super-block.
constexpr int K_BLOCK = 64, M_BLOCK = 64, K_STEP = 16, K_STEPS = K_BLOCK / K_STEP, SUPER_BLOCKS = 4;

template <int TYPE> struct WeightLayout {
    static constexpr int BITS = TYPE == BF16 ? 16
        : TYPE == Q8_0 ? 8
        : TYPE == Q6_K ? 6
        : TYPE == Q5_0 || TYPE == Q5_1 || TYPE == Q5_K ? 5 : 4;
    static constexpr bool IS_SUPER = TYPE == Q4_K || TYPE == Q5_K || TYPE == Q6_K;
    // Of rows g and g + 8 of a warp, in one k block and in one super-block.
    static constexpr int SCALE_BYTES = TYPE == BF16 ? 0 : TYPE == Q4_1 || TYPE == Q5_1 ? 16 : 8;
    static constexpr int SUPER_BYTES = !IS_SUPER ? 0 : TYPE == Q6_K ? 4 : 8;
    // Of one lane in one k block.
    static constexpr int HIGH_BYTES = BITS == 5 ? 4 : BITS == 6 ? 8 : 0;
    static constexpr int LOW_BYTES = BITS == 16 ? 64 : BITS == 8 ? 32 : 16;

    static constexpr int LANES = 4 * 32, ROW_PAIRS = 4 * 8;
    static constexpr int HIGH_AT = LANES * LOW_BYTES, SCALES_AT = HIGH_AT + LANES * HIGH_BYTES;
    // Of a k block with all 64 outputs, and of what lies before every fourth one.
    static constexpr int BLOCK_BYTES = SCALES_AT + ROW_PAIRS * SCALE_BYTES;
    static constexpr int HEADER_BYTES = ROW_PAIRS * SUPER_BYTES;

    // Where k block `block` lies in a block of outputs.
    static METHOD uint32_t offset_of(uint32_t block) {
        return block * BLOCK_BYTES + (IS_SUPER ? (block / SUPER_BLOCKS + 1) * HEADER_BYTES : 0);
    }
    // Bytes of a block of outputs.
    static METHOD uint32_t m_block_bytes(uint32_t k_blocks) {
        return k_blocks * BLOCK_BYTES + (IS_SUPER ? k_blocks / SUPER_BLOCKS * HEADER_BYTES : 0);
    }
};

// Codes of up to 6 bits, moved to bit 0 or bit 4 of a half, are f16 numbers: code * 2^-24 or code *
// 2^-20 (below the normal numbers an f16 counts in steps of 2^-24). These factors undo it: row g
// has its codes at bit 0, row g + 8 at bit 4.
constexpr float UNDO_0 = 16777216.0f, UNDO_4 = 1048576.0f;
// A byte put into this number's bits adds its value.
constexpr float BYTE_BIAS = 32768.0f;

// Byte `index` of a word as BYTE_BIAS + byte.
DEVICE float biased_byte(uint32_t word, uint32_t index) {
    return __uint_as_float(permute_bytes(word, __float_as_uint(BYTE_BIAS), 0x7404u | index << 4));
}

DEVICE uint32_t rotate_right(uint32_t x, uint32_t count) { return __funnelshift_r(x, x, count); }

// Two codes (as f16) of one row as weights.
DEVICE uint32_t weights_of(uint32_t codes, float scale, float offset) {
    float low, high;
    unpack_f16(codes, low, high);
    return pack_bf16(__fmaf_rn(low, scale, offset), __fmaf_rn(high, scale, offset));
}

// What a lane knows of one k block. `header` and `block` may be in global or in shared memory;
// `thread` is 32 * warp + lane, of the four warps that share a block of outputs.
template <int TYPE> struct Weights {
    typedef WeightLayout<TYPE> Layout;
    uint32_t low[Layout::LOW_BYTES / 4], high[Layout::HIGH_BYTES ? Layout::HIGH_BYTES / 4 : 1];
    uint32_t scales[Layout::SCALE_BYTES ? Layout::SCALE_BYTES / 4 : 1];
    // Of the super-block, rows g and g + 8: factors of scales and of minima, and what takes the
    // bias of a byte away.
    float factor[2], factor_bias[2], min_factor[2], min_bias[2];
    // Of the inputs at hand.
    float scale[2], offset[2];

    METHOD void read_header(const uint8_t *header, uint32_t warp, uint32_t lane) { read_header(header, warp * 32 + lane); }
    METHOD void read_block(const uint8_t *block, uint32_t warp, uint32_t lane) { read_block(block, warp * 32 + lane); }

    // The super-block's part; call it at every fourth k block, before `read_block`.
    METHOD void read_header(const uint8_t *header, uint32_t thread) {
        const uint8_t *mine = header + thread / 4 * Layout::SUPER_BYTES;
        if constexpr (TYPE == Q4_K || TYPE == Q5_K) {
            uint2 pairs = *(const uint2 *)mine;
            float d, d_min;
            unpack_f16(pairs.x, d, d_min);
            set_super(0, d * UNDO_0, -d_min);
            unpack_f16(pairs.y, d, d_min);
            set_super(1, d * UNDO_4, -d_min);
        } else if constexpr (TYPE == Q6_K) {
            float d[2];
            unpack_f16(*(const uint32_t *)mine, d[0], d[1]);
            factor[0] = d[0] * UNDO_0;
            factor[1] = d[1] * UNDO_4;
            // Scales are signed: they are stored plus 128.
            for (int row = 0; row < 2; row++) factor_bias[row] = factor[row] * -(BYTE_BIAS + 128.0f);
        }
    }
    METHOD void set_super(int row, float d, float d_min) {
        factor[row] = d;
        factor_bias[row] = d * -BYTE_BIAS;
        min_factor[row] = d_min;
        min_bias[row] = d_min * -BYTE_BIAS;
    }

    METHOD void read_block(const uint8_t *block, uint32_t thread) {
#pragma unroll
        for (int i = 0; i < Layout::LOW_BYTES / 16; i++) {
            uint4 codes = *(const uint4 *)(block + (i * Layout::LANES + thread) * 16);
            low[4 * i] = codes.x;
            low[4 * i + 1] = codes.y;
            low[4 * i + 2] = codes.z;
            low[4 * i + 3] = codes.w;
        }
        if constexpr (Layout::HIGH_BYTES == 4) high[0] = *(const uint32_t *)(block + Layout::HIGH_AT + thread * 4);
        if constexpr (Layout::HIGH_BYTES == 8) {
            uint2 bits = *(const uint2 *)(block + Layout::HIGH_AT + thread * 8);
            high[0] = bits.x;
            high[1] = bits.y;
        }
        const uint8_t *mine = block + Layout::SCALES_AT + thread / 4 * Layout::SCALE_BYTES;
        if constexpr (Layout::SCALE_BYTES == 8) {
            uint2 words = *(const uint2 *)mine;
            scales[0] = words.x;
            scales[1] = words.y;
        } else if constexpr (Layout::SCALE_BYTES == 16) {
            uint4 words = *(const uint4 *)mine;
            scales[0] = words.x;
            scales[1] = words.y;
            scales[2] = words.z;
            scales[3] = words.w;
        }
    }

    // Scales of the inputs from step `step` on: of 32 inputs, of 16 in Q6_K.
    METHOD void set_scales(int step) {
        if constexpr (TYPE == Q4_0 || TYPE == Q5_0 || TYPE == Q8_0) {
            unpack_f16(scales[step / 2], scale[0], scale[1]);
            const float zero = TYPE == Q4_0 ? 8.0f : TYPE == Q5_0 ? 16.0f : BYTE_BIAS + 128.0f;
            for (int row = 0; row < 2; row++) offset[row] = scale[row] * -zero;
        } else if constexpr (TYPE == Q4_1 || TYPE == Q5_1) {
            for (int row = 0; row < 2; row++) unpack_f16(scales[step / 2 * 2 + row], scale[row], offset[row]);
        } else if constexpr (TYPE == Q4_K || TYPE == Q5_K) {
            for (int row = 0; row < 2; row++) {
                scale[row] = __fmaf_rn(biased_byte(scales[step / 2], 2 * row), factor[row], factor_bias[row]);
                offset[row] = __fmaf_rn(biased_byte(scales[step / 2], 2 * row + 1), min_factor[row], min_bias[row]);
            }
        } else if constexpr (TYPE == Q6_K) {
            for (int row = 0; row < 2; row++) {
                float byte = biased_byte(scales[step / 2], step % 2 * 2 + row);
                scale[row] = __fmaf_rn(byte, factor[row], factor_bias[row]);
                offset[row] = scale[row] * (-32.0f / (row ? UNDO_4 : UNDO_0));
            }
        }
        // The super-block's factors undo it for the others.
        if constexpr (Layout::BITS < 8 && !Layout::IS_SUPER) {
            scale[0] *= UNDO_0;
            scale[1] *= UNDO_4;
        }
    }

    // The fragment of step 0 to 3 of the block, asked for in this order.
    METHOD void fragment(int step, uint32_t (&a)[4]) {
        if constexpr (TYPE == BF16) {
            for (int i = 0; i < 4; i++) a[i] = low[4 * step + i];
            return;
        }
        if (TYPE == Q6_K || step % 2 == 0) set_scales(step);
        if constexpr (TYPE == Q8_0) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t word = low[2 * step + i / 2], first = i % 2 * 2;
                float x = __fmaf_rn(biased_byte(word, first), scale[i % 2], offset[i % 2]);
                float y = __fmaf_rn(biased_byte(word, first + 1), scale[i % 2], offset[i % 2]);
                a[i] = pack_bf16(x, y);
            }
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t word = half ? low[step] >> 8 : low[step], upper = 0;
                if constexpr (Layout::BITS == 5) upper = rotate_right(high[0], 8 * half + step);
                if constexpr (Layout::BITS == 6) upper = rotate_right(high[step / 2], 8 * half + step % 2 * 2);
                const uint32_t above = Layout::BITS == 5 ? 0x00100010u : Layout::BITS == 6 ? 0x00300030u : 0;
                uint32_t first = word & 0x000f000fu, second = word & 0x00f000f0u;
                if constexpr (Layout::BITS > 4) {
                    first = and_or(upper, above, first);
                    second = and_or(upper, above << 4, second);
                }
                a[2 * half] = weights_of(first, scale[0], offset[0]);
                a[2 * half + 1] = weights_of(second, scale[1], offset[1]);
            }
        }
    }
};
