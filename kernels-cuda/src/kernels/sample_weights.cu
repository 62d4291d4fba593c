// Sampling, second part: what every chunk weighs, and how many tokens lie how far below the
// largest.
#include "sample.cuh"

#define THREADS 256
#define FOURS (GROUP / THREADS / 4)
// Sums that a chunk is added up in, as on the host.
#define LANES 8

// The sum of a chunk's weights in the host's order. Eight lanes of a warp call for each of four
// chunks.
DEVICE double sum_of_chunk(const float *weights, uint32_t len, uint32_t lane) {
    double sum = 0.0;
    uint32_t whole = len / LANES;
    #pragma unroll 8
    for (uint32_t i = 0; i < whole; i++) sum = __dadd_rn(sum, (double)weights[i * LANES + lane]);
    double total = __shfl_sync(0xffffffffu, sum, 0, LANES);
    #pragma unroll
    for (uint32_t i = 1; i < LANES; i++) total = __dadd_rn(total, __shfl_sync(0xffffffffu, sum, i, LANES));
    double rest = 0.0;
    for (uint32_t i = whole * LANES; i < len; i++) rest = __dadd_rn(rest, (double)weights[i]);
    return __dadd_rn(total, rest);
}

// blocks (groups, slots, views)
KERNEL __launch_bounds__(THREADS) sample_weights(SampleArgs args) {
    __shared__ __align__(16) float values[GROUP_SHARED];
    __shared__ uint32_t counts[NUM_BUCKETS];
    uint32_t group = blockIdx.x, slot = blockIdx.y, which = blockIdx.z;
    const SlotSpec *spec = spec_of(args, slot);
    if (!has_view(spec, which)) return;
    uint32_t index = slot * NUM_VIEWS + which;
    Task task = args.tasks[index];
    if (!task.is_active) return;
    View view = view_of(args, slot, which);
    view.offset = task.offset;
    bool counts_buckets = has_candidates(spec, which);
    for (uint32_t i = threadIdx.x; i < NUM_BUCKETS; i += THREADS) counts[i] = 0;
    if (view.offsets) load_changed(view, group, values);

    float x[FOURS][4];
    #pragma unroll
    for (uint32_t f = 0; f < FOURS; f++) read_four(view, group, (f * THREADS + threadIdx.x) * 4, values, x[f]);
    // Weights take the logits' place.
    __syncthreads();
    #pragma unroll
    for (uint32_t f = 0; f < FOURS; f++) {
        uint32_t within = (f * THREADS + threadIdx.x) * 4;
        float weights[4];
        #pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            float cooled = cool(view, x[f][i]);
            weights[i] = weight_of(cooled, task.max);
            if (counts_buckets && group * GROUP + within + i < args.vocab)
                atomicAdd(counts + bucket_of(cooled, task.max), 1u);
        }
        *(float4 *)(values + shared_place(within)) = make_float4(weights[0], weights[1], weights[2], weights[3]);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        uint32_t mine = threadIdx.x / LANES, chunk = group * GROUP_CHUNKS + mine;
        uint32_t len = 0;
        if (chunk < args.num_chunks) len = min(args.vocab - chunk * CHUNK, (uint32_t)CHUNK);
        double sum = sum_of_chunk(values + mine * CHUNK_STRIDE, len, threadIdx.x % LANES);
        if (threadIdx.x % LANES == 0 && chunk < args.num_chunks)
            args.sums[index * args.num_chunks + chunk] = sum;
    } else if (counts_buckets) {
        for (uint32_t i = threadIdx.x - 32; i < NUM_BUCKETS; i += THREADS - 32)
            if (counts[i]) atomicAdd(args.histogram + index * NUM_BUCKETS + i, counts[i]);
    }
}
EXPORT(sample_weights)
