// A tile of keys and values in shared memory, and what sixteen queries of a warp make of it.
//
// Lane l = 4 g + t of a warp holds queries g and g + 8. Dims of Q K^T are permuted in the same way
// for queries and keys: a lane's 16 bytes at dims 32 c + 8 t are two k steps.
#pragma once

#include "attention.cuh"

// Sizes of tiles: D dims of keys, V dims of values, which may be a part of a head's.
template <int D, int V> struct Shape {
    static const int KEY_BYTES = TILE * D * 2;
    static const int STAGE_BYTES = TILE * (D + V) * 2;
};

// Where 16 bytes of a token lie in a tile of D dims: lanes that read together meet no bank twice.
template <int D> DEVICE uint32_t key_place(uint32_t token, uint32_t chunk) {
    if (D % 64 == 0) chunk ^= (token & 1) << 2;
    return (token * (D / 8) + chunk) * 16;
}
template <int V> DEVICE uint32_t value_place(uint32_t token, uint32_t chunk) {
    chunk ^= V % 64 == 0 ? token & 7 : token >> 1 & 3;
    return (token * (V / 8) + chunk) * 16;
}
// From the place of a token's chunk below 4 (2) to that of the chunk by 4 c (n, even) further on, and
// by a multiple of 8 (16) tokens: constants for the compiler, but for a bit that turns.
template <int D> DEVICE uint32_t key_place_after(uint32_t place, int tokens, int c) {
    if (D % 64 == 0) return (place ^ c % 2 * 64) + c / 2 * 128 + tokens * D * 2;
    return place + c * 64 + tokens * D * 2;
}
template <int V> DEVICE uint32_t value_place_after(uint32_t place, int tokens, int n) {
    const int GROUP = V % 64 == 0 ? 8 : 4;
    return (place ^ n % GROUP * 16) + n / GROUP * GROUP * 16 + tokens * V * 2;
}

// Which tokens queries g and g + 8 of a warp see.
struct Sight {
    // [from, to)
    uint32_t from[2], to[2];
    // Of all queries of the warp: the tokens that some see, and those that all see.
    uint32_t some_to, all_from, all_to;
};

// The state of one split, of queries g and g + 8. `sum` is of a lane's own tokens until
// `join_sums`.
template <int V> struct State {
    float max[2], sum[2];
    float out[V / 8][4];
};

template <int V> DEVICE void clear(State<V> &state) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        state.max[half] = -INFINITY;
        state.sum[half] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.out[n][i] = 0.0f;
    }
}

// Asks for 16 bytes of keys or values; `chunk` is a multiple of 16 bytes in a row of DIMS.
template <int DIMS, bool IS_KEY> DEVICE void fetch_chunk(uint8_t *tile, uint32_t token, uint32_t chunk, const uint8_t *source) {
    copy_async_16(tile + (IS_KEY ? key_place<DIMS>(token, chunk) : value_place<DIMS>(token, chunk)), source);
}

// Asks for rows of the tokens of a tile from `first` on: lane i knows in `place` where token first
// + i % TOKENS lies among the layer's rows of D dims. Where `other` is, a second tile gets the
// bytes that lie so far from the first one's.
template <int DIMS, int TOKENS, bool IS_KEY, bool HAS_OTHER>
DEVICE void fetch_rows(uint8_t *tile, const uint8_t *source, uint32_t stride, uint32_t first, uint32_t place,
                       uint8_t *other_tile, uint64_t other) {
    // So many lanes read a row, again and again, that each has the same chunk of every row.
    const int CHUNKS = DIMS / 8, LANES = CHUNKS & -CHUNKS, ROWS = 32 / LANES;
    uint32_t lane = threadIdx.x % 32;
    source += lane % LANES * 16;
#pragma unroll
    for (int i = 0; i < TOKENS / ROWS; i++) {
        uint32_t token = i * ROWS + lane / LANES;
        const uint8_t *row = source + (uint64_t)shuffle_from(place, token) * stride;
        token += first;
#pragma unroll
        for (int c = 0; c < CHUNKS; c += LANES) {
            uint32_t chunk = c + lane % LANES;
            fetch_chunk<DIMS, IS_KEY>(tile, token, chunk, row + c * 16);
            if (HAS_OTHER) fetch_chunk<DIMS, false>(other_tile, token, chunk, row + other + c * 16);
        }
    }
}

// Asks for the keys and values of `TOKENS` tokens.
template <int D, int V, int TOKENS>
DEVICE void fetch(uint8_t *stage, const uint8_t *keys, const uint8_t *values, uint32_t first, uint32_t place) {
    uint8_t *values_stage = stage + Shape<D, V>::KEY_BYTES;
    fetch_rows<D, TOKENS, true, D == V>(stage, keys, D * 2, first, place, values_stage, values - keys);
    if (D != V) fetch_rows<V, TOKENS, false, false>(values_stage, values, D * 2, first, place, nullptr, 0);
}

// Queries as the fragments of Q K^T: the first KEPT k steps in registers, others in shared memory.
template <int KEPT> struct Fragments {
    uint32_t kept[KEPT][4];
    // Of this lane, 32 apart.
    uint4 *others;
};

// q k of the tile's tokens: score n, i is of token 8 n + 2 t + i % 2 and query g + 8 (i / 2).
template <int D, int KEPT>
DEVICE void score(const uint8_t *stage, const Fragments<KEPT> &queries, float (&scores)[4][4]) {
    uint32_t place = key_place<D>(threadIdx.x % 32 / 4, threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
        uint32_t query[2][4];
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int k = 2 * c + step;
            uint4 x = k < KEPT ? make_uint4(queries.kept[k % KEPT][0], queries.kept[k % KEPT][1],
                                            queries.kept[k % KEPT][2], queries.kept[k % KEPT][3])
                               : queries.others[(k - KEPT) * 32];
            query[step][0] = x.x;
            query[step][1] = x.y;
            query[step][2] = x.z;
            query[step][3] = x.w;
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            uint4 key = *(const uint4 *)(stage + key_place_after<D>(place, 8 * n, c));
            uint32_t low[2] = {key.x, key.y}, high[2] = {key.z, key.w};
            mma_f16(scores[n], query[0], low);
            mma_f16(scores[n], query[1], high);
        }
    }
}

// tanh to 3e-7, of which the softmax sees little: weights are rounded to f16.
DEVICE float tanh_near(float x) {
    float e = exp2_approx(__fmul_rn(x, 2.885390082f));
    return __fsub_rn(1.0f, __fdividef(2.0f, __fadd_rn(e, 1.0f)));
}

// Scales scores, and takes away those of tokens that a query does not see.
DEVICE void mask(float (&scores)[4][4], const Sight &sight, uint32_t tile, float scale, float cap) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = __fmul_rn(scores[n][i], scale);
    }
    if (cap != 0.0f) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = __fmul_rn(cap, tanh_near(scores[n][i]));
        }
    }
    if (tile >= sight.all_from && tile + TILE <= sight.all_to) return;
    uint32_t first = tile + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t token = first + 8 * n + i % 2;
            bool is_seen = token >= sight.from[i / 2] && token < sight.to[i / 2];
            if (!is_seen) scores[n][i] = -INFINITY;
        }
    }
}

// The online softmax: scores become weights, and the state is ready for their values.
template <int V> DEVICE void weigh(float (&scores)[4][4], State<V> &state) {
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = state.max[half];
#pragma unroll
        for (int n = 0; n < 4; n++) max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        max = fmaxf(max, shuffle_xor(max, 1));
        max = fmaxf(max, shuffle_xor(max, 2));
        float shift = max == -INFINITY ? 0.0f : max;
        scale[half] = exp2_approx(__fsub_rn(state.max[half], shift));
        state.max[half] = max;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = exp2_approx(__fsub_rn(scores[n][i], shift));
                sum = __fadd_rn(sum, scores[n][i]);
            }
        }
        state.sum[half] = fmaf(state.sum[half], scale[half], sum);
    }
    // Times one is left out: it changes nothing.
    if (!any_lane(scale[0] != 1.0f || scale[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.out[n][i] = __fmul_rn(state.out[n][i], scale[i / 2]);
    }
}

// Adds the weighted values of tokens 16 k .. 16 k + 15 of the tile.
template <int D, int V>
DEVICE void add_values(const uint8_t *stage, int k, const float (&weights)[4][4], State<V> &state) {
    uint32_t lane = threadIdx.x % 32, a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float *pair = &weights[2 * k + i / 2][i % 2 * 2];
        a[i] = pack_f16(pair[0], pair[1]);
    }
    stage += Shape<D, V>::KEY_BYTES;
    uint32_t place = value_place<V>(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < V / 8; n += 2) {
        // Tokens of both halves of dims 8 n .. 8 n + 7, then of the next eight.
        uint32_t x[4];
        load_transposed(x, stage + value_place_after<V>(place, 16 * k, n));
        uint32_t low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
        mma_f16(state.out[n], a, low);
        mma_f16(state.out[n + 1], a, high);
    }
}
