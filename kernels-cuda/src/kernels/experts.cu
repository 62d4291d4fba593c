// Mixtures of experts: which experts a row goes to, tables of rows sorted by expert, and what lies
// around their products.
//
// Nothing waits for the host: a grid follows from the number of rows and the shapes. Tables have
// room for the worst case, and what is left of them says that it is empty. The order of rows comes
// from counting, never from which thread was first.

#include "route.cuh"

// A warp routes a row. Shared: [experts] scores, [experts] keys, [chosen] choices.
KERNEL __launch_bounds__(32) route(RouteArgs a) {
    DYNAMIC_SHARED(shared);
    float *scores = (float *)shared;
    uint32_t *keys = (uint32_t *)(scores + a.num_experts);
    route_row(a, blockIdx.x, RouteScratch{scores, keys, keys + a.num_experts});
}
EXPORT(route)

// A block makes the tables of one expert: it counts everybody's rows, to know where its own begin.
// Shared: [experts] counts.
KERNEL __launch_bounds__(TABLE_THREADS, 1) expert_tables(TableArgs a) {
    DYNAMIC_SHARED(shared);
    __shared__ uint32_t scan[2 * TABLE_THREADS];
    uint32_t *counts = (uint32_t *)shared, expert = blockIdx.x, thread = threadIdx.x;
    for (uint32_t e = thread; e < a.num_experts; e += TABLE_THREADS) counts[e] = 0;
    __syncthreads();
    // Threads take runs of choices, so that ranks within an expert follow the order of rows.
    uint32_t run = (a.num_choices + TABLE_THREADS - 1) / TABLE_THREADS;
    uint32_t first = min(thread * run, a.num_choices), end = min(first + run, a.num_choices), own = 0;
    for (uint32_t i = first; i < end; ++i) {
        uint32_t e = a.experts[i];
        if (e == expert) ++own;
        if (e < expert) atomicAdd(&counts[e], 1u);
        if (e == NONE && expert == 0) a.slots[i] = NONE;
    }
    Scan ranks(own, scan);
    uint32_t rows_before = 0, tiles_before = 0;
    for (uint32_t e = thread; e < expert; e += TABLE_THREADS) {
        rows_before += round_up(counts[e], ROW_GROUP);
        tiles_before += num_tiles_of(a, counts[e]);
    }
    uint32_t first_row = Scan(rows_before, scan).total, first_tile = Scan(tiles_before, scan).total;
    uint32_t slot = first_row + ranks.before, count = ranks.total;
    for (uint32_t i = first; i < end; ++i) {
        if (a.experts[i] != expert) continue;
        a.slots[i] = slot;
        a.sorted_rows[slot++] = i / a.num_chosen;
    }
    write_expert(a, expert, first_row, first_tile, count, thread, TABLE_THREADS);
    if (expert + 1 == a.num_experts) clear_rest(a, first_row + round_up(count, ROW_GROUP), first_tile + num_tiles_of(a, count));
}
EXPORT(expert_tables)

// How many choices before `index` chose the same expert.
DEVICE uint32_t rank_of(const uint32_t *chosen, uint32_t index) {
    uint32_t rank = 0;
    for (uint32_t i = 0; i < index; ++i) rank += chosen[i] == chosen[index];
    return rank;
}

// Routes at most 8 rows with at most TABLE_THREADS choices, a warp each, and makes all tables, in
// one block. Shared: [warps] ([experts] scores, [experts] keys), [TABLE_THREADS] choices, [experts]
// counts, [experts] first rows.
KERNEL __launch_bounds__(TABLE_THREADS, 1) route_few(RouteArgs a, TableArgs tables) {
    DYNAMIC_SHARED(shared);
    __shared__ uint32_t scan[2 * TABLE_THREADS];
    uint32_t thread = threadIdx.x, warp = thread / 32, num_experts = a.num_experts;
    float *scores = (float *)shared + warp * 2 * num_experts;
    uint32_t *chosen = (uint32_t *)shared + TABLE_THREADS / 32 * 2 * num_experts;
    uint32_t *counts = chosen + TABLE_THREADS, *first_rows = counts + num_experts;
    for (uint32_t e = thread; e < num_experts; e += TABLE_THREADS) counts[e] = 0;
    if (warp * a.num_chosen < tables.num_choices) {
        route_row(a, warp, RouteScratch{scores, (uint32_t *)scores + num_experts, chosen + warp * a.num_chosen});
    }
    __syncthreads();
    uint32_t own = thread < tables.num_choices ? chosen[thread] : NONE;
    if (own != NONE) atomicAdd(&counts[own], 1u);
    __syncthreads();
    // Threads take runs of experts. Rows and tiles are few: both fit a word.
    uint32_t run = (num_experts + TABLE_THREADS - 1) / TABLE_THREADS, sums = 0;
    uint32_t first = min(thread * run, num_experts), end = min(first + run, num_experts);
    for (uint32_t e = first; e < end; ++e) sums += round_up(counts[e], ROW_GROUP) << 16 | num_tiles_of(tables, counts[e]);
    Scan all(sums, scan);
    uint32_t row = all.before >> 16, tile = all.before & 0xffff;
    for (uint32_t e = first; e < end; ++e) {
        first_rows[e] = row;
        write_expert(tables, e, row, tile, counts[e], 0, 1);
        row += round_up(counts[e], ROW_GROUP);
        tile += num_tiles_of(tables, counts[e]);
    }
    __syncthreads();
    if (thread < tables.num_choices) {
        uint32_t slot = own == NONE ? NONE : first_rows[own] + rank_of(chosen, thread);
        tables.slots[thread] = slot;
        if (slot != NONE) tables.sorted_rows[slot] = thread / a.num_chosen;
    }
    clear_rest(tables, all.total >> 16, all.total & 0xffff);
}
EXPORT(route_few)

struct GatherArgs {
    const uint8_t *tiles;
    const float *floats;
    uint8_t *out_tiles;
    float *out_floats;
    // [capacity]
    const uint32_t *sorted_rows;
    uint32_t capacity;
    uint32_t width;
    uint32_t row_stride;
    uint32_t out_row_stride;
};

// Rows of activations sorted by expert; a thread moves 8 values. The floats may be null.
KERNEL gather_rows(GatherArgs a) {
    Place at(padded_quads_of(a.width) / 2);
    uint32_t slot = at.row, chunk = at.part;
    if (slot >= a.capacity) return;
    uint32_t row = a.sorted_rows[slot];
    if (row == NONE) return;
    const uint4 *from = (const uint4 *)(a.tiles + chunk_offset(row, chunk, a.row_stride));
    *(uint4 *)(a.out_tiles + chunk_offset(slot, chunk, a.out_row_stride)) = *from;
    if (!a.floats) return;
    for (uint32_t i = 8 * chunk; i < min(8 * chunk + 8, a.width); ++i) {
        a.out_floats[(size_t)slot * a.width + i] = a.floats[(size_t)row * a.width + i];
    }
}
EXPORT(gather_rows)

struct CombineArgs {
    // [rows, width]
    float *out;
    // [capacity, width]
    const float *results;
    // [rows * chosen]
    const float *gates;
    const uint32_t *slots;
    uint32_t num_rows;
    uint32_t num_chosen;
    uint32_t width;
    float scale;
};

// out += scale * sum of gate * result over a row's experts, in the order of their scores; a thread
// has a quad.
KERNEL combine_experts(CombineArgs a) {
    Place at(quads_of(a.width));
    uint32_t row = at.row, quad = at.part;
    if (row >= a.num_rows) return;
    bool is_aligned = are_aligned(a.width);
    float *out = a.out + (size_t)row * a.width;
    float4 sum = load_quad(out, quad, a.width, is_aligned);
#pragma unroll 4
    for (uint32_t i = row * a.num_chosen; i < (row + 1) * a.num_chosen; ++i) {
        if (a.slots[i] == NONE) continue;
        float gate = a.scale * a.gates[i];
        float4 v = load_quad(a.results + (size_t)a.slots[i] * a.width, quad, a.width, is_aligned);
        sum = make_float4(fmaf(gate, v.x, sum.x), fmaf(gate, v.y, sum.y), fmaf(gate, v.z, sum.z), fmaf(gate, v.w, sum.w));
    }
    store_quad(out, quad, a.width, is_aligned, sum);
}
EXPORT(combine_experts)

// totals += counts
KERNEL count_experts(uint64_t *totals, const uint32_t *counts, uint32_t num_experts) {
    uint32_t expert = thread_index();
    if (expert < num_experts) totals[expert] += counts[expert];
}
EXPORT(count_experts)
