// Products with matrices of f32, in f32: routers of experts, adapters, small models.
//
// LANES threads share an output feature. Each takes every LANES-th quad of inputs, in order, and
// their sums meet in a tree, so that the order of a sum depends on LANES alone, which follows from
// the matrix's shape. ROWS rows and OUTS features at once read a weight and an input less often;
// the sums are the same.

#include "rows.cuh"

constexpr int NUM_THREADS = 128;
constexpr int NUM_WARPS = NUM_THREADS / 32;

struct FloatProductArgs {
    // [rows, in_features]
    const float *x;
    // [out_features, in_features]; of all experts one after the other.
    const float *weights;
    // [out_features], or null.
    const float *bias;
    // [rows, out_features]
    float *out;
    // Which rows of `x` and of `out` row r is; r itself where it is null.
    const uint32_t *x_rows;
    const uint32_t *out_rows;
    // Of each tile: expert, first row, rows. Null where there is one matrix.
    const uint4 *tiles;
    uint32_t num_rows;
    uint32_t in_features;
    uint32_t out_features;
    // Whether to add to `out`.
    uint32_t accumulates;
};

DEVICE float add_products(float sum, float4 a, float4 b) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Sums of a block's warps that belong to one result.
struct Partial {
    float of_warps[NUM_WARPS];
};

// The rows and features of a thread's group. Those past the last are the last again: they are
// computed and not written.
template <int ROWS, int OUTS> struct Operands {
    const float *x[ROWS];
    const float *weights[OUTS];

    Operands(const FloatProductArgs &a, const float *matrix, uint32_t first_row, uint32_t end_row, uint32_t first_out) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            uint32_t row = min(first_row + r, end_row - 1);
            x[r] = a.x + (size_t)(a.x_rows ? a.x_rows[row] : row) * a.in_features;
        }
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
            weights[o] = matrix + (size_t)min(first_out + o, a.out_features - 1) * a.in_features;
        }
    }

    // Adds a lane's products. ALIGNED: quads can be read at once.
    template <int LANES, bool ALIGNED>
    void add(float (&sums)[ROWS][OUTS], uint32_t lane, uint32_t in_features) const {
        constexpr int NUM_AT_ONCE = ROWS == 1 ? 8 : OUTS == 1 ? 2 : 1;
#pragma unroll NUM_AT_ONCE
        for (uint32_t quad = lane; quad < quads_of(in_features); quad += LANES) {
            float4 weight[OUTS];
#pragma unroll
            for (int o = 0; o < OUTS; ++o) weight[o] = load_quad<ALIGNED>(weights[o], quad, in_features);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float4 v = load_quad<ALIGNED>(x[r], quad, in_features);
#pragma unroll
                for (int o = 0; o < OUTS; ++o) sums[r][o] = add_products(sums[r][o], v, weight[o]);
            }
        }
    }
};

DEVICE void write_result(const FloatProductArgs &a, uint32_t row, uint32_t feature, float value) {
    if (a.bias) value += a.bias[feature];
    float *out = a.out + (size_t)(a.out_rows ? a.out_rows[row] : row) * a.out_features + feature;
    *out = a.accumulates ? *out + value : value;
}

// Rows from `first_row` (at most ROWS, up to `end_row`) by the features of this thread's group.
template <int LANES, int ROWS, int OUTS>
DEVICE void multiply(const FloatProductArgs &a, const float *matrix, uint32_t first_row, uint32_t end_row, Partial *shared) {
    constexpr int WARP_LANES = LANES < 32 ? LANES : 32;
    uint32_t lane = threadIdx.x % LANES;
    uint32_t first_out = (blockIdx.x * (NUM_THREADS / LANES) + threadIdx.x / LANES) * OUTS;
    Operands<ROWS, OUTS> operands(a, matrix, first_row, end_row, first_out);
    float sums[ROWS][OUTS] = {};
    if (are_aligned(a.in_features)) {
        operands.template add<LANES, true>(sums, lane, a.in_features);
    } else {
        operands.template add<LANES, false>(sums, lane, a.in_features);
    }
    // What an earlier call left there has been read.
    if constexpr (LANES > 32) __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
            float sum = sums[r][o];
#pragma unroll
            for (int mask = WARP_LANES / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
            bool is_writer = lane % WARP_LANES == (r * OUTS + o) % WARP_LANES;
            if constexpr (LANES > 32) {
                if (is_writer) shared[r * OUTS + o].of_warps[threadIdx.x / 32] = sum;
            } else if (is_writer && first_row + r < end_row && first_out + o < a.out_features) {
                write_result(a, first_row + r, first_out + o, sum);
            }
        }
    }
    if constexpr (LANES > 32) {
        __syncthreads();
        uint32_t row = first_row + threadIdx.x / OUTS, feature = first_out + threadIdx.x % OUTS;
        if (threadIdx.x < ROWS * OUTS && row < end_row && feature < a.out_features) {
            const float *sums_of = shared[threadIdx.x].of_warps;
            write_result(a, row, feature, (sums_of[0] + sums_of[1]) + (sums_of[2] + sums_of[3]));
        }
    }
}

template <int LANES, int ROWS, int OUTS>
DEVICE void product(const FloatProductArgs &a, Partial *shared) {
    multiply<LANES, ROWS, OUTS>(a, a.weights, blockIdx.y * ROWS, a.num_rows, shared);
}

// A tile of rows by the matrix of its expert.
template <int LANES, int ROWS>
DEVICE void grouped_product(const FloatProductArgs &a, Partial *shared) {
    uint4 tile = a.tiles[blockIdx.y];
    const float *matrix = a.weights + (size_t)tile.x * a.out_features * a.in_features;
    uint32_t end_row = tile.y + tile.z;
    for (uint32_t row = tile.y; row < end_row; row += ROWS) multiply<LANES, ROWS, 1>(a, matrix, row, end_row, shared);
}

#define FLOAT_PRODUCT(lanes, rows, outs)                                                                       \
    KERNEL __launch_bounds__(NUM_THREADS) float_product_##lanes##_##rows##x##outs(FloatProductArgs a) {        \
        __shared__ Partial shared[lanes > 32 ? rows * outs : 1];                                               \
        product<lanes, rows, outs>(a, shared);                                                                 \
    }                                                                                                          \
    EXPORT(float_product_##lanes##_##rows##x##outs)

#define GROUPED_FLOAT_PRODUCT(lanes, rows)                                                                     \
    KERNEL __launch_bounds__(NUM_THREADS) grouped_float_product_##lanes(FloatProductArgs a) {                  \
        __shared__ Partial shared[lanes > 32 ? rows : 1];                                                      \
        grouped_product<lanes, rows>(a, shared);                                                               \
    }                                                                                                          \
    EXPORT(grouped_float_product_##lanes)

FLOAT_PRODUCT(8, 1, 1)
FLOAT_PRODUCT(8, 8, 1)
FLOAT_PRODUCT(8, 8, 4)
FLOAT_PRODUCT(32, 1, 1)
FLOAT_PRODUCT(32, 8, 1)
FLOAT_PRODUCT(32, 8, 4)
FLOAT_PRODUCT(128, 1, 1)
FLOAT_PRODUCT(128, 8, 1)
FLOAT_PRODUCT(128, 8, 4)
GROUPED_FLOAT_PRODUCT(8, 8)
GROUPED_FLOAT_PRODUCT(32, 8)
GROUPED_FLOAT_PRODUCT(128, 8)
