// Products for many rows on sm_90a: what a block does between its weights and its sums.
//
// A block has a producer warp, which copies weights and activations to a ring of stages in shared
// memory, and two warpgroups, which multiply. Weights are the left side of `wgmma` and come from
// registers, in fragment order; activations are the right side and stay in shared memory in the
// swizzle of `Activations`.
//
// The order of sums is that of the kernels for few rows, bit by bit: k is cut into parts by the
// weight's shape, each part is summed from zero in steps of 16, and parts are added in order.
#pragma once

#include "product_results.cuh"
#include "wide_weights.cuh"

#ifdef PONDER_HOPPER

constexpr uint32_t WARPGROUP = 128;
constexpr uint32_t NUM_CONSUMERS = 2 * WARPGROUP;
constexpr uint32_t NUM_CONSUMER_WARPS = NUM_CONSUMERS / 32;
constexpr uint32_t NUM_WIDE_THREADS = NUM_CONSUMERS + WARPGROUP;
// Of 65536 a block: 240 * 256 + 24 * 128.
constexpr int CONSUMER_REGISTERS = 240;
constexpr int PRODUCER_REGISTERS = 24;
// Where the ring begins: before it lie its barriers.
constexpr uint32_t RING_OFFSET = 1024;
constexpr uint32_t MAX_STAGES = 16;
// Named barriers.
constexpr uint32_t BARRIER_CONSUMERS = 1;
constexpr uint32_t BARRIER_WARPGROUP = 2;

// How a launch is cut, beside its `ProductArgs`. As in `product/wide.rs`.
struct WideLaunch {
    // Items before each job, and of all. A gated unit is one job of two matrices.
    uint32_t first_item[MAX_JOBS + 1];
    // Tiles of rows; those of a table may be empty.
    uint32_t num_tiles;
    uint32_t num_stages;
    // Of a warpgroup, behind the ring.
    uint32_t scratch_bytes;
};

// `TYPE` is that of the weights. `COLUMNS` is the width of `wgmma`. Where the tile is flat, both
// warpgroups have the same 64 features and half of its rows each; else each has 64 features of its
// own and all of the rows. Where it is spread, each part of k is a block's work of its own, and the
// block that comes last adds the parts; else one block does them all.
template <int TYPE, int COLUMNS_, bool IS_FLAT_, bool IS_SPREAD_> struct WideTile {
    typedef WideWeights<TYPE> Source;
    static constexpr uint32_t COLUMNS = COLUMNS_;
    static constexpr bool IS_FLAT = IS_FLAT_, IS_SPREAD = IS_SPREAD_;
    static constexpr uint32_t NUM_SUMS = COLUMNS / 2;
    static constexpr uint32_t NUM_ROWS = IS_FLAT ? 2 * COLUMNS : COLUMNS;
    static constexpr uint32_t NUM_M_BLOCKS = IS_FLAT ? 1 : 2;
    static constexpr uint32_t B_BYTES = NUM_ROWS * LINE_BYTES;
    static constexpr uint32_t STAGE_BYTES = B_BYTES + (NUM_M_BLOCKS * Source::STAGE_BYTES + ATOM_BYTES - 1) / ATOM_BYTES * ATOM_BYTES;
    // Totals over parts lie in registers while there are any, then in shared memory.
    static constexpr uint32_t REGISTER_TOTALS = NUM_SUMS < 64 ? NUM_SUMS : NUM_SUMS == 64 ? 56 : TYPE == BF16 ? 48 : 32;
    static constexpr uint32_t SHARED_TOTALS = NUM_SUMS - REGISTER_TOTALS;
};

// What a block works on at a time.
struct WideItem {
    // Of all items, and of the tile's sums whatever their part.
    uint32_t index, tile;
    uint32_t job, m_block, expert;
    // The row of column 0, a multiple of 8, and how many columns are rows to compute.
    uint32_t first_row, num_rows;
    uint32_t first_part, num_parts;
};

// Items that follow each other read the same weights, then the next part of the same features.
template <class TILE>
DEVICE WideItem wide_item(const ProductArgs &args, const WideLaunch &launch, uint32_t index) {
    WideItem item;
    item.index = index;
    item.job = 0;
    while (item.job + 1 < MAX_JOBS && index >= launch.first_item[item.job + 1]) item.job++;
    uint32_t first = launch.first_item[item.job], all_parts = args.jobs[item.job].num_parts;
    uint32_t parts = TILE::IS_SPREAD ? all_parts : 1;
    uint32_t column = (index - first) % launch.num_tiles, rest = (index - first) / launch.num_tiles;
    item.first_part = rest % parts;
    item.num_parts = TILE::IS_SPREAD ? 1 : all_parts;
    // One number for each tile, below that of items.
    item.tile = first + rest / parts * launch.num_tiles + column;
    item.m_block = rest / parts * (args.num_summed == 2 ? 1 : TILE::NUM_M_BLOCKS);
    item.expert = 0;
    item.first_row = column * TILE::NUM_ROWS;
    item.num_rows = args.num_rows - item.first_row;
    if (args.row_tiles) {
        uint4 tile = args.row_tiles[column];
        item.expert = tile.x;
        item.first_row = tile.y;
        item.num_rows = tile.z;
    }
    item.num_rows = min(item.num_rows, TILE::NUM_ROWS);
    return item;
}

// Blocks of 64 inputs before a part.
DEVICE uint32_t part_begin(const ProductArgs &args, uint32_t job, uint32_t part) { return min(part * args.jobs[job].part_blocks, args.k_blocks); }

// Stages that the producer fills and the consumers empty, in turn.
struct WideRing {
    uint64_t *full, *empty;
    uint8_t *stages;
    uint32_t num_stages, stage, parity;

    METHOD WideRing(uint8_t *shared, uint32_t num_stages)
        : full((uint64_t *)shared), empty((uint64_t *)shared + MAX_STAGES), stages(shared + RING_OFFSET), num_stages(num_stages), stage(0), parity(0) {}
    METHOD void start() {
        for (uint32_t i = 0; i < num_stages; i++) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, NUM_CONSUMER_WARPS);
        }
        mbarrier_fence_init();
        // Bulk copies count at them by another way than this thread's writes went.
        fence_async_shared();
    }
    METHOD void advance() {
        if (++stage == num_stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// One thread: copies what the consumers will ask for, as far ahead as there are stages.
template <class TILE> DEVICE void produce(const ProductArgs &args, const WideLaunch &launch, WideRing ring) {
    typedef typename TILE::Source Source;
    const bool is_pair = args.num_summed == 2;
    for (uint32_t index = blockIdx.x; index < launch.first_item[MAX_JOBS]; index += gridDim.x) {
        WideItem item = wide_item<TILE>(args, launch, index);
        if (item.num_rows == 0) continue;
        const ProductJob &job = args.jobs[item.job], &second_job = is_pair ? args.jobs[1] : job;
        // Not past the rows that there are: what lies behind them in the stage stays, and is never
        // stored.
        uint32_t b_bytes = min(TILE::NUM_ROWS, args.row_stride - item.first_row) * LINE_BYTES;
        const uint8_t *b_source = args.x + (uint64_t)item.first_row * LINE_BYTES;
        // The block of features of each warpgroup. The last tile may lack the second.
        uint32_t second_block = is_pair ? item.m_block : item.m_block + 1;
        bool has_second = TILE::NUM_M_BLOCKS == 2 && second_block * M_BLOCK < job.out_features;
        const uint8_t *first = job.weights + item.expert * job.expert_bytes;
        const uint8_t *second = second_job.weights + item.expert * second_job.expert_bytes;
        uint32_t end = part_begin(args, item.job, item.first_part + item.num_parts);
        for (uint32_t block = part_begin(args, item.job, item.first_part); block < end; block++) {
            mbarrier_wait(ring.empty + ring.stage, ring.parity ^ 1);
            uint64_t *full = ring.full + ring.stage;
            uint8_t *b = ring.stages + ring.stage * TILE::STAGE_BYTES, *a = b + TILE::B_BYTES;
            mbarrier_arrive_expect(full, b_bytes + (has_second ? 2 : 1) * Source::copied_bytes(block));
            Source::copy(a, first, item.m_block, block, args.k_blocks, full);
            if (has_second) Source::copy(a + Source::STAGE_BYTES, second, second_block, block, args.k_blocks, full);
            bulk_copy(b, b_source + (uint64_t)block * args.row_stride * LINE_BYTES, b_bytes, full);
            ring.advance();
        }
    }
}

// Where a warpgroup finds its weights and its rows in a stage.
struct WideOffsets {
    uint32_t a, b;
};

// The fragments are in their registers from here on. Before a fence: none is computed behind it.
// After the wait for products of them: nothing else was put into their registers before.
DEVICE void hold_fragments(uint32_t (&a)[HALF_STEPS][4]) {
#pragma unroll
    for (int i = 0; i < HALF_STEPS; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) hold(a[i][j]);
    }
}

// Multiplies the next stage. The sums begin with the first.
template <class TILE, bool IS_FIRST> DEVICE void multiply_stage(
    float (&sums)[TILE::NUM_SUMS], uint32_t (&a)[2][HALF_STEPS][4], typename TILE::Source &source, WideRing &ring,
    uint32_t &previous, uint32_t block, WideOffsets offsets) {
    const uint32_t thread = threadIdx.x % WARPGROUP;
    mbarrier_wait(ring.full + ring.stage, ring.parity);
    const uint8_t *stage = ring.stages + ring.stage * TILE::STAGE_BYTES;
    const uint64_t b = wgmma_descriptor(stage + offsets.b);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        // Free since the wait of the same half in the stage before.
        source.load(a[half], stage + TILE::B_BYTES + offsets.a, block, half, thread);
        hold_fragments(a[half]);
        wgmma_fence();
#pragma unroll
        for (uint32_t i = 0; i < HALF_STEPS; i++) {
            uint32_t step = half * HALF_STEPS + i;
            if (IS_FIRST && step == 0) wgmma_bf16_first(sums, a[half][i], b);
            else wgmma_bf16(sums, a[half][i], b + step * DESCRIPTOR_K_STEP);
        }
        wgmma_commit();
        // The half before this one is done; this one keeps the tensor cores busy meanwhile.
        wgmma_wait<1>();
        if (!IS_FIRST || half == 1) hold_fragments(a[1 - half]);
        if (half == 0 && !IS_FIRST && thread % 32 == 0) mbarrier_arrive(ring.empty + previous);
    }
    previous = ring.stage;
    ring.advance();
}

// One warpgroup: `sums` = weights * activations over the blocks of one part, which has some.
template <class TILE> DEVICE void sum_part(
    float (&sums)[TILE::NUM_SUMS], uint32_t (&a)[2][HALF_STEPS][4], WideRing &ring, uint32_t begin, uint32_t end, WideOffsets offsets) {
    typename TILE::Source source;
    uint32_t previous;
    multiply_stage<TILE, true>(sums, a, source, ring, previous, begin, offsets);
#pragma unroll 1
    for (uint32_t block = begin + 1; block < end; block++) multiply_stage<TILE, false>(sums, a, source, ring, previous, block, offsets);
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + previous);
}

// Adds a part to the totals; after the last one `sums` are the totals.
template <class TILE> DEVICE void add_part(
    float (&sums)[TILE::NUM_SUMS], float (&totals)[TILE::REGISTER_TOTALS], float *shared_totals, bool is_first, bool is_last) {
    float *mine = shared_totals + threadIdx.x % WARPGROUP;
    if (is_first && is_last) return;
    if (is_first) {
#pragma unroll
        for (int i = 0; i < (int)TILE::REGISTER_TOTALS; i++) totals[i] = sums[i];
#pragma unroll
        for (int i = 0; i < (int)TILE::SHARED_TOTALS; i++) mine[i * WARPGROUP] = sums[TILE::REGISTER_TOTALS + i];
    } else if (is_last) {
#pragma unroll
        for (int i = 0; i < (int)TILE::REGISTER_TOTALS; i++) sums[i] = totals[i] + sums[i];
#pragma unroll
        for (int i = 0; i < (int)TILE::SHARED_TOTALS; i++) sums[TILE::REGISTER_TOTALS + i] = mine[i * WARPGROUP] + sums[TILE::REGISTER_TOTALS + i];
    } else {
#pragma unroll
        for (int i = 0; i < (int)TILE::REGISTER_TOTALS; i++) totals[i] += sums[i];
#pragma unroll
        for (int i = 0; i < (int)TILE::SHARED_TOTALS; i++) mine[i * WARPGROUP] += sums[TILE::REGISTER_TOTALS + i];
    }
}

// Leaves a part for the block that comes last to the tile. In that block `sums` are the totals, and
// true is returned.
template <class TILE>
DEVICE bool gather_parts(
    float (&sums)[TILE::NUM_SUMS], const ProductArgs &args, const WideLaunch &launch, const WideItem &item, uint32_t *is_last) {
    const uint32_t num_parts = args.jobs[item.job].num_parts;
    // From one part of the tile to the next.
    const uint64_t item_sums = (uint64_t)TILE::NUM_SUMS * NUM_CONSUMERS, stride = item_sums * launch.num_tiles;
    float *mine = (float *)args.workspace + item.index * item_sums + threadIdx.x;
#pragma unroll
    for (int i = 0; i < (int)TILE::NUM_SUMS; i++) __stcg(mine + i * NUM_CONSUMERS, sums[i]);
    __threadfence();
    named_barrier_sync(BARRIER_CONSUMERS, NUM_CONSUMERS);
    if (threadIdx.x == 0) {
        *is_last = count_arrival(args.counters + item.tile) + 1 == num_parts;
        // For the next launch.
        if (*is_last) args.counters[item.tile] = 0;
    }
    named_barrier_sync(BARRIER_CONSUMERS, NUM_CONSUMERS);
    bool result = *is_last != 0;
    // Nobody overwrites the answer before all have read it.
    named_barrier_sync(BARRIER_CONSUMERS, NUM_CONSUMERS);
    if (!result) return false;
    const float *part = mine - item.first_part * stride;
#pragma unroll
    for (int i = 0; i < (int)TILE::NUM_SUMS; i++) sums[i] = __ldcg(part + i * NUM_CONSUMERS);
#pragma unroll 1
    for (uint32_t p = 1; p < num_parts; p++) {
        part += stride;
#pragma unroll
        for (int i = 0; i < (int)TILE::NUM_SUMS; i++) sums[i] += __ldcg(part + i * NUM_CONSUMERS);
    }
    return true;
}

#endif
