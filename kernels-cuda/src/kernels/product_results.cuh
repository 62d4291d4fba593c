// What happens to the sums of a product: parts are added, then each sum becomes a result.
#pragma once

#include "activation.cuh"
#include "common.cuh"

constexpr int MAX_JOBS = 3;

// As `product/launch.rs` counts them.
enum ProductEpilogue : uint32_t { EPILOGUE_STORE, EPILOGUE_ADD, EPILOGUE_LOGITS };

// One matrix of a launch.
struct ProductJob {
    const uint8_t *weights;
    // [out_features], or null.
    const float *bias;
    // [rows, out_features]; unused where two matrices make a gated unit.
    float *out;
    // From one expert's weights to the next.
    uint64_t expert_bytes;
    uint32_t out_features;
    // Of all units and of all groups (units that are added up) of a row tile; jobs follow one
    // another.
    uint32_t first_unit, first_group;
    // How the inputs are split.
    uint32_t num_parts, part_blocks;
    uint32_t epilogue, weight_type;
};

struct ProductArgs {
    ProductJob jobs[MAX_JOBS];
    // Activations in tiles.
    const uint8_t *x;
    // Of experts: {expert, first row, rows, 0} for each tile; a tile without rows is unused. Null
    // otherwise.
    const uint4 *row_tiles;
    float4 *workspace;
    // Zeros, one a group and tile; who reads the last arrival writes the zero again.
    uint32_t *counters;
    // A gated unit's results: activations in tiles, and as f32 where that is not null.
    uint16_t *glu_tiles;
    float *glu_floats;
    uint32_t num_jobs, num_groups;
    uint32_t num_rows, row_stride, k_blocks;
    // Rows of a tile, and the tiles' stride in `glu_tiles`.
    uint32_t tile_rows, glu_row_stride;
    // Whether a unit goes through all parts.
    uint32_t is_serial;
    // Matrices that make one result: 2 in a gated unit, else 1.
    uint32_t num_summed, glu;
    // Of logits; a cap of zero is none.
    float scale, cap;
    // Tiles of `tile_rows` rows that one of `row_tiles` is cut into.
    uint32_t tile_splits, padding;
};

// A block's work.
struct ProductUnit {
    uint32_t job, group, part, first_m_block, expert, first_row, num_rows;
    // Of the group in the workspace, and units of a group.
    uint32_t first_of_group, group_units;

    METHOD ProductUnit(const ProductArgs &args, uint32_t m_blocks) {
        expert = 0;
        first_row = blockIdx.y * args.tile_rows;
        num_rows = min(args.tile_rows, args.num_rows - first_row);
        if (args.row_tiles) {
            uint4 tile = args.row_tiles[blockIdx.y / args.tile_splits];
            uint32_t skipped = blockIdx.y % args.tile_splits * args.tile_rows;
            expert = tile.x;
            first_row = tile.y + skipped;
            num_rows = tile.z > skipped ? min(tile.z - skipped, args.tile_rows) : 0;
        }
        job = 0;
        while (job + 1 < args.num_jobs && blockIdx.x >= args.jobs[job + 1].first_unit) job++;
        uint32_t unit = blockIdx.x - args.jobs[job].first_unit, parts = args.jobs[job].num_parts;
        group_units = args.is_serial ? 1 : parts * args.num_summed;
        group = unit / group_units;
        uint32_t within = unit - group * group_units;
        first_of_group = blockIdx.y * gridDim.x + blockIdx.x - within;
        first_m_block = group * m_blocks;
        group += blockIdx.y * args.num_groups + args.jobs[job].first_group;
        part = within;
        if (within >= parts) {
            // The second matrix of a gated unit.
            job = 1;
            part -= parts;
        }
    }
};

DEVICE float4 added(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

template <int N> DEVICE void set_to_zero(float (&sum)[N / 8][4]) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) sum[n][i] = 0.0f;
}

// Sums of whole matrices, in shared memory; every thread has its own.
template <int N, int THREADS> struct ProductTotals {
    float4 *totals;

    METHOD float4 &of(uint32_t matrix, int columns) { return totals[(matrix * (N / 8) + columns) * THREADS + threadIdx.x]; }

    // Adds a part's sums, which begin again with zero.
    METHOD void add(float (&sum)[N / 8][4], uint32_t matrix, bool is_first) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            float4 part = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
            of(matrix, n) = is_first ? part : added(of(matrix, n), part);
        }
        set_to_zero<N>(sum);
    }
};

// A sum with its bias as an element of `out`.
DEVICE void finish_value(const ProductArgs &args, const ProductJob &job, float sum, uint32_t row, uint32_t m) {
    if (m >= job.out_features) return;
    float *out = job.out + (uint64_t)row * job.out_features + m;
    float value = job.bias ? sum + job.bias[m] : sum;
    if (job.epilogue == EPILOGUE_ADD) value = *out + value;
    if (job.epilogue == EPILOGUE_LOGITS) {
        value = __fmul_rn(value, args.scale);
        if (args.cap != 0.0f) value = soft_cap(value, args.cap);
    }
    *out = value;
}

// Sums of a gated unit as an element of the next product's activations; those past the width are
// zeros.
DEVICE void finish_glu(const ProductArgs &args, float gate, float up, uint32_t row, uint32_t m) {
    const uint32_t out_features = args.jobs[0].out_features;
    if (m < out_features) {
        if (args.jobs[0].bias) gate += args.jobs[0].bias[m];
        if (args.jobs[1].bias) up += args.jobs[1].bias[m];
    }
    float value = m < out_features ? glu_of(gate, up, args.glu) : 0.0f;
    uint64_t line = (uint64_t)(m / 64) * args.glu_row_stride + row;
    args.glu_tiles[line * 64 + ((m % 64 / 8) ^ (row % 8)) * 8 + m % 8] = bf16_of(value);
    if (args.glu_floats && m < out_features) args.glu_floats[(uint64_t)row * out_features + m] = value;
}

// Four sums of a thread: rows 2t and 2t + 1 of eight, outputs g and g + 8 of sixteen.
DEVICE void finish_sums(const ProductArgs &args, const ProductUnit &unit, const float (&gate)[4], const float (&up)[4], uint32_t columns, bool is_glu) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first_m = unit.first_m_block * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = columns * 8 + lane % 4 * 2 + i % 2, m = first_m + i / 2 * 8;
        if (row >= unit.num_rows) continue;
        if (is_glu) finish_glu(args, gate[i], up[i], unit.first_row + row, m);
        else finish_value(args, args.jobs[unit.job], gate[i], unit.first_row + row, m);
    }
}

// Whether this block is the last of its group; the sums of all are in the workspace then.
// `is_last` lies in shared memory that nobody needs any more.
template <int N, int THREADS>
DEVICE bool leave_sums(const ProductArgs &args, const ProductUnit &unit, const float (&sum)[N / 8][4], volatile uint32_t *is_last) {
    uint32_t own = blockIdx.y * gridDim.x + blockIdx.x;
    float4 *parts = args.workspace + (uint64_t)own * (N / 8 * THREADS) + threadIdx.x;
#pragma unroll
    for (uint32_t n = 0; n < N / 8; n++)
        if (n * 8 + threadIdx.x % 4 * 2 < unit.num_rows) parts[n * THREADS] = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
    __syncthreads();
    if (threadIdx.x == 0) {
        bool last = count_arrival(args.counters + unit.group) + 1 == unit.group_units;
        if (last) args.counters[unit.group] = 0;
        *is_last = last;
    }
    __syncthreads();
    return *is_last;
}

// The sum of a matrix's parts, in their order.
DEVICE float4 add_parts(const float4 *parts, uint32_t stride, uint32_t num_parts) {
    float4 total = *parts;
#pragma unroll 4
    for (uint32_t part = 1; part < num_parts; part++) total = added(total, parts[(uint64_t)part * stride]);
    return total;
}

// `has_outputs`: a warp may lie past the last block of outputs. `totals` lie behind the ring, which
// begins at `ring`.
template <int N, int THREADS>
DEVICE void finish_product(const ProductArgs &args, const ProductUnit &unit, float (&sum)[N / 8][4], ProductTotals<N, THREADS> totals, uint8_t *ring, bool has_outputs) {
    const bool is_glu = args.num_summed == 2, is_split = unit.group_units > 1;
    if (is_split && !leave_sums<N, THREADS>(args, unit, sum, (volatile uint32_t *)ring)) return;
    if (!has_outputs) return;
    constexpr uint32_t UNIT = N / 8 * THREADS;
    const uint32_t num_parts = args.jobs[unit.job].num_parts;
    const float4 *parts = args.workspace + (uint64_t)unit.first_of_group * UNIT + threadIdx.x;
#pragma unroll
    for (uint32_t n = 0; n < N / 8; n++) {
        if (n * 8 + threadIdx.x % 4 * 2 >= unit.num_rows) continue;
        float up[4] = {};
        if (is_split || args.is_serial) {
            float4 total = is_split ? add_parts(parts + n * THREADS, UNIT, num_parts) : totals.of(0, n);
            sum[n][0] = total.x, sum[n][1] = total.y, sum[n][2] = total.z, sum[n][3] = total.w;
            if (is_glu) {
                total = is_split ? add_parts(parts + num_parts * UNIT + n * THREADS, UNIT, num_parts) : totals.of(1, n);
                up[0] = total.x, up[1] = total.y, up[2] = total.z, up[3] = total.w;
            }
        }
        finish_sums(args, unit, sum[n], up, n, is_glu);
    }
}
