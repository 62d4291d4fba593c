// What becomes of a tile's sums.
#pragma once

#include "wide.cuh"

#ifdef PONDER_HOPPER

// Where a thread's sums belong: the feature of sums 0 and 1, 8 less than that of 2 and 3, and the
// column of 0 and 2, within the tile.
struct WidePlace {
    uint32_t feature, column;
};
template <class TILE> DEVICE WidePlace wide_place() {
    uint32_t group = threadIdx.x / WARPGROUP, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    WidePlace place;
    place.feature = (TILE::IS_FLAT ? 0 : group * M_BLOCK) + warp * 16 + lane / 4;
    place.column = (TILE::IS_FLAT ? group * TILE::COLUMNS : 0) + lane % 4 * 2;
    return place;
}

// Caps what this thread has stored. Not done on the way: for each sum, so much code would be too
// much.
template <class TILE> DEVICE void cap_stored(const ProductArgs &args, const WideItem &item) {
    const ProductJob &job = args.jobs[item.job];
    const WidePlace place = wide_place<TILE>();
#pragma unroll 1
    for (uint32_t i = 0; i < TILE::NUM_SUMS; i++) {
        uint32_t column = place.column + i / 4 * 8 + i % 2, m = item.m_block * M_BLOCK + place.feature + i / 2 % 2 * 8;
        if (column >= item.num_rows || m >= job.out_features) continue;
        float *value = job.out + (uint64_t)(item.first_row + column) * job.out_features + m;
        *value = soft_cap(*value, args.cap);
    }
}

// Sums of this many columns, of which a thread has a quarter and two features, are loaded or stored
// together.
constexpr uint32_t BATCH_COLUMNS = 32;
constexpr uint32_t BATCH_SUMS = BATCH_COLUMNS / 2;

// Calls `visit(index, address)` for the results among sums `first` to `first + BATCH_SUMS`. A
// warp's access fills four sectors of 32 bytes: eight features of four rows.
template <class TILE, class VISIT> DEVICE void each_result(uint32_t first, const ProductJob &job, const WideItem &item, VISIT visit) {
    const WidePlace place = wide_place<TILE>();
    const uint32_t m = item.m_block * M_BLOCK + place.feature, column = place.column + first * 2;
    float *out = job.out + (uint64_t)(item.first_row + column) * job.out_features + m;
#pragma unroll
    for (uint32_t j = 0; j < BATCH_COLUMNS / 8; j++) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            if (column + j * 8 + i >= item.num_rows) continue;
            float *pair = out + (j * 8 + i) * job.out_features;
            if (m < job.out_features) visit(first + 4 * j + i, pair);
            if (m + 8 < job.out_features) visit(first + 4 * j + 2 + i, pair + 8);
        }
    }
}

// Biases, of the two features of a thread.
template <class TILE> DEVICE void add_bias(float (&sums)[TILE::NUM_SUMS], const ProductJob &job, const WideItem &item) {
    uint32_t m = item.m_block * M_BLOCK + wide_place<TILE>().feature;
#pragma unroll
    for (uint32_t side = 0; side < 2; side++, m += 8) {
        if (m >= job.out_features) continue;
        const float bias = job.bias[m];
#pragma unroll
        for (uint32_t j = 0; j < TILE::NUM_SUMS / 4; j++) {
            sums[4 * j + 2 * side] += bias;
            sums[4 * j + 2 * side + 1] += bias;
        }
    }
}

template <class TILE> DEVICE void store_sums(float (&sums)[TILE::NUM_SUMS], const ProductArgs &args, const WideItem &item) {
    const ProductJob &job = args.jobs[item.job];
    if (job.bias) add_bias<TILE>(sums, job, item);
    if (job.epilogue == EPILOGUE_LOGITS) {
#pragma unroll
        for (int i = 0; i < (int)TILE::NUM_SUMS; i++) sums[i] = __fmul_rn(sums[i], args.scale);
    }
#pragma unroll
    for (uint32_t first = 0; first < TILE::NUM_SUMS; first += BATCH_SUMS) {
        if (job.epilogue == EPILOGUE_ADD) {
            // All loads before the first store: they wait for no store, and not for each other.
            float before[BATCH_SUMS];
            each_result<TILE>(first, job, item, [&](uint32_t i, const float *out) { before[i - first] = *out; });
#pragma unroll
            for (uint32_t i = 0; i < BATCH_SUMS; i++) sums[first + i] = before[i] + sums[first + i];
        }
        each_result<TILE>(first, job, item, [&](uint32_t i, float *out) { *out = sums[i]; });
    }
    if (job.epilogue == EPILOGUE_LOGITS && args.cap != 0.0f) cap_stored<TILE>(args, item);
}

// ---- gated pairs -------------------------------------------------------------------------------

// The first warpgroup has the gate's sums, the second those of the same features of up. Chunk by
// chunk of 16 columns, one sends its sums to the other, which finishes the chunk: the first the
// even ones, the second the odd ones.
constexpr uint32_t CHUNK_COLUMNS = 16;
constexpr uint32_t CHUNK_SUMS = CHUNK_COLUMNS / 2;
constexpr uint32_t EXCHANGE_BYTES = CHUNK_SUMS * WARPGROUP * 4;
constexpr uint32_t CHUNK_BYTES = CHUNK_COLUMNS * LINE_BYTES;
// Of a warpgroup: what it sends and the lines that it writes, each in two turns.
constexpr uint32_t GATED_SCRATCH_BYTES = 2 * EXCHANGE_BYTES + 2 * CHUNK_BYTES;

// Lines of 64 features, as `Activations` have them, in shared memory.
DEVICE void stage_lines(uint8_t *lines, const float (&h)[CHUNK_SUMS]) {
    uint32_t warp = threadIdx.x / 32 % 4, matrix = threadIdx.x % 32 / 8, column = threadIdx.x % 8;
    uint32_t x[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) x[i] = pack_bf16(h[2 * i], h[2 * i + 1]);
    uint32_t line = matrix / 2 * 8 + column, chunk = (warp * 2 + matrix % 2) ^ column;
    store_matrices_transposed(lines + line * LINE_BYTES + chunk * 16, x);
}

// The chunk's lines to global memory, by one thread. They are read while it goes on.
DEVICE void send_lines(const uint8_t *lines, uint32_t column, const ProductArgs &args, const WideItem &item) {
    if (column < item.num_rows) {
        uint64_t line = (uint64_t)item.m_block * args.glu_row_stride + item.first_row + column;
        bulk_store((uint8_t *)args.glu_tiles + line * LINE_BYTES, lines, min(CHUNK_COLUMNS, item.num_rows - column) * LINE_BYTES);
    }
    bulk_store_commit();
}

// act(gate) * up of a chunk, where `mine` are a warpgroup's own sums and `other` those of the
// other. `m` is the first feature.
template <uint32_t GLU> DEVICE void activate_chunk(float (&mine)[CHUNK_SUMS], const float *other, const ProductArgs &args, uint32_t m) {
    const bool is_up = threadIdx.x >= WARPGROUP;
    const uint32_t out_features = args.jobs[0].out_features;
    const float *gate_bias = args.jobs[0].bias, *up_bias = args.jobs[1].bias;
    float gate[CHUNK_SUMS], up[CHUNK_SUMS];
#pragma unroll
    for (uint32_t i = 0; i < CHUNK_SUMS; i++) {
        float theirs = other[i * WARPGROUP];
        gate[i] = is_up ? theirs : mine[i];
        up[i] = is_up ? mine[i] : theirs;
    }
    if (gate_bias || up_bias) {
#pragma unroll
        for (uint32_t i = 0; i < CHUNK_SUMS; i++) {
            uint32_t feature = m + i / 2 % 2 * 8;
            if (gate_bias && feature < out_features) gate[i] += gate_bias[feature];
            if (up_bias && feature < out_features) up[i] += up_bias[feature];
        }
    }
    // No branch from value to value: they are computed side by side.
#pragma unroll
    for (uint32_t i = 0; i < CHUNK_SUMS; i++) mine[i] = glu_of(gate[i], up[i], GLU);
    // Outputs past the last are zeros.
#pragma unroll
    for (uint32_t i = 0; i < CHUNK_SUMS; i++) mine[i] = m + i / 2 % 2 * 8 < out_features ? mine[i] : 0.0f;
}

// The chunk's values as f32, where they are kept. `row` is that of the thread's first value.
DEVICE void keep_floats(const float (&values)[CHUNK_SUMS], const ProductArgs &args, const WideItem &item, uint32_t row, uint32_t m) {
    const uint32_t out_features = args.jobs[0].out_features;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK_SUMS; i++) {
        uint32_t at = row + i / 4 * 8 + i % 2, feature = m + i / 2 % 2 * 8;
        if (at < item.num_rows && feature < out_features) args.glu_floats[(uint64_t)(item.first_row + at) * out_features + feature] = values[i];
    }
}

template <class TILE>
DEVICE void store_gated(
    float (&sums)[TILE::NUM_SUMS], const ProductArgs &args, const WideItem &item, uint8_t *scratch, uint32_t scratch_bytes) {
    const uint32_t group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP;
    const WidePlace place = wide_place<TILE>();
    const uint32_t m = item.m_block * M_BLOCK + place.feature % M_BLOCK;
    const uint8_t *theirs = group ? scratch - scratch_bytes : scratch + scratch_bytes;
    // Totals that lay in the scratch are in everybody's registers by now.
    named_barrier_sync(BARRIER_WARPGROUP + group, WARPGROUP);
#pragma unroll
    for (uint32_t pair = 0; pair < TILE::NUM_SUMS / CHUNK_SUMS / 2; pair++) {
        float mine[CHUNK_SUMS];
        const uint32_t buffer = pair % 2 * EXCHANGE_BYTES, column = (2 * pair + group) * CHUNK_COLUMNS;
        float *to_them = (float *)(scratch + buffer) + thread;
#pragma unroll
        for (uint32_t i = 0; i < CHUNK_SUMS; i++) {
            float even = sums[2 * pair * CHUNK_SUMS + i], odd = sums[(2 * pair + 1) * CHUNK_SUMS + i];
            to_them[i * WARPGROUP] = group ? even : odd;
            mine[i] = group ? odd : even;
        }
        // These lines were sent two pairs ago.
        if (thread == 0) bulk_store_wait_read<1>();
        named_barrier_sync(BARRIER_CONSUMERS, NUM_CONSUMERS);
        const float *from_them = (const float *)(theirs + buffer) + thread;
        if (args.glu == GLU_SILU) activate_chunk<GLU_SILU>(mine, from_them, args, m);
        else if (args.glu == GLU_GELU_TANH) activate_chunk<GLU_GELU_TANH>(mine, from_them, args, m);
        else activate_chunk<GLU_CLAMPED_SWISH>(mine, from_them, args, m);
        if (args.glu_floats) keep_floats(mine, args, item, column + place.column, m);
        uint8_t *lines = scratch + 2 * EXCHANGE_BYTES + pair % 2 * CHUNK_BYTES;
        // Lanes came here by different ways.
        __syncwarp();
        stage_lines(lines, mine);
        fence_async_shared();
        named_barrier_sync(BARRIER_WARPGROUP + group, WARPGROUP);
        if (thread == 0) send_lines(lines, column, args, item);
    }
    // The scratch is free for the next item.
    if (thread == 0) bulk_store_wait_read<0>();
    named_barrier_sync(BARRIER_CONSUMERS, NUM_CONSUMERS);
}

#endif
