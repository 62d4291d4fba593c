// The device as a C++ compiler sees it: the words of CUDA and the functions of `common.cuh`, for
// tests on machines without a GPU. Floats are computed as the device does: fused only where it is
// written.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "emulator_launch.hpp"

// ---- the language ------------------------------------------------------------------------------

#define __global__ static
#define __device__
#define __host__
#define __constant__
// Blocks run one after the other, so that static storage serves each of them.
#define __shared__ static __attribute__((section("ponder_shared")))
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define KERNEL static void
#define EXPORT(name) \
    static emulator::Registration registration_of_##name(emulator::Thunk<name>::kernel(#name));
#define DYNAMIC_SHARED(name) uint8_t *const name = emulator::block.shared
#define DEVICE static inline

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.shape)
#define gridDim (emulator::block.num_blocks)
#define warpSize 32

struct alignas(4) uchar4 { uint8_t x, y, z, w; };
struct alignas(4) ushort2 { uint16_t x, y; };
struct alignas(8) ushort4 { uint16_t x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) int2 { int32_t x, y; };
struct alignas(16) int4 { int32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
DEVICE uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
DEVICE uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
DEVICE int2 make_int2(int32_t x, int32_t y) { return {x, y}; }
DEVICE int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
DEVICE double2 make_double2(double x, double y) { return {x, y}; }

// ---- bits --------------------------------------------------------------------------------------

namespace emulator {
template <class To, class From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emulator

DEVICE float __uint_as_float(uint32_t x) { return emulator::bits<float>(x); }
DEVICE uint32_t __float_as_uint(float x) { return emulator::bits<uint32_t>(x); }
DEVICE float __int_as_float(int32_t x) { return emulator::bits<float>(x); }
DEVICE int32_t __float_as_int(float x) { return emulator::bits<int32_t>(x); }
DEVICE double __longlong_as_double(long long x) { return emulator::bits<double>(x); }
DEVICE long long __double_as_longlong(double x) { return emulator::bits<long long>(x); }
DEVICE int __popc(uint32_t x) { return __builtin_popcount(x); }
DEVICE int __popcll(uint64_t x) { return __builtin_popcountll(x); }
DEVICE int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
DEVICE int __clzll(uint64_t x) { return x ? __builtin_clzll(x) : 64; }
DEVICE int __ffs(uint32_t x) { return __builtin_ffs(x); }
DEVICE int __ffsll(uint64_t x) { return __builtin_ffsll(x); }
DEVICE uint32_t __brev(uint32_t x) {
    uint32_t y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
DEVICE uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
DEVICE uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return ((uint64_t)high << 32 | low) >> (shift & 31);
}
DEVICE uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return ((uint64_t)high << 32 | low) << (shift & 31) >> 32;
}
DEVICE uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t nibble = selector >> (4 * i) & 15;
        uint8_t byte = bytes >> (8 * (nibble & 7));
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= (uint32_t)byte << (8 * i);
    }
    return out;
}
DEVICE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> (8 * i)) * (int8_t)(b >> (8 * i));
    return c;
}

// ---- numbers -----------------------------------------------------------------------------------

DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __fsqrt_rn(float x) { return sqrtf(x); }
DEVICE float __frcp_rn(float x) { return 1.0f / x; }
DEVICE float __fdividef(float a, float b) { return a / b; }
DEVICE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
DEVICE double __dadd_rn(double a, double b) { return a + b; }
DEVICE double __dsub_rn(double a, double b) { return a - b; }
DEVICE double __dmul_rn(double a, double b) { return a * b; }
DEVICE double __ddiv_rn(double a, double b) { return a / b; }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The C library has these names for itself.
DEVICE float device_expf(float x) { return exp2f(x * 1.442695041f); }
#define __expf device_expf
DEVICE float device_exp2f(float x) { return exp2f(x); }
#define __exp2f device_exp2f
DEVICE float device_logf(float x) { return logf(x); }
#define __logf device_logf
DEVICE float device_log2f(float x) { return log2f(x); }
#define __log2f device_log2f
DEVICE float device_sinf(float x) { return sinf(x); }
#define __sinf device_sinf
DEVICE float device_cosf(float x) { return cosf(x); }
#define __cosf device_cosf
DEVICE float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
DEVICE int __float2int_rn(float x) { return (int)nearbyintf(x); }
DEVICE int __float2int_rz(float x) { return (int)x; }
DEVICE uint32_t __float2uint_rn(float x) { return (uint32_t)nearbyintf(x); }
DEVICE float __int2float_rn(int x) { return (float)x; }
DEVICE float __uint2float_rn(uint32_t x) { return (float)x; }
DEVICE float __double2float_rn(double x) { return (float)x; }
using std::isfinite;
using std::isinf;
using std::isnan;
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    typedef std::common_type_t<A, B> T;
    // NaN gives way, as on the device.
    if constexpr (std::is_floating_point_v<T>) return fmax((T)a, (T)b);
    else return (T)a > (T)b ? (T)a : (T)b;
}
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    typedef std::common_type_t<A, B> T;
    if constexpr (std::is_floating_point_v<T>) return fmin((T)a, (T)b);
    else return (T)a < (T)b ? (T)a : (T)b;
}

// ---- memory ------------------------------------------------------------------------------------

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldca(const T *p) { return *p; }
template <class T> static inline void __stcg(T *p, T x) { *p = x; }
template <class T> static inline void __stcs(T *p, T x) { *p = x; }
DEVICE void __threadfence() {}
DEVICE void __threadfence_block() {}

namespace emulator {
template <class T, class Change> static inline T atomic(T *p, Change change) {
    T before = *p;
    *p = change(before);
    return before;
}
} // namespace emulator
template <class T> using Same = std::type_identity_t<T>;
template <class T> static inline T atomicAdd(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return (T)(a + x); });
}
template <class T> static inline T atomicSub(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return (T)(a - x); });
}
template <class T> static inline T atomicMax(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return a > x ? a : x; });
}
template <class T> static inline T atomicMin(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return a < x ? a : x; });
}
template <class T> static inline T atomicOr(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return a | x; });
}
template <class T> static inline T atomicAnd(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return a & x; });
}
template <class T> static inline T atomicExch(T *p, Same<T> x) {
    return emulator::atomic(p, [=](T) { return x; });
}
template <class T> static inline T atomicCAS(T *p, Same<T> old, Same<T> x) {
    return emulator::atomic(p, [=](T a) { return a == old ? x : a; });
}

// ---- threads that meet -------------------------------------------------------------------------

DEVICE void __syncthreads() { emulator::join_barrier(0, 0, true, 0, "__syncthreads"); }
DEVICE int __syncthreads_count(int x) {
    return emulator::join_barrier(0, 0, true, x, "__syncthreads_count");
}
DEVICE int __syncthreads_or(int x) { return __syncthreads_count(x) != 0; }
DEVICE int __syncthreads_and(int x) { return __syncthreads_count(!x) == 0; }
DEVICE void __syncwarp(uint32_t mask = 0xffffffffu) {
    emulator::meet(mask, "__syncwarp", nullptr, nullptr);
}
DEVICE void __nanosleep(uint32_t) {
    int turns = 0;
    emulator::wait_until([&] { return turns++ > 0; }, "its sleep to end");
}
DEVICE void __trap() { emulator::fail("__trap"); }
DEVICE uint32_t __activemask() { return emulator::block.warps[emulator::current->linear / 32].existing; }

namespace emulator {
template <class T> struct Shuffle {
    T in, out;
    uint32_t from;
};
template <class T> static void shuffle_lanes(void *const *lanes, uint32_t mask) {
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        Shuffle<T> *mine = (Shuffle<T> *)lanes[lane];
        if (!(mask >> mine->from & 1))
            fail("a shuffle reads lane %u, which does not take part (%08x)", mine->from, mask);
        mine->out = ((Shuffle<T> *)lanes[mine->from])->in;
    }
}
template <class T> static inline T shuffle(uint32_t mask, T x, uint32_t from) {
    Shuffle<T> mine{x, x, from};
    meet(mask, "a shuffle", shuffle_lanes<T>, &mine);
    return mine.out;
}
static inline uint32_t lane() { return current->linear % WARP; }

// Votes and sums of integers: what one lane brings, and what all of them get.
struct Vote {
    uint32_t in, any, ballot, add, max, min;
};
static void count_votes(void *const *lanes, uint32_t mask) {
    Vote all{0, 0, 0, 0, 0, 0xffffffffu};
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        uint32_t x = ((Vote *)lanes[lane])->in;
        all.ballot |= (uint32_t)(x != 0) << lane;
        all.any |= x;
        all.add += x;
        if (x > all.max) all.max = x;
        if (x < all.min) all.min = x;
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        Vote *mine = (Vote *)lanes[lane];
        uint32_t in = mine->in;
        *mine = all;
        mine->in = in;
    }
}
static inline Vote vote(uint32_t mask, uint32_t x) {
    Vote mine{x, 0, 0, 0, 0, 0};
    meet(mask, "a vote", count_votes, &mine);
    return mine;
}
} // namespace emulator

template <class T> static inline T __shfl_sync(uint32_t mask, T x, int from, int width = 32) {
    uint32_t lane = emulator::lane();
    return emulator::shuffle(mask, x, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T x, int other, int width = 32) {
    uint32_t lane = emulator::lane(), from = lane ^ other;
    // Another segment is read only when it lies before the own one.
    bool is_inside = (from & ~(width - 1)) <= (lane & ~(width - 1));
    return emulator::shuffle(mask, x, is_inside ? from : lane);
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T x, uint32_t by, int width = 32) {
    uint32_t lane = emulator::lane();
    return emulator::shuffle(mask, x, (lane & (width - 1)) + by < (uint32_t)width ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(uint32_t mask, T x, uint32_t by, int width = 32) {
    uint32_t lane = emulator::lane();
    return emulator::shuffle(mask, x, (lane & (width - 1)) >= by ? lane - by : lane);
}
DEVICE uint32_t __ballot_sync(uint32_t mask, int x) { return emulator::vote(mask, x != 0).ballot; }
DEVICE int __any_sync(uint32_t mask, int x) { return emulator::vote(mask, x != 0).ballot != 0; }
DEVICE int __all_sync(uint32_t mask, int x) { return emulator::vote(mask, x == 0).ballot == 0; }
DEVICE uint32_t __reduce_add_sync(uint32_t mask, uint32_t x) { return emulator::vote(mask, x).add; }
DEVICE uint32_t __reduce_max_sync(uint32_t mask, uint32_t x) { return emulator::vote(mask, x).max; }
DEVICE uint32_t __reduce_min_sync(uint32_t mask, uint32_t x) { return emulator::vote(mask, x).min; }
DEVICE uint32_t __reduce_or_sync(uint32_t mask, uint32_t x) { return emulator::vote(mask, x).any; }

#include "emulator_common.hpp"
#include "emulator_hopper.hpp"
