// out[row][m] = sum over k of x[row][k] * w[m][k], for up to N rows at once, by `mma.sync`.
//
// A block takes a unit: 64 outputs (128 where N is large), one part of the inputs, one tile of
// rows. Weights and activations come through a ring of stages in shared memory, some k blocks each;
// the block's warps take 16 outputs each. Sums of a part begin with zero and go along k in steps of
// 16; parts are added in order. So a row's bits depend on its inputs and on how the weight's shape
// is split alone: not on N, the ring, or who adds the parts:
// - apart: each unit leaves its sums in the workspace; who arrives last among those of an output
//   adds them up;
// - serially: a unit goes through all parts, and adds them up in shared memory.
#pragma once

#include "dequant.cuh"
#include "product_results.cuh"

template <int TYPE, int N> struct ProductShape {
    typedef WeightLayout<TYPE> Layout;
    static constexpr int WARPS = N <= 16 ? 4 : 8, THREADS = WARPS * 32, M_BLOCKS = WARPS / 4;
    // K blocks of a stage, and stages. `product/plan.rs` counts the same bytes.
    static constexpr bool IS_WIDE = Layout::BITS >= 8;
    static constexpr int STAGE_BLOCKS = (IS_WIDE ? 2 : 4) / (N <= 16 ? 1 : 2);
    static constexpr int STAGES = Layout::BITS == 8 ? 4 : 3;
    static constexpr int LINE_BYTES = K_BLOCK * 2, X_BLOCK_BYTES = N * LINE_BYTES;
    static constexpr int X_BYTES = STAGE_BLOCKS * X_BLOCK_BYTES;
    static constexpr int WEIGHT_BYTES = STAGE_BLOCKS * Layout::BLOCK_BYTES + Layout::HEADER_BYTES;
    static constexpr int STAGE_BYTES = X_BYTES + M_BLOCKS * WEIGHT_BYTES;
    // Of all results of a matrix; they lie behind the ring where parts are added serially.
    static constexpr int TOTALS = N / 8 * THREADS, TOTALS_AT = STAGES * STAGE_BYTES;
};

// Fills the ring, stage after stage. A thread copies the same pieces of every stage, so that it
// only moves on.
template <int TYPE, int N> struct ProductStream {
    typedef ProductShape<TYPE, N> Shape;
    typedef WeightLayout<TYPE> Layout;
    static constexpr uint32_t PIECE = 16, ROUND = Shape::THREADS * PIECE;
    // Whether a stage is whole super-blocks, whose headers lie right before their blocks.
    static constexpr bool HAS_HEADERS = Layout::IS_SUPER && Shape::STAGE_BLOCKS == SUPER_BLOCKS;
    static constexpr uint32_t RUN = Shape::STAGE_BLOCKS * Layout::BLOCK_BYTES + (HAS_HEADERS ? Layout::HEADER_BYTES : 0);
    // Of a k block of activations: either a round takes several blocks, or a block takes several
    // rounds.
    static constexpr uint32_t ROUND_BLOCKS = (ROUND + Shape::X_BLOCK_BYTES - 1) / Shape::X_BLOCK_BYTES;
    static constexpr uint32_t BLOCK_ROUNDS = (Shape::X_BLOCK_BYTES + ROUND - 1) / ROUND;

    // This thread's first piece of the next stage.
    const uint8_t *weights, *x;
    uint64_t x_stride;
    uint32_t m_block_bytes, k_blocks;
    bool has_second_m_block;
    // The next stage's first k block; how many are left from this thread's first piece of
    // activations on (none where its line lies past the last row), and bytes of lines from there
    // on.
    uint32_t block;
    int32_t x_blocks, x_bytes;

    // `weights`, `x`: of the unit's first output and row.
    METHOD void begin(const uint8_t *unit_weights, const uint8_t *unit_x, uint32_t num_rows, uint32_t first_block) {
        const uint32_t at = threadIdx.x * PIECE, ahead = at / Shape::X_BLOCK_BYTES, within = at % Shape::X_BLOCK_BYTES;
        block = first_block;
        weights = unit_weights + Layout::offset_of(first_block) - (HAS_HEADERS ? Layout::HEADER_BYTES : 0) + at;
        x = unit_x + (first_block + ahead) * x_stride + within;
        x_bytes = (int32_t)(num_rows * Shape::LINE_BYTES) - (int32_t)within;
        x_blocks = x_bytes > 0 ? (int32_t)(k_blocks - first_block) - (int32_t)ahead : 0;
        hold(x_bytes);
        hold(x_blocks);
    }

    // Copies a stage and moves on to the next. `target`: this thread's first piece in the slot.
    METHOD void copy(uint8_t *target) {
        copy_weights(target + Shape::X_BYTES);
#pragma unroll
        for (uint32_t i = 0; i < Shape::X_BYTES / ROUND; i++) {
            const uint32_t ahead = i / BLOCK_ROUNDS * ROUND_BLOCKS, within = i % BLOCK_ROUNDS * ROUND;
            // Lines past the last row stay what they are: they are columns of their own in every
            // product.
            if ((int32_t)ahead < x_blocks && (within == 0 || (int32_t)within < x_bytes))
                copy_async_16(target + i * ROUND, x + ahead * x_stride + within);
        }
        block += Shape::STAGE_BLOCKS;
        x_blocks -= Shape::STAGE_BLOCKS;
        x += Shape::STAGE_BLOCKS * x_stride;
        weights += Shape::STAGE_BLOCKS * Layout::BLOCK_BYTES;
        if (Layout::IS_SUPER && (HAS_HEADERS || block % SUPER_BLOCKS == 0)) weights += Layout::HEADER_BYTES;
    }

    // Stages are copied whole: what lies past the last k block is there, and is not used
    // (`product/matrix.rs` sees to it).
    METHOD void copy_weights(uint8_t *target) const {
#pragma unroll
        for (uint32_t m_block = 0; m_block < Shape::M_BLOCKS; m_block++) {
            if (m_block == 1 && !has_second_m_block) break;
            const uint8_t *source = weights + (m_block ? m_block_bytes : 0);
            uint8_t *to = target + m_block * Shape::WEIGHT_BYTES;
            if constexpr (Layout::IS_SUPER && !HAS_HEADERS) {
                if (threadIdx.x < Layout::HEADER_BYTES / PIECE && block % SUPER_BLOCKS == 0) copy_async_16(to, source - Layout::HEADER_BYTES);
                to += Layout::HEADER_BYTES;
            }
#pragma unroll
            for (uint32_t i = 0; i < RUN / ROUND; i++) copy_async_16(to + i * ROUND, source + i * ROUND);
            constexpr uint32_t REST = RUN % ROUND, REST_AT = RUN - REST;
            if constexpr (REST != 0)
                if (threadIdx.x < REST / PIECE) copy_async_16(to + REST_AT, source + REST_AT);
        }
    }
};

// Adds one step of 16 inputs to the sums. `x` is a block's lines; `pair` keeps two steps' fragments
// where N is 8.
template <int N> DEVICE void multiply_step(float (&sum)[N / 8][4], const uint32_t (&a)[4], const uint8_t *x, int step, uint32_t lane, uint32_t (&pair)[4]) {
    const uint32_t line = lane % 8;
    if constexpr (N == 8) {
        if (step % 2 == 0) load_matrices(pair, x + line * 128 + ((2 * step + lane / 8) ^ line) * 16);
        uint32_t b[2] = {pair[step % 2 * 2], pair[step % 2 * 2 + 1]};
        mma_bf16(sum[0], a, b);
    } else {
#pragma unroll
        for (int columns = 0; columns < N / 16; columns++) {
            uint32_t row = columns * 16 + lane / 16 * 8 + line, b[4];
            load_matrices(b, x + row * 128 + ((2 * step + lane / 8 % 2) ^ line) * 16);
            uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma_bf16(sum[2 * columns], a, first);
            mma_bf16(sum[2 * columns + 1], a, second);
        }
    }
}

// Adds one k block to a warp's sums. `packed` and `x`: of the stage.
template <int TYPE, int N>
DEVICE void multiply_block(Weights<TYPE> &weights, float (&sum)[N / 8][4], const uint8_t *packed, const uint8_t *x, uint32_t block, uint32_t thread) {
    typedef WeightLayout<TYPE> Layout;
    weights.read_block(packed + Layout::HEADER_BYTES + block * Layout::BLOCK_BYTES, thread);
    uint32_t pair[4];
#pragma unroll
    for (int step = 0; step < K_STEPS; step++) {
        uint32_t a[4];
        weights.fragment(step, a);
        multiply_step<N>(sum, a, x + block * ProductShape<TYPE, N>::X_BLOCK_BYTES, step, thread % 32, pair);
    }
}

// Adds a stage's k blocks, of which the first is `first`. `slot`: the stage's activations;
// `packed`: the warp's outputs.
template <int TYPE, int N>
DEVICE void multiply_stage(Weights<TYPE> &weights, float (&sum)[N / 8][4], const uint8_t *slot, const uint8_t *packed, uint32_t first, uint32_t blocks, uint32_t thread) {
    typedef ProductShape<TYPE, N> Shape;
    constexpr bool IS_SUPER = WeightLayout<TYPE>::IS_SUPER;
    if (IS_SUPER && (Shape::STAGE_BLOCKS == SUPER_BLOCKS || first % SUPER_BLOCKS == 0)) weights.read_header(packed, thread);
    // Stages of super-blocks are never cut short.
    if (IS_SUPER || blocks >= Shape::STAGE_BLOCKS) {
#pragma unroll
        for (uint32_t block = 0; block < Shape::STAGE_BLOCKS; block++) multiply_block<TYPE, N>(weights, sum, packed, slot, block, thread);
    } else {
#pragma unroll 1
        for (uint32_t block = 0; block < blocks; block++) multiply_block<TYPE, N>(weights, sum, packed, slot, block, thread);
    }
}

template <int TYPE, int N> DEVICE void product(const ProductArgs &args, const ProductUnit &unit) {
    typedef ProductShape<TYPE, N> Shape;
    typedef WeightLayout<TYPE> Layout;
    DYNAMIC_SHARED(shared);
    if (unit.num_rows == 0) return;
    const ProductJob &job = args.jobs[unit.job];
    const uint32_t k_blocks = args.k_blocks, m_blocks = (job.out_features + M_BLOCK - 1) / M_BLOCK - unit.first_m_block;
    // Of the four warps that share a block of outputs.
    uint32_t thread = threadIdx.x % 128, m_block = threadIdx.x / 128, packed_at = Shape::X_BYTES + m_block * Shape::WEIGHT_BYTES;
    uint32_t has_outputs = m_block < m_blocks;
    hold(thread);
    hold(packed_at);
    hold(has_outputs);
    // Parts are whole super-blocks, and so whole stages.
    uint32_t first = args.is_serial ? 0 : unit.part * job.part_blocks;
    const uint32_t end = args.is_serial ? k_blocks : min(k_blocks, first + job.part_blocks);

    ProductStream<TYPE, N> stream;
    stream.k_blocks = k_blocks;
    stream.m_block_bytes = Layout::m_block_bytes(k_blocks);
    stream.has_second_m_block = m_blocks > 1;
    stream.x_stride = (uint64_t)args.row_stride * Shape::LINE_BYTES;
    const uint8_t *x = args.x + (uint64_t)unit.first_row * Shape::LINE_BYTES;
    Weights<TYPE> weights;
    float sum[N / 8][4];
    ProductTotals<N, Shape::THREADS> totals{(float4 *)(shared + Shape::TOTALS_AT)};
    const uint32_t num_matrices = args.is_serial ? args.num_summed : 1;
#pragma unroll 1
    for (uint32_t matrix = 0; matrix < num_matrices; matrix++) {
        const ProductJob &summed = args.jobs[matrix ? matrix : unit.job];
        stream.begin(summed.weights + unit.expert * summed.expert_bytes + (uint64_t)unit.first_m_block * stream.m_block_bytes, x, unit.num_rows, first);
        // Nobody reads the ring of the matrix before any more.
        if (matrix) __syncthreads();
        uint8_t *const pieces = shared + threadIdx.x * ProductStream<TYPE, N>::PIECE;
        for (uint32_t i = 0; i < Shape::STAGES - 1; i++) {
            if (stream.block < end) stream.copy(pieces + i * Shape::STAGE_BYTES);
            copy_async_commit();
        }
        set_to_zero<N>(sum);
        // Where the stage at hand lies, and the next to fill; where a part ends that is added here.
        uint32_t slot = 0, next = (Shape::STAGES - 1) * Shape::STAGE_BYTES, part_end = args.is_serial ? min(job.part_blocks, k_blocks) : 0xffffffffu;
        for (uint32_t block = first; block < end;) {
            copy_async_wait<Shape::STAGES - 2>();
            // The stage has come for all threads, and none still reads the one before it, whose
            // slot is filled next.
            __syncthreads();
            if (stream.block < end) stream.copy(pieces + next);
            copy_async_commit();
            if (has_outputs) multiply_stage<TYPE, N>(weights, sum, shared + slot, shared + slot + packed_at, block, end - block, thread);
            next = slot;
            slot = slot == (Shape::STAGES - 1) * Shape::STAGE_BYTES ? 0 : slot + Shape::STAGE_BYTES;
            block += Shape::STAGE_BLOCKS;
            if (block >= part_end) {
                totals.add(sum, matrix, part_end <= job.part_blocks);
                part_end = min(part_end + job.part_blocks, k_blocks);
            }
        }
    }
    finish_product<N, Shape::THREADS>(args, unit, sum, totals, shared, has_outputs);
}

// Blocks that a multiprocessor should hold at least, by their registers. Where its shared memory
// has room for one large block alone, that one may have them all.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define LARGE_BLOCKS 1
#else
#define LARGE_BLOCKS 2
#endif

#define PRODUCT(type, TYPE, N, MIN_BLOCKS) \
    KERNEL __launch_bounds__(ProductShape<TYPE, N>::THREADS, MIN_BLOCKS) product_##type##_##N(const ProductArgs args) { \
        product<TYPE, N>(args, ProductUnit(args, ProductShape<TYPE, N>::M_BLOCKS)); \
    } \
    EXPORT(product_##type##_##N)
// Matrices of two types in one launch, as queries, keys and values often are.
#define PRODUCT_OF_TWO(types, FIRST, SECOND, N, MIN_BLOCKS) \
    KERNEL __launch_bounds__(ProductShape<FIRST, N>::THREADS, MIN_BLOCKS) product_##types##_##N(const ProductArgs args) { \
        const ProductUnit unit(args, ProductShape<FIRST, N>::M_BLOCKS); \
        if (args.jobs[unit.job].weight_type == FIRST) product<FIRST, N>(args, unit); \
        else product<SECOND, N>(args, unit); \
    } \
    EXPORT(product_##types##_##N)
#define PRODUCTS(type, TYPE) \
    PRODUCT(type, TYPE, 8, 5) \
    PRODUCT(type, TYPE, 16, 4) \
    PRODUCT(type, TYPE, 32, 2) \
    PRODUCT(type, TYPE, 64, LARGE_BLOCKS)
