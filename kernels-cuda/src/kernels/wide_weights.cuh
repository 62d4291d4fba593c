// Weights of a wide product, from global memory to the registers that `wgmma` multiplies.
#pragma once

#include "dequant.cuh"
#include "hopper.cuh"

#ifdef PONDER_HOPPER

// Fragments that are multiplied together: those of half a block of 64 inputs.
constexpr int HALF_STEPS = K_STEPS / 2;

template <int TYPE> struct WideWeights {
    typedef WeightLayout<TYPE> Layout;
    // A stage has room for a header, which every fourth block brings along.
    static constexpr uint32_t HEADER_BYTES = Layout::HEADER_BYTES, STAGE_BYTES = HEADER_BYTES + Layout::BLOCK_BYTES;

    static METHOD bool has_header(uint32_t k_block) { return Layout::IS_SUPER && k_block % SUPER_BLOCKS == 0; }

    // What `copy` brings.
    static METHOD uint32_t copied_bytes(uint32_t k_block) { return Layout::BLOCK_BYTES + (has_header(k_block) ? HEADER_BYTES : 0); }

    // 64 features by 64 inputs. `matrix` is where the matrix begins.
    static METHOD void copy(uint8_t *stage, const uint8_t *matrix, uint32_t m_block, uint32_t k_block, uint32_t num_k_blocks, uint64_t *barrier) {
        uint32_t before = has_header(k_block) ? HEADER_BYTES : 0;
        uint64_t at = (uint64_t)m_block * Layout::m_block_bytes(num_k_blocks) + Layout::offset_of(k_block) - before;
        bulk_copy(stage + HEADER_BYTES - before, matrix + at, copied_bytes(k_block), barrier);
    }

    Weights<TYPE> weights;

    // Fragments of steps 2 half and 2 half + 1; `thread` of the warpgroup.
    METHOD void load(uint32_t (&a)[HALF_STEPS][4], const uint8_t *stage, uint32_t k_block, uint32_t half, uint32_t thread) {
        if constexpr (TYPE == BF16) {
#pragma unroll
            for (uint32_t i = 0; i < HALF_STEPS; i++) {
                uint4 x = *(const uint4 *)(stage + (half * HALF_STEPS + i) * Layout::LANES * 16 + thread * 16);
                a[i][0] = x.x, a[i][1] = x.y, a[i][2] = x.z, a[i][3] = x.w;
            }
        } else {
            uint32_t warp = thread / 32, lane = thread % 32;
            if (half == 0) {
                if (has_header(k_block)) weights.read_header(stage, warp, lane);
                weights.read_block(stage + HEADER_BYTES, warp, lane);
            }
#pragma unroll
            for (uint32_t i = 0; i < HALF_STEPS; i++) weights.fragment(half * HALF_STEPS + i, a[i]);
        }
    }
};

#endif
