// The likeliest tokens of a view, sorted, in a block's shared memory.
//
// Tokens are gathered by their distance to the largest logit: `sample_weights` has counted how many
// lie in each bucket, so that the last bucket needed is known and one pass brings all up to it.
#pragma once

#include "sample.cuh"

#define LIST_THREADS 512
// Chunks that all threads load together, four logits each.
#define LIST_CHUNKS (LIST_THREADS * 4 / CHUNK)
// Most tokens of the list.
#define LIST_CAPACITY 8192
// Loads of a thread that are under way together.
#define LOADS_AHEAD 8

struct List {
    // LIST_CAPACITY keys, largest first; zeros behind the last up to a power of two.
    uint64_t *keys;
    // A group's logits, of views with changes.
    float *values;
    // [NUM_BUCKETS]: tokens up to a bucket.
    uint32_t *up_to;
    // [num_chunks]: the bucket of a chunk's largest, and the chunks that have something to gather.
    uint16_t *chunk_buckets, *chunks;
    // Shared numbers: tokens pushed, chunks listed, and the last bucket gathered.
    uint32_t *num_pushed, *num_chunks, *last;
    // The last bucket that counts in this view.
    uint32_t last_bucket;
    // How many tokens the list has.
    uint32_t len;
};

// Adds up the counts of buckets, and finds what the chunks can have. All threads call.
DEVICE void open_list(List &list, const SampleArgs &args, uint32_t index, const View &view, float max) {
    __shared__ uint32_t warp_sums[LIST_THREADS / 32];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Two buckets a thread.
    static_assert(NUM_BUCKETS <= 2 * LIST_THREADS && NUM_BUCKETS % 2 == 0, "buckets of all threads");
    bool has_buckets = threadIdx.x < NUM_BUCKETS / 2;
    uint2 counts = make_uint2(0, 0);
    if (has_buckets) counts = ((const uint2 *)(args.histogram + index * NUM_BUCKETS))[threadIdx.x];
    uint32_t sum = counts.x + counts.y;
    #pragma unroll
    for (uint32_t by = 1; by < 32; by *= 2) {
        uint32_t before = __shfl_up_sync(0xffffffffu, sum, by);
        sum += lane >= by ? before : 0;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++) sum += warp_sums[w];
    if (has_buckets) {
        list.up_to[2 * threadIdx.x] = sum - counts.y;
        list.up_to[2 * threadIdx.x + 1] = sum;
    }
    for (uint32_t c = threadIdx.x; c < args.num_chunks; c += LIST_THREADS) {
        uint64_t key = args.keys[index * args.num_chunks + c];
        list.chunk_buckets[c] = key ? bucket_of(cool(view, of_ordered(key >> 32)), max) : LAST_BUCKET;
    }
    list.len = 0;
    __syncthreads();
}

DEVICE void push(const List &list, uint64_t key) {
    uint32_t at = atomicAdd(list.num_pushed, 1u);
    if (at < LIST_CAPACITY) list.keys[at] = key;
}

// What is gathered: tokens in buckets up to `last`, of which BY_ID takes those that weigh `floor`.
struct Bounds {
    float max;
    uint32_t last;
    float floor;
    // Logits below are in later buckets: most are told apart without a division.
    float lowest;
};

DEVICE Bounds bounds_of(const View &view, float max, uint32_t last, float floor) {
    if (last == LAST_BUCKET) return Bounds{max, last, floor, -INFINITY};
    // More than all rounding can make of it.
    double cooled = (double)max - (double)end_of_bucket(last);
    double lowest = cooled * view.temperature + view.offset;
    double size = fabs((double)max * view.temperature) + fabs((double)view.offset) + fabs(lowest);
    return Bounds{max, last, floor, (float)(lowest - 1e-5 * size)};
}

// By value, or BY_ID: by id with the weight.
template <bool BY_ID>
DEVICE void push_one(const List &list, const View &view, const Bounds &bounds, uint32_t id, float x) {
    float cooled = cool(view, x);
    if (id >= view.vocab || bucket_of(cooled, bounds.max) > bounds.last) return;
    if (!BY_ID) return push(list, key_of(ordered(cooled), id));
    float weight = weight_of(cooled, bounds.max);
    if (weight >= bounds.floor) push(list, (uint64_t)(uint32_t)~id << 32 | __float_as_uint(weight));
}

// Which of four logits may lie within the bounds: few do, and those are read again.
DEVICE uint32_t mark_four(const Bounds &bounds, const float (&x)[4]) {
    uint32_t marks = 0;
    #pragma unroll
    for (uint32_t i = 0; i < 4; i++) marks |= x[i] < bounds.lowest ? 0 : 1u << i;
    return marks;
}

// Lists the chunks whose largest lies in a bucket up to `last`. All threads call.
DEVICE void list_chunks(const List &list, uint32_t num_chunks, uint32_t last) {
    if (threadIdx.x == 0) *list.num_chunks = *list.num_pushed = 0;
    __syncthreads();
    if (threadIdx.x < num_chunks && list.chunk_buckets[threadIdx.x] <= last)
        list.chunks[atomicAdd(list.num_chunks, 1u)] = threadIdx.x;
    __syncthreads();
}

// The list gets all that lies within the bounds, in no order. All threads call.
template <bool BY_ID> DEVICE void push_all(
    const List &list, const SampleArgs &args, const View &view, const Bounds &bounds) {
    list_chunks(list, args.num_chunks, bounds.last);
    uint32_t num_chunks = *list.num_chunks;
    if (view.offsets) {
        for (uint32_t group = 0; group < args.num_groups; group++) {
            load_changed(view, group, list.values);
            for (uint32_t within = threadIdx.x; within < GROUP; within += LIST_THREADS) {
                float x = read_one(view, group, within, list.values);
                if (!(x < bounds.lowest)) push_one<BY_ID>(list, view, bounds, group * GROUP + within, x);
            }
        }
        return __syncthreads();
    }
    uint32_t part = threadIdx.x / (CHUNK / 4), at = threadIdx.x % (CHUNK / 4) * 4;
    for (uint32_t begin = part; begin < num_chunks; begin += LIST_CHUNKS * LOADS_AHEAD) {
        float x[LOADS_AHEAD][4];
        #pragma unroll
        for (uint32_t i = 0; i < LOADS_AHEAD; i++) {
            // The last chunk stands in for those past it.
            uint32_t place = min(begin + i * LIST_CHUNKS, num_chunks - 1);
            read_four(view, 0, list.chunks[place] * CHUNK + at, list.values, x[i]);
        }
        uint32_t marks = 0;
        #pragma unroll
        for (uint32_t i = 0; i < LOADS_AHEAD; i++)
            if (begin + i * LIST_CHUNKS < num_chunks) marks |= mark_four(bounds, x[i]) << (4 * i);
        while (marks) {
            uint32_t bit = __ffs(marks) - 1;
            marks &= marks - 1;
            uint32_t id = list.chunks[begin + bit / 4 * LIST_CHUNKS] * CHUNK + at + bit % 4;
            push_one<BY_ID>(list, view, bounds, id, read_one(view, 0, id, list.values));
        }
    }
    __syncthreads();
}

// Sorts the list, largest first. All threads call.
DEVICE void sort(const List &list, uint32_t len) {
    uint32_t size = 32;
    while (size < len) size *= 2;
    for (uint32_t i = len + threadIdx.x; i < size; i += LIST_THREADS) list.keys[i] = 0;
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t by = run / 2; by > 0; by /= 2) {
            for (uint32_t pair = threadIdx.x; pair < size / 2; pair += LIST_THREADS) {
                uint32_t i = 2 * pair - (pair & (by - 1));
                uint64_t a = list.keys[i], b = list.keys[i + by];
                bool is_falling = (i & run) == 0;
                if (is_falling ? a < b : a > b) list.keys[i] = b, list.keys[i + by] = a;
            }
            // Pairs at most 32 apart lie in 64 keys that a warp has to itself, in this step and the
            // next.
            bool is_within_warp = by <= 32 && (by > 1 || run <= 32);
            if (is_within_warp) __syncwarp();
            else __syncthreads();
        }
    }
    __syncthreads();
}

// Makes the list hold at least the `count` likeliest tokens, or all that count; false when they are
// too many for it. All threads call, and all get the same answer.
DEVICE bool gather(List &list, const SampleArgs &args, const View &view, float max, uint32_t count) {
    uint32_t all = list.up_to[list.last_bucket];
    count = min(count, all);
    if (list.len >= count) return true;
    for (uint32_t bucket = threadIdx.x; bucket <= list.last_bucket; bucket += LIST_THREADS) {
        bool is_reached_before = bucket > 0 && list.up_to[bucket - 1] >= count;
        if (list.up_to[bucket] >= count && !is_reached_before) *list.last = bucket;
    }
    __syncthreads();
    uint32_t last = *list.last, len = list.up_to[last];
    if (len > LIST_CAPACITY) return false;
    push_all<false>(list, args, view, bounds_of(view, max, last, 0.0f));
    sort(list, len);
    list.len = len;
    return true;
}

// The list has every token that weighs at least `floor`, the lowest id first: its length, or more
// than LIST_CAPACITY when they do not fit. A list gathered before is gone. All threads call.
DEVICE uint32_t gather_by_id(List &list, const SampleArgs &args, const View &view, float max, float floor) {
    __syncthreads();
    push_all<true>(list, args, view, bounds_of(view, max, LAST_POSITIVE, floor));
    uint32_t len = *list.num_pushed;
    list.len = 0;
    if (len <= LIST_CAPACITY) sort(list, len);
    return len;
}
