// Which experts rows go to, and tables of the rows sorted by expert.
#pragma once

#include "rows.cuh"
#include "activation.cuh"

// Rows of an expert begin at multiples of this, as the tiles of activations do.
constexpr uint32_t ROW_GROUP = 8;
constexpr uint32_t SIGMOID = 1;
constexpr uint32_t BEST_TWO = 1;
// Threads of a block that makes tables.
constexpr uint32_t TABLE_THREADS = 256;

struct RouteArgs {
    // [rows, experts]
    const float *logits;
    // [experts], counts in the choice alone; or null.
    const float *bias;
    // How many rows there really are, the others go nowhere; all where it is null.
    const uint32_t *num_live_rows;
    // [rows, chosen], highest score first.
    uint32_t *experts;
    float *gates;
    uint32_t num_experts;
    uint32_t num_chosen;
    // 0: softmax; 1: sigmoid.
    uint32_t scoring;
    uint32_t normalises;
    float scale;
    // 0: no groups.
    uint32_t num_groups;
    uint32_t num_chosen_groups;
    // 0: a group is worth its best expert; 1: the sum of its best two.
    uint32_t group_score;
};

// Larger for larger scores. 0 is kept for what cannot be chosen, 1 for what is not a number.
DEVICE uint32_t key_of(float score) {
    if (score != score) return 1;
    // No sum of scores and biases is a negative zero, whose key would be another.
    uint32_t bits = __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A lane's best so far; of equal ones the first.
struct Best {
    uint32_t key, index;

    Best() : key(0), index(NONE) {}
    void consider(uint32_t other, uint32_t other_index) {
        if (other > key) {
            key = other;
            index = other_index;
        }
    }
    // Of all lanes, the lowest index among equals; `NONE` when there is nothing to choose.
    uint32_t of_warp() const {
        uint32_t highest = reduce_max(key);
        return reduce_min(highest > 0 && key == highest ? index : NONE);
    }
};

// Scores of a row's experts; a lane has every 32nd.
DEVICE void score_row(const RouteArgs &a, const float *logits, float *scores) {
    uint32_t lane = threadIdx.x % 32;
    if (a.scoring == SIGMOID) {
        for (uint32_t e = lane; e < a.num_experts; e += 32) scores[e] = sigmoid_of(logits[e]);
        return;
    }
    float highest = -INFINITY, sum = 0.0f;
    for (uint32_t e = lane; e < a.num_experts; e += 32) highest = fmaxf(highest, logits[e]);
    for (int mask = 16; mask > 0; mask /= 2) highest = fmaxf(highest, shuffle_xor(highest, mask));
    for (uint32_t e = lane; e < a.num_experts; e += 32) {
        scores[e] = expf(logits[e] - highest);
        // Not fused with what the exponential ends with: the sum is the same wherever this stands.
        sum = __fadd_rn(sum, scores[e]);
    }
    sum = warp_sum(sum);
    for (uint32_t e = lane; e < a.num_experts; e += 32) scores[e] /= sum;
}

// What a group of experts is worth.
DEVICE uint32_t key_of_group(const RouteArgs &a, const float *scores, uint32_t group) {
    uint32_t len = a.num_experts / a.num_groups;
    float best = -INFINITY, second = -INFINITY;
    for (uint32_t e = group * len; e < (group + 1) * len; ++e) {
        float score = a.bias ? scores[e] + a.bias[e] : scores[e];
        if (score > best) {
            second = best;
            best = score;
        } else if (score > second) {
            second = score;
        }
    }
    return key_of(a.group_score == BEST_TWO ? best + second : best);
}

// A bit for every group (at most 64) that experts may be chosen from.
DEVICE uint64_t allowed_groups(const RouteArgs &a, const float *scores) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t low = lane < a.num_groups ? key_of_group(a, scores, lane) : 0;
    uint32_t high = lane + 32 < a.num_groups ? key_of_group(a, scores, lane + 32) : 0;
    uint64_t allowed = 0;
    for (uint32_t i = 0; i < a.num_chosen_groups; ++i) {
        Best best;
        best.consider(low, lane);
        best.consider(high, lane + 32);
        uint32_t group = best.of_warp();
        if (group == NONE) break;
        allowed |= 1ull << group;
        if (group == lane) low = 0;
        if (group == lane + 32) high = 0;
    }
    return allowed;
}

// Where a warp keeps a row's scores and keys (of all experts) and choices.
struct RouteScratch {
    float *scores;
    uint32_t *keys;
    uint32_t *chosen;
};

DEVICE uint32_t key_of_expert(const RouteArgs &a, const float *scores, uint64_t allowed, uint32_t expert) {
    uint32_t group = a.num_groups ? expert / (a.num_experts / a.num_groups) : 0;
    if (!(allowed >> group & 1)) return 0;
    return key_of(a.bias ? scores[expert] + a.bias[expert] : scores[expert]);
}

// A warp routes a row; the choices are left in the scratch, `NONE` for a row that is not there.
DEVICE void route_row(const RouteArgs &a, uint32_t row, RouteScratch at) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t *experts = a.experts + (size_t)row * a.num_chosen;
    float *gates = a.gates + (size_t)row * a.num_chosen;
    if (a.num_live_rows && row >= *a.num_live_rows) {
        for (uint32_t rank = lane; rank < a.num_chosen; rank += 32) {
            at.chosen[rank] = experts[rank] = NONE;
            gates[rank] = 0.0f;
        }
        return;
    }
    score_row(a, a.logits + (size_t)row * a.num_experts, at.scores);
    __syncwarp();
    uint64_t allowed = a.num_groups ? allowed_groups(a, at.scores) : ~0ull;
    Best best;
    for (uint32_t e = lane; e < a.num_experts; e += 32) {
        at.keys[e] = key_of_expert(a, at.scores, allowed, e);
        best.consider(at.keys[e], e);
    }
    float sum = 0.0f;
    for (uint32_t rank = 0; rank < a.num_chosen; ++rank) {
        uint32_t expert = best.of_warp();
        // The host refuses to choose more experts than may be chosen.
        if (expert == NONE) expert = rank;
        sum = __fadd_rn(sum, at.scores[expert]);
        if (lane == 0) at.chosen[rank] = expert;
        if (lane == expert % 32) {
            // Its own keys, which no other lane reads.
            at.keys[expert] = 0;
            best = Best();
            for (uint32_t e = lane; e < a.num_experts; e += 32) best.consider(at.keys[e], e);
        }
    }
    __syncwarp();
    float factor = a.normalises ? __fdiv_rn(a.scale, sum) : a.scale;
    for (uint32_t rank = lane; rank < a.num_chosen; rank += 32) {
        experts[rank] = at.chosen[rank];
        gates[rank] = at.scores[at.chosen[rank]] * factor;
    }
}

struct TableArgs {
    // [rows * chosen]
    const uint32_t *experts;
    // [experts]: rows of each.
    uint32_t *counts;
    // [capacity]: the rows sorted by expert; `NONE` where padding is.
    uint32_t *sorted_rows;
    // [rows * chosen]: where each choice lies among them; `NONE` for rows that go nowhere.
    uint32_t *slots;
    // [max_tiles]: expert, first of the sorted rows, rows (0: none), 0.
    uint4 *tiles;
    // [experts]: `counts` is added to them; or null.
    uint64_t *totals;
    uint32_t num_choices;
    uint32_t num_chosen;
    uint32_t num_experts;
    uint32_t capacity;
    uint32_t tile_height;
    uint32_t max_tiles;
};

// Sums before a thread's own and over the whole block, of TABLE_THREADS values.
struct Scan {
    uint32_t before, total;

    Scan(uint32_t own, uint32_t *shared) {
        uint32_t *from = shared, *to = shared + TABLE_THREADS;
        from[threadIdx.x] = own;
        __syncthreads();
        for (uint32_t step = 1; step < TABLE_THREADS; step *= 2) {
            to[threadIdx.x] = from[threadIdx.x] + (threadIdx.x >= step ? from[threadIdx.x - step] : 0);
            __syncthreads();
            uint32_t *swapped = from;
            from = to;
            to = swapped;
        }
        before = from[threadIdx.x] - own;
        total = from[TABLE_THREADS - 1];
        // The next one may write over it.
        __syncthreads();
    }
};

DEVICE uint32_t round_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

DEVICE uint32_t num_tiles_of(const TableArgs &a, uint32_t count) { return (count + a.tile_height - 1) / a.tile_height; }

// What the tables say of one expert, by `num_threads` threads of which this is number `thread`.
DEVICE void write_expert(const TableArgs &a, uint32_t expert, uint32_t first_row, uint32_t first_tile, uint32_t count, uint32_t thread,
    uint32_t num_threads) {
    for (uint32_t i = thread; i < num_tiles_of(a, count); i += num_threads) {
        uint32_t done = i * a.tile_height;
        a.tiles[first_tile + i] = make_uint4(expert, first_row + done, min(a.tile_height, count - done), 0);
    }
    uint32_t end = first_row + round_up(count, ROW_GROUP);
    for (uint32_t i = first_row + count + thread; i < end; i += num_threads) a.sorted_rows[i] = NONE;
    if (thread > 0) return;
    a.counts[expert] = count;
    if (a.totals) a.totals[expert] += count;
}

// What is left of the tables is empty.
DEVICE void clear_rest(const TableArgs &a, uint32_t num_rows, uint32_t num_tiles) {
    for (uint32_t i = num_rows + threadIdx.x; i < a.capacity; i += TABLE_THREADS) a.sorted_rows[i] = NONE;
    for (uint32_t i = num_tiles + threadIdx.x; i < a.max_tiles; i += TABLE_THREADS) a.tiles[i] = make_uint4(0, 0, 0, 0);
}
