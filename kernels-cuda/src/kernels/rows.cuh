// What operations on rows share: quads of four values, sums over a block, places in the tiles of
// activations.
#pragma once

#include "common.cuh"

// No row, no offset.
#define NONE 0xffffffffu

// Values of a quad that lie past the row's end are zeros. ALIGNED: the row and its width let quads
// be read at once.
template <bool ALIGNED> DEVICE float4 load_quad(const float *row, uint32_t quad, uint32_t width) {
    uint32_t i = 4 * quad;
    if constexpr (ALIGNED) {
        return i < width ? *(const float4 *)(row + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    } else {
        return make_float4(i < width ? row[i] : 0.0f, i + 1 < width ? row[i + 1] : 0.0f,
            i + 2 < width ? row[i + 2] : 0.0f, i + 3 < width ? row[i + 3] : 0.0f);
    }
}
DEVICE float4 load_quad(const float *row, uint32_t quad, uint32_t width, bool is_aligned) {
    return is_aligned ? load_quad<true>(row, quad, width) : load_quad<false>(row, quad, width);
}

DEVICE void store_quad(float *row, uint32_t quad, uint32_t width, bool is_aligned, float4 v) {
    uint32_t i = 4 * quad;
    if (i >= width) return;
    if (is_aligned) {
        ((float4 *)row)[quad] = v;
        return;
    }
    row[i] = v.x;
    if (i + 1 < width) row[i + 1] = v.y;
    if (i + 2 < width) row[i + 2] = v.z;
    if (i + 3 < width) row[i + 3] = v.w;
}

// Whether rows of this many values lie so that quads can be read at once.
DEVICE bool are_aligned(uint32_t width) { return width % 4 == 0; }

// Quads of a row, and those of a row whose width is padded to whole blocks of 64 values.
DEVICE uint32_t quads_of(uint32_t width) { return (width + 3) / 4; }
DEVICE uint32_t padded_quads_of(uint32_t width) { return (width + 63) / 64 * 16; }

// Where 16 bytes (8 values) of a row lie in the tiles of activations; `row_stride` rows from one
// block of 64 values to the next.
DEVICE size_t chunk_offset(uint32_t row, uint32_t chunk, uint32_t row_stride) {
    size_t line = (size_t)(chunk / 8) * row_stride + row;
    return line * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

DEVICE void store_tile_quad(uint8_t *tiles, uint32_t row, uint32_t quad, uint32_t row_stride, float4 v) {
    uint2 packed = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    *(uint2 *)(tiles + chunk_offset(row, quad / 2, row_stride) + quad % 2 * 8) = packed;
}

// Among all threads of a launch. The host sees to it that there are fewer than 2^32.
DEVICE uint32_t thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// What a thread works on where each row has `len` parts.
struct Place {
    uint32_t row, part;

    explicit Place(uint32_t len) : row(thread_index() / len), part(thread_index() - row * len) {}
};

DEVICE float add_squares(float sum, float4 v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

DEVICE float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The sum over a block of whole warps, known to every thread; `shared` has room for 32 values.
DEVICE float block_sum(float x, float *shared) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    x = warp_sum(x);
    if (num_warps == 1) return x;
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    return warp_sum(lane < num_warps ? shared[lane] : 0.0f);
}
