// Kernels that test the emulator itself.

// One warp: d[16][8] = a[16][16] * b[16][8] of bf16 (row-major) and of f16.
template <bool IS_F16> DEVICE void multiply_tile(const float *a, const float *b, float *d) {
    uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t left[4], right[2];
    for (uint32_t i = 0; i < 4; i++) {
        const float *pair = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        left[i] = IS_F16 ? pack_f16(pair[0], pair[1]) : pack_bf16(pair[0], pair[1]);
    }
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t k = 2 * t + i * 8;
        float low = b[k * 8 + g], high = b[(k + 1) * 8 + g];
        right[i] = IS_F16 ? pack_f16(low, high) : pack_bf16(low, high);
    }
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (IS_F16) mma_f16(sums, left, right);
    else mma_bf16(sums, left, right);
    for (uint32_t i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
KERNEL test_mma_bf16(const float *a, const float *b, float *d) { multiply_tile<false>(a, b, d); }
EXPORT(test_mma_bf16)
KERNEL test_mma_f16(const float *a, const float *b, float *d) { multiply_tile<true>(a, b, d); }
EXPORT(test_mma_f16)

// What each lane of a warp gets: by a lane, xor, down, up; a ballot and a sum.
KERNEL test_shuffles(uint32_t *out) {
    uint32_t lane = threadIdx.x;
    uint32_t *mine = out + lane * 6;
    mine[0] = __shfl_sync(0xffffffffu, lane * 10, 7);
    mine[1] = __shfl_xor_sync(0xffffffffu, lane, 5);
    mine[2] = __shfl_down_sync(0xffffffffu, lane, 4);
    mine[3] = __shfl_up_sync(0xffffffffu, lane, 1, 8);
    mine[4] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    // The halves meet apart from each other.
    uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    mine[5] = __reduce_add_sync(half, lane);
}
EXPORT(test_shuffles)

// out = the sum of `values`, over blocks that each sum a part; the last to arrive adds the parts in
// order.
KERNEL __launch_bounds__(96) test_split_sum(
    const float *values, uint32_t len, float *parts, uint32_t *counter, float *out) {
    __shared__ bool is_last;
    DYNAMIC_SHARED(shared);
    float *sums = (float *)shared;
    float sum = 0.0f;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < len; i += gridDim.x * blockDim.x)
        sum += values[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (uint32_t i = 0; i < blockDim.x; i++) total += sums[i];
        parts[blockIdx.x] = total;
        is_last = count_arrival(counter) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last || threadIdx.x != 0) return;
    float total = 0.0f;
    for (uint32_t i = 0; i < gridDim.x; i++) total += parts[i];
    *out = total;
    *counter = 0;
}
EXPORT(test_split_sum)

// Static arrays of functions and of templates, each its own.
template <int N> DEVICE float first_of_fixed() {
    __shared__ float fixed[N];
    float before = fixed[N - 1];
    fixed[N - 1] = N;
    return before;
}
DEVICE uint16_t first_of_halves() {
    __shared__ uint16_t fixed[64];
    uint16_t before = fixed[7];
    fixed[7] = 7;
    return before;
}
// Shared memory that nobody wrote, static and dynamic.
KERNEL test_garbage(float *out) {
    __shared__ float fixed[4];
    DYNAMIC_SHARED(shared);
    out[blockIdx.x * 2] = fixed[3] + first_of_fixed<3>() + first_of_fixed<4>();
    if (first_of_halves() != 0xffff) out[blockIdx.x * 2] = 0.0f;
    out[blockIdx.x * 2 + 1] = ((float *)shared)[5];
    fixed[3] = ((float *)shared)[5] = 1.0f;
}
EXPORT(test_garbage)

// A barrier that one thread passes by, for good or (`leaves`) because it has left.
KERNEL test_missed_barrier(uint32_t leaves) {
    if (threadIdx.x == 33) {
        if (leaves) return;
        __syncwarp();
    }
    __syncthreads();
}
EXPORT(test_missed_barrier)

// Writes `count` floats to dynamic shared memory and to `out`.
KERNEL test_overrun(float *out, uint32_t num_shared, uint32_t num_out) {
    DYNAMIC_SHARED(shared);
    for (uint32_t i = 0; i < num_shared; i++) ((float *)shared)[i] = 0.0f;
    for (uint32_t i = 0; i < num_out; i++) out[i] = 1.0f;
}
EXPORT(test_overrun)

// Copies that are read when all but the newest group came.
KERNEL test_async(const uint4 *values, uint4 *out) {
    DYNAMIC_SHARED(shared);
    uint4 *tiles = (uint4 *)shared;
    copy_async_16(tiles, values);
    copy_async_commit();
    copy_async_16(tiles + 1, values + 1);
    copy_async_commit();
    copy_async_wait<1>();
    out[0] = tiles[0];
    out[1] = tiles[1];
    copy_async_wait<0>();
    out[2] = tiles[1];
}
EXPORT(test_async)

struct TestPair {
    uint32_t first;
    float second;
};
KERNEL test_struct(TestPair pair, float *out) {
    if (threadIdx.x == 0) out[blockIdx.y] = pair.first + pair.second;
}
EXPORT(test_struct)
