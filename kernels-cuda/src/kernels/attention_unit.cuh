// Paged attention. A block takes a unit: up to 16 queries a warp (rows times heads of one KV head)
// and a range of splits; keys and values of a tile come to shared memory once for all its warps.
//
// Grid: units (rounded up: blocks past the last leave) times KV heads, parts of a head's values.
#pragma once

#include "attention_tile.cuh"

// A row of the plan, and one of its heads.
struct Query {
    // Batch row, position, first state, folded splits | LEAF.
    uint4 row;
    uint32_t head;
    // Past the last token that it sees in this unit.
    uint32_t to;
    bool is_here;
};

// Query g + 8 half of this lane's warp.
DEVICE Query find_query(const AttentionArgs &args, const Unit &unit, int half) {
    Query query;
    uint32_t index = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
    query.is_here = index < unit.num_rows * unit.num_heads;
    if (!query.is_here) index = 0;
    query.row = args.rows[unit.first_row + index / unit.num_heads];
    uint32_t first_head = blockIdx.x % args.num_kv_heads * (args.num_heads / args.num_kv_heads) + unit.first_head;
    query.head = first_head + index % unit.num_heads;
    query.to = query.row.y + 1;
    // A leaf's last split is its own unit's: its token stands in for another there.
    if ((query.row.w & LEAF) && unit.own == NONE) query.to = query.row.y / args.split_tokens * args.split_tokens;
    return query;
}

// Values of a query that a lane has of a chunk of 32 dims, rounded to f16.
DEVICE uint4 load_chunk(const float *q, uint32_t dim, uint32_t num_dims) {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = dim + i < num_dims ? q[dim + i] : 0.0f;
    return make_uint4(pack_f16(x[0], x[1]), pack_f16(x[2], x[3]), pack_f16(x[4], x[5]), pack_f16(x[6], x[7]));
}

// What the queries of a warp see, and their values.
template <int D, int KEPT>
DEVICE Sight load_queries(const AttentionArgs &args, const Unit &unit, Fragments<KEPT> &fragments) {
    Sight sight;
    const float *q[2];
    uint32_t num_dims[2], some_to = 0, all_from = 0, all_to = NONE;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Query query = find_query(args, unit, half);
        sight.from[half] = query.is_here ? window_start(query.row.y, args.window) : 0;
        sight.to[half] = query.is_here ? query.to : NONE;
        some_to = max(some_to, query.is_here ? query.to : 0);
        all_from = max(all_from, sight.from[half]);
        all_to = min(all_to, sight.to[half]);
        q[half] = args.q + ((uint64_t)query.row.x * args.num_heads + query.head) * args.head_dim;
        num_dims[half] = query.is_here ? args.head_dim : 0;
    }
    sight.some_to = reduce_max(some_to);
    sight.all_from = reduce_max(all_from);
    sight.all_to = reduce_min(all_to);
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
        uint32_t dim = 32 * c + threadIdx.x % 4 * 8;
        uint4 a = load_chunk(q[0], dim, num_dims[0]), b = load_chunk(q[1], dim, num_dims[1]);
        uint4 steps[2] = {make_uint4(a.x, b.x, a.y, b.y), make_uint4(a.z, b.z, a.w, b.w)};
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int k = 2 * c + step;
            if (k >= KEPT) {
                fragments.others[(k - KEPT) * 32] = steps[step];
                continue;
            }
            fragments.kept[k % KEPT][0] = steps[step].x;
            fragments.kept[k % KEPT][1] = steps[step].y;
            fragments.kept[k % KEPT][2] = steps[step].z;
            fragments.kept[k % KEPT][3] = steps[step].w;
        }
    }
    return sight;
}

// The sums of weights of all of a query's tokens: its four lanes hold a part each.
template <int V> DEVICE void join_sums(State<V> &state) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        state.sum[half] = __fadd_rn(state.sum[half], shuffle_xor(state.sum[half], 1));
        state.sum[half] = __fadd_rn(state.sum[half], shuffle_xor(state.sum[half], 2));
    }
}

// The merged states of earlier splits, in shared memory where each lane reads what it wrote.
template <int V> struct Merged {
    float *out;
    float max[2], sum[2];
    bool is_empty;
};

// Merges `state` into the earlier ones, and leaves the result in it.
template <int V> DEVICE void merge_into(const Merged<V> &merged, State<V> &state) {
    if (merged.is_empty) return;
    MergeWeights weights[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        weights[half] = merge_weights(merged.max[half], state.max[half]);
        state.sum[half] = merge(merged.sum[half], state.sum[half], weights[half]);
        state.max[half] = weights[half].max;
    }
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            state.out[n][i] = merge(merged.out[(n * 4 + i) * 32], state.out[n][i], weights[i / 2]);
    }
}

template <int V> DEVICE void keep(Merged<V> &merged, const State<V> &state) {
    merged.is_empty = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        merged.max[half] = state.max[half];
        merged.sum[half] = state.sum[half];
    }
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) merged.out[(n * 4 + i) * 32] = state.out[n][i];
    }
}

// Writes a query's values, times `factor`, to the first `num_dims` floats of `target`.
template <int V>
DEVICE void write_values(const State<V> &state, int half, float factor, float *target, uint32_t num_dims) {
    bool is_aligned = num_dims % 2 == 0;
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
        uint32_t dim = 8 * n + threadIdx.x % 4 * 2;
        float low = finish(state.out[n][2 * half], factor), high = finish(state.out[n][2 * half + 1], factor);
        if (is_aligned && dim < num_dims) *(float2 *)(target + dim) = make_float2(low, high);
        if (!is_aligned && dim < num_dims) target[dim] = low;
        if (!is_aligned && dim + 1 < num_dims) target[dim + 1] = high;
    }
}

// Writes the results of rows, or one state of each. `split` is the first that the state is of.
template <int D, int V> DEVICE void write(const AttentionArgs &args, const State<V> &state, uint32_t split) {
    // Read again: in the meantime nobody needs it.
    Unit unit = read_unit(args.units, blockIdx.x / args.num_kv_heads);
    uint32_t first_dim = blockIdx.y * V;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Query query = find_query(args, unit, half);
        if (!query.is_here || split * args.split_tokens >= query.to) continue;
        uint4 row = query.row;
        if (row.z == NONE) {
            float *target = args.out + ((uint64_t)row.x * args.num_heads + query.head) * args.head_dim;
            uint32_t num_dims = args.head_dim > first_dim ? args.head_dim - first_dim : 0;
            write_values<V>(state, half, invert(state.sum[half]), target + first_dim, num_dims);
            continue;
        }
        uint32_t folded = row.w & ~LEAF;
        uint32_t index = row.z + (split < folded ? 0 : split - folded + 1);
        float *target = args.states + ((uint64_t)index * args.num_heads + query.head) * (STATE_HEAD + D);
        if (threadIdx.x % 4 == 0 && blockIdx.y == 0) {
            target[0] = state.max[half];
            target[1] = state.sum[half];
        }
        write_values<V>(state, half, 1.0f, target + STATE_HEAD + first_dim, V);
    }
}

// Where a token's key and value lie among the layer's rows of them.
DEVICE uint32_t place_of(const AttentionArgs &args, const Unit &unit, uint32_t token, uint32_t end) {
    // Past the end the last one is read, and not seen.
    token = min(token, end - 1);
    if (unit.own != NONE && token == unit.limit - 1) token = unit.own;
    uint32_t index = args.block_shift == NONE ? token / args.block_size : token >> args.block_shift;
    uint32_t block = args.tables[unit.table + index];
    return (block * args.num_kv_heads + blockIdx.x % args.num_kv_heads) * args.block_size + token - index * args.block_size;
}

template <int D, int V, int WARPS, int STAGES, int KEPT> DEVICE void attend(const AttentionArgs &args) {
    typedef Shape<D, V> S;
    const int TOKENS = TILE / WARPS;
    DYNAMIC_SHARED(shared);
    Unit unit = read_unit(args.units, blockIdx.x / args.num_kv_heads);
    uint32_t split_tokens = args.split_tokens;
    // The window of the first row may begin late.
    uint32_t begin = window_start(unit.min_position, args.window) / TILE * TILE;
    begin = max(begin, unit.first_split * split_tokens);
    uint32_t end = min(unit.limit, (unit.first_split + unit.num_splits) * split_tokens);
    if (begin >= end) return;

    uint32_t warp = threadIdx.x / 32;
    uint32_t first = warp * TOKENS, own_token = first + threadIdx.x % TOKENS;
    const uint8_t *values = args.values + blockIdx.y * V * 2;
    uint32_t place = place_of(args, unit, begin + own_token, end);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (begin + stage * TILE < end)
            fetch<D, V, TOKENS>(shared + stage * S::STAGE_BYTES, args.keys, values, first, place);
        copy_async_commit();
        place = place_of(args, unit, begin + (stage + 1) * TILE + own_token, end);
    }
    uint8_t *rest = shared + STAGES * S::STAGE_BYTES;
    Fragments<KEPT> fragments;
    fragments.others = (uint4 *)rest + warp * (D / 16 - KEPT) * 32 + threadIdx.x % 32;
    Sight sight = load_queries<D, KEPT>(args, unit, fragments);
    rest += WARPS * (D / 16 - KEPT) * 32 * 16;
    State<V> state;
    Merged<V> merged;
    merged.out = (float *)rest + warp * (16 * V) + threadIdx.x % 32;
    merged.is_empty = true;
    uint32_t stage = 0, tile = begin;
    while (true) {
        clear(state);
        uint32_t split = tile / split_tokens, split_end = min(end, (split + 1) * split_tokens);
        for (; tile < split_end; tile += TILE) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();
            uint32_t ahead = tile + (STAGES - 1) * TILE;
            if (ahead < end) {
                uint32_t target = stage == 0 ? STAGES - 1 : stage - 1;
                fetch<D, V, TOKENS>(shared + target * S::STAGE_BYTES, args.keys, values, first, place);
                place = place_of(args, unit, ahead + TILE + own_token, end);
            }
            copy_async_commit();
            if (tile < sight.some_to) {
                const uint8_t *from = shared + stage * S::STAGE_BYTES;
                float scores[4][4];
                score<D, KEPT>(from, fragments, scores);
                mask(scores, sight, tile, args.score_scale, args.cap);
                weigh(scores, state);
                add_values<D, V>(from, 0, scores, state);
                add_values<D, V>(from, 1, scores, state);
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        join_sums(state);
        bool is_folded = unit.is_folded;
        if (is_folded) merge_into(merged, state);
        if (!is_folded || tile >= end) write<D, V>(args, state, is_folded ? 0 : split);
        if (tile >= end) return;
        if (is_folded) keep(merged, state);
    }
}
