// Operations row by row: norms, residuals, offsets, activations as products read them.
//
// A norm has a block for each row. Its sum goes quad by quad through the threads, whose number
// follows from the width, then through a tree: the order depends on the width alone. Everything
// else is element by element, a thread a quad.

#include "rows.cuh"
#include "activation.cuh"

// Quads that a thread of a norm holds in registers; wider rows are read again.
constexpr int NUM_HELD = 4;
constexpr int MAX_NORM_THREADS = 512;

struct NormArgs {
    // Of the first value of row 0.
    const float *x;
    // Which rows are normed; all where it is null.
    const uint32_t *rows;
    const float *weight;
    // Where to write; either may be null. `out` may be `x`.
    uint8_t *tiles;
    float *out;
    // What is added to row r after the norm: row `offset_of_row[r]` of `offsets`.
    const float *offsets;
    const uint32_t *offset_of_row;
    // Values from one row of `x` to the next.
    uint32_t x_stride;
    uint32_t width;
    uint32_t row_stride;
    float eps;
};

DEVICE float4 scaled(float4 v, float scale, float4 weight) {
    return make_float4(v.x * (scale * weight.x), v.y * (scale * weight.y), v.z * (scale * weight.z), v.w * (scale * weight.w));
}

// `to + factor * v`
DEVICE float4 plus(float4 to, float factor, float4 v) {
    return make_float4(fmaf(factor, v.x, to.x), fmaf(factor, v.y, to.y), fmaf(factor, v.z, to.z), fmaf(factor, v.w, to.w));
}

// A row of a norm with its weight. A thread holds its first quads of both; ALIGNED: quads can be
// read at once.
template <bool ALIGNED> struct NormedRow {
    const float *row;
    const float *weight;
    uint32_t width;
    float4 x[NUM_HELD];
    float4 w[NUM_HELD];
    // 1 / sqrt(mean of squares + eps)
    float scale;

    NormedRow(const float *row, const float *weight, uint32_t width, float eps, float *shared)
        : row(row), weight(weight), width(width) {
#pragma unroll
        for (int i = 0; i < NUM_HELD; ++i) x[i] = load_quad<ALIGNED>(row, threadIdx.x + i * blockDim.x, width);
#pragma unroll
        for (int i = 0; i < NUM_HELD; ++i) w[i] = load_quad<ALIGNED>(weight, threadIdx.x + i * blockDim.x, width);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < NUM_HELD; ++i) sum = add_squares(sum, x[i]);
        for (uint32_t quad = threadIdx.x + NUM_HELD * blockDim.x; quad < quads_of(width); quad += blockDim.x) {
            sum = add_squares(sum, load_quad<ALIGNED>(row, quad, width));
        }
        scale = 1.0f / sqrtf(block_sum(sum, shared) / (float)width + eps);
    }

    // Calls `emit(quad, values)` for each of the thread's quads up to `num_quads`.
    template <class Emit> void each(uint32_t num_quads, Emit emit) const {
#pragma unroll
        for (int i = 0; i < NUM_HELD; ++i) {
            uint32_t quad = threadIdx.x + i * blockDim.x;
            if (quad < num_quads) emit(quad, scaled(x[i], scale, w[i]));
        }
        for (uint32_t quad = threadIdx.x + NUM_HELD * blockDim.x; quad < num_quads; quad += blockDim.x) {
            float4 weights = load_quad<ALIGNED>(weight, quad, width);
            emit(quad, scaled(load_quad<ALIGNED>(row, quad, width), scale, weights));
        }
    }
};

template <bool ALIGNED> DEVICE void norm_row(const NormArgs &a, float *shared) {
    uint32_t row = blockIdx.x, source = a.rows ? a.rows[row] : row;
    uint32_t steering = a.offset_of_row ? a.offset_of_row[row] : NONE;
    const float *offset = steering == NONE ? nullptr : a.offsets + (size_t)steering * a.width;
    NormedRow<ALIGNED> normed(a.x + (size_t)source * a.x_stride, a.weight, a.width, a.eps, shared);
    normed.each(a.tiles ? padded_quads_of(a.width) : quads_of(a.width), [&](uint32_t quad, float4 v) {
        if (offset) v = plus(v, 1.0f, load_quad<ALIGNED>(offset, quad, a.width));
        if (a.tiles) store_tile_quad(a.tiles, row, quad, a.row_stride, v);
        if (a.out) store_quad(a.out + (size_t)row * a.width, quad, a.width, ALIGNED, v);
    });
}

KERNEL __launch_bounds__(MAX_NORM_THREADS, 1) norm_rows(NormArgs a) {
    __shared__ float shared[32];
    if (are_aligned(a.width) && are_aligned(a.x_stride)) {
        norm_row<true>(a, shared);
    } else {
        norm_row<false>(a, shared);
    }
}
EXPORT(norm_rows)

template <bool ALIGNED>
DEVICE void add_normed_row(float *x, const float *h, const float *weight, uint32_t width, float eps, float *shared) {
    NormedRow<ALIGNED> normed(h, weight, width, eps, shared);
    normed.each(quads_of(width), [&](uint32_t quad, float4 v) {
        store_quad(x, quad, width, ALIGNED, plus(load_quad<ALIGNED>(x, quad, width), 1.0f, v));
    });
}

// x += norm(h)
KERNEL __launch_bounds__(MAX_NORM_THREADS, 1) add_normed(float *x, const float *h, const float *weight, uint32_t width, float eps) {
    __shared__ float shared[32];
    size_t first = (size_t)blockIdx.x * width;
    if (are_aligned(width)) {
        add_normed_row<true>(x + first, h + first, weight, width, eps, shared);
    } else {
        add_normed_row<false>(x + first, h + first, weight, width, eps, shared);
    }
}
EXPORT(add_normed)

// Rows as activations. `floats` may be null.
KERNEL to_activations(const float *x, uint8_t *tiles, float *floats, uint32_t num_rows, uint32_t width, uint32_t row_stride) {
    Place at(padded_quads_of(width));
    if (at.row >= num_rows) return;
    bool is_aligned = are_aligned(width);
    size_t first = (size_t)at.row * width;
    float4 v = load_quad(x + first, at.part, width, is_aligned);
    store_tile_quad(tiles, at.row, at.part, row_stride, v);
    if (floats) store_quad(floats + first, at.part, width, is_aligned, v);
}
EXPORT(to_activations)

// gate = act(gate) * up, and the same as activations. `floats` may be null.
KERNEL activate_rows(float *gate, const float *up, uint8_t *tiles, float *floats, uint32_t num_rows, uint32_t width,
    uint32_t row_stride, uint32_t glu) {
    Place at(padded_quads_of(width));
    if (at.row >= num_rows) return;
    bool is_aligned = are_aligned(width);
    size_t first = (size_t)at.row * width;
    float4 g = load_quad(gate + first, at.part, width, is_aligned);
    float4 u = load_quad(up + first, at.part, width, is_aligned);
    float4 v = make_float4(glu_of(g.x, u.x, glu), glu_of(g.y, u.y, glu), glu_of(g.z, u.z, glu), glu_of(g.w, u.w, glu));
    store_quad(gate + first, at.part, width, is_aligned, v);
    store_tile_quad(tiles, at.row, at.part, row_stride, v);
    if (floats) store_quad(floats + first, at.part, width, is_aligned, v);
}
EXPORT(activate_rows)

// x += scale * h, over values that lie together.
KERNEL add_scaled(float *x, const float *h, uint32_t num_values, float scale) {
    uint32_t first = 4 * thread_index();
    if (first + 4 <= num_values) {
        float4 *to = (float4 *)(x + first);
        *to = plus(*to, scale, *(const float4 *)(h + first));
        return;
    }
    for (uint32_t i = first; i < num_values; ++i) x[i] = fmaf(scale, h[i], x[i]);
}
EXPORT(add_scaled)

// out += scale * sigmoid_of(weight) * h, one weight a row.
KERNEL add_weighted(float *out, const float *h, const float *weights, uint32_t num_rows, uint32_t width, float scale) {
    Place at(quads_of(width));
    if (at.row >= num_rows) return;
    bool is_aligned = are_aligned(width);
    size_t first = (size_t)at.row * width;
    float4 v = load_quad(out + first, at.part, width, is_aligned);
    v = plus(v, scale * sigmoid_of(weights[at.row]), load_quad(h + first, at.part, width, is_aligned));
    store_quad(out + first, at.part, width, is_aligned, v);
}
EXPORT(add_weighted)

// x[row] += offsets[offset_of_row[row]], where a row has one.
KERNEL add_offsets(float *x, const float *offsets, const uint32_t *offset_of_row, uint32_t num_rows, uint32_t width) {
    Place at(quads_of(width));
    if (at.row >= num_rows || offset_of_row[at.row] == NONE) return;
    bool is_aligned = are_aligned(width);
    float *row = x + (size_t)at.row * width;
    float4 offset = load_quad(offsets + (size_t)offset_of_row[at.row] * width, at.part, width, is_aligned);
    store_quad(row, at.part, width, is_aligned, plus(load_quad(row, at.part, width, is_aligned), 1.0f, offset));
}
EXPORT(add_offsets)

// x = cap * tanh(factor * x / cap), or x = factor * x where the cap is zero.
KERNEL transform_logits(float *x, uint32_t num_values, float factor, float cap) {
    uint32_t i = thread_index();
    if (i >= num_values) return;
    float v = factor * x[i];
    x[i] = cap > 0.0f ? soft_cap(v, cap) : v;
}
EXPORT(transform_logits)

// out[row] = scale * table[ids[row]]
KERNEL embed_floats(const float *table, const uint32_t *ids, float *out, uint32_t num_rows, uint32_t width, float scale) {
    Place at(quads_of(width));
    if (at.row >= num_rows) return;
    bool is_aligned = are_aligned(width);
    float4 v = load_quad(table + (size_t)ids[at.row] * width, at.part, width, is_aligned);
    v = make_float4(scale * v.x, scale * v.y, scale * v.z, scale * v.w);
    store_quad(out + (size_t)at.row * width, at.part, width, is_aligned, v);
}
EXPORT(embed_floats)

// Rows that `keep_rows` reads before it writes them.
constexpr uint32_t KEPT_AT_ONCE = 8;

// Moves row `kept[i]` to row i, in place: `kept` ascends, so row i comes from row i or a later one.
// A thread takes one quad of all rows, in order: what it writes over, it has read before.
KERNEL keep_rows(float *x, const uint32_t *kept, uint32_t num_kept, uint32_t width) {
    uint32_t quad = thread_index();
    if (quad >= quads_of(width)) return;
    bool is_aligned = are_aligned(width);
    for (uint32_t first = 0; first < num_kept; first += KEPT_AT_ONCE) {
        float4 v[KEPT_AT_ONCE];
        bool moves[KEPT_AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < KEPT_AT_ONCE; ++i) {
            uint32_t row = first + i, source = row < num_kept ? kept[row] : row;
            moves[i] = source != row;
            if (moves[i]) v[i] = load_quad(x + (size_t)source * width, quad, width, is_aligned);
        }
#pragma unroll
        for (uint32_t i = 0; i < KEPT_AT_ONCE; ++i) {
            if (moves[i]) store_quad(x + (size_t)(first + i) * width, quad, width, is_aligned, v[i]);
        }
    }
}
EXPORT(keep_rows)
