// Sampling, first part: the largest logit of every chunk and of every row. Greedy rows are done
// then.
#include "sample.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
// A thread's logits lie in so many fours of one chunk.
#define FOURS (GROUP / THREADS / 4)
#define THREADS_PER_CHUNK (THREADS / GROUP_CHUNKS)

DEVICE uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

DEVICE uint64_t largest_of_warp(uint64_t key) {
    #pragma unroll
    for (int by = 16; by > 0; by /= 2) key = larger(key, __shfl_xor_sync(0xffffffffu, key, by));
    return key;
}

// 0 when nothing is above negative infinity. Zeros are equal whatever their sign.
DEVICE uint64_t key_of_largest(float x, uint32_t token_id) {
    return x > -INFINITY ? key_of(ordered(__fadd_rn(x, 0.0f)), token_id) : 0;
}

// Whether the row's largest logit is a number. Only rows whose masks leave nothing ask.
DEVICE bool is_raw_finite(const View &view, uint64_t *keys) {
    float largest = -INFINITY;
    for (uint32_t id = threadIdx.x; id < view.vocab; id += THREADS)
        largest = view.logits[id] > largest ? view.logits[id] : largest;
    uint64_t key = largest_of_warp(key_of_largest(largest, 0));
    __syncthreads();
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++) key = larger(key, keys[w]);
    return key && is_finite(of_ordered(key >> 32));
}

// What follows from a view's largest logit; one block of the view's comes here.
DEVICE void settle(const SampleArgs &args, uint32_t slot, uint32_t which, View view, uint64_t best, uint64_t *keys) {
    float max = best ? of_ordered(best >> 32) : -INFINITY;
    bool has_max = best && is_finite(max);
    bool is_changed = view.mask || view.offsets;
    uint32_t status = STATUS_TOKEN;
    if (!has_max) status = is_changed && is_raw_finite(view, keys) ? STATUS_NOTHING_ALLOWED : STATUS_NOT_FINITE;
    if (threadIdx.x != 0) return;
    Header *header = args.headers + slot;
    Task task = {0.0f, max, has_max, 0};
    if (which == VIEW_RAW) {
        uint32_t asked = view.spec->token_id;
        header->asked_logit = asked < view.vocab ? view.logits[asked] : -INFINITY;
        header->raw_max = max;
        header->raw_sum = 0.0;
        header->raw_status = status;
    } else {
        header->status = status;
        header->token_id = has_max ? id_of(best) : 0;
        header->logit = has_max ? view.logits[id_of(best)] : 0.0f;
        if (!(view.temperature > 0.0f)) task.is_active = 0;
        // A tiny temperature would carry the largest past what f32 can hold.
        task.offset = is_finite(__fdiv_rn(max, view.temperature)) ? 0.0f : max;
        view.offset = task.offset;
        task.max = cool(view, max);
    }
    args.tasks[slot * NUM_VIEWS + which] = task;
}

// blocks (groups, slots, views)
KERNEL __launch_bounds__(THREADS) sample_maxima(SampleArgs args) {
    __shared__ __align__(16) float values[GROUP_SHARED];
    __shared__ uint64_t keys[WARPS];
    __shared__ bool is_last;
    uint32_t group = blockIdx.x, slot = blockIdx.y, which = blockIdx.z;
    if (!has_view(spec_of(args, slot), which)) return;
    uint32_t task = slot * NUM_VIEWS + which, warp = threadIdx.x / 32;
    View view = view_of(args, slot, which);
    if (view.offsets) load_changed(view, group, values);

    float x[FOURS][4];
    uint32_t within = threadIdx.x / THREADS_PER_CHUNK * CHUNK + threadIdx.x % THREADS_PER_CHUNK * 4;
    #pragma unroll
    for (uint32_t f = 0; f < FOURS; f++)
        read_four(view, group, within + f * THREADS_PER_CHUNK * 4, values, x[f]);
    float largest = -INFINITY;
    uint32_t at = 0;
    #pragma unroll
    for (uint32_t f = 0; f < FOURS; f++) {
        #pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            bool is_larger = x[f][i] > largest;
            largest = is_larger ? x[f][i] : largest;
            at = is_larger ? within + f * THREADS_PER_CHUNK * 4 + i : at;
        }
    }
    uint64_t key = largest_of_warp(key_of_largest(largest, group * GROUP + at));
    if (threadIdx.x % 32 == 0) keys[warp] = key;
    uint32_t *histogram = args.histogram + task * NUM_BUCKETS;
    uint32_t num_buckets = has_candidates(view.spec, which) ? NUM_BUCKETS : 0;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < num_buckets; i += gridDim.x * THREADS)
        histogram[i] = 0;
    __syncthreads();
    const uint32_t warps = WARPS / GROUP_CHUNKS;
    uint64_t *chunk_keys = args.keys + task * args.num_chunks;
    uint32_t chunk = group * GROUP_CHUNKS + threadIdx.x;
    if (threadIdx.x < GROUP_CHUNKS && chunk < args.num_chunks) {
        key = 0;
        for (uint32_t w = 0; w < warps; w++) key = larger(key, keys[threadIdx.x * warps + w]);
        chunk_keys[chunk] = key;
    }
    __syncthreads();
    if (threadIdx.x == 0) is_last = count_arrival(args.arrivals + task) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;

    key = 0;
    for (uint32_t c = threadIdx.x; c < args.num_chunks; c += THREADS) key = larger(key, __ldcg(chunk_keys + c));
    key = largest_of_warp(key);
    if (threadIdx.x % 32 == 0) keys[warp] = key;
    __syncthreads();
    #pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) key = larger(key, keys[w]);
    settle(args, slot, which, view, key, keys);
    if (threadIdx.x == 0) args.arrivals[task] = 0;
}
EXPORT(sample_maxima)
