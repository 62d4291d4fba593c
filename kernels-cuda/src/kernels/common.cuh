// What all kernels share: types of the width that matters, conversions, and the machine's own instructions.
//
// Kernels are compiled by NVRTC without any header of the toolkit, and by a C++ compiler with
// PONDER_EMULATED, where `emulator.hpp` stands in for the device: an instruction is used through a
// function of this file alone, so that both have it.
#pragma once

// A function of a struct, where `DEVICE` is for those that stand alone.
#define METHOD __device__ __forceinline__

#ifdef PONDER_EMULATED
#include "emulator.hpp"
#else

typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;

#define INFINITY __int_as_float(0x7f800000)

// A kernel by its name in the library. `EXPORT(name)` after it makes it known to the emulator.
#define KERNEL extern "C" __global__ void
#define EXPORT(name)
// Shared memory whose size the launch tells, aligned for bulk copies.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#define DEVICE __device__ __forceinline__

// ---- conversions -------------------------------------------------------------------------------

// Two floats as bf16, rounded to even; `low` in the low half.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE uint16_t bf16_of(float x) { return (uint16_t)pack_bf16(x, 0.0f); }
DEVICE float of_bf16(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

// Two floats as f16, rounded to even; `low` in the low half.
DEVICE uint32_t pack_f16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE uint16_t f16_of(float x) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE float of_f16(uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Both halves of a pair of f16, below the normal numbers too.
DEVICE void unpack_f16(uint32_t pair, float &low, float &high) {
    asm("{.reg .f16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(pair));
}

// Bytes of `a` (0 to 3) and `b` (4 to 7) by the four nibbles of `selector`.
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}
// (a & mask) | bits, in one instruction.
DEVICE uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(mask), "r"(bits));
    return out;
}

// The compiler holds the value in a register from here on, rather than compute it again at every use.
DEVICE void hold(uint32_t &x) { asm volatile("" : "+r"(x)); }
DEVICE void hold(int32_t &x) { asm volatile("" : "+r"(x)); }

// ---- tensor cores: all 32 lanes of a warp call together ----------------------------------------

// d += a (16 x 16, row-major) * b (16 x 8, column-major), f32 sums. Lane l = 4 g + t holds
// a[0]: row g, k 2t, 2t+1; a[1]: row g+8, the same k; a[2]: row g, k 2t+8, 2t+9; a[3]: row g+8, the same;
// b[0]: column g, k 2t, 2t+1; b[1]: column g, k 2t+8, 2t+9;
// d[0], d[1]: row g, columns 2t, 2t+1; d[2], d[3]: row g+8, the same columns.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit values from shared memory: lane l tells where row l % 8 of matrix l / 8 lies (16 bytes,
// aligned); lane 4 g + t gets values 2t, 2t+1 of row g of each. Of activations [column][k] these are fragments b.
DEVICE void load_matrices(uint32_t (&x)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)));
}
// The same, transposed: lane 4 g + t gets values g of rows 2t and 2t+1 of each. Of values [k][column] these are fragments b.
DEVICE void load_transposed(uint32_t (&x)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

// ---- memory ------------------------------------------------------------------------------------

DEVICE uint32_t shared_address(const void *pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory while the thread goes on.
DEVICE void copy_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's newest groups are under way.
template <int PENDING> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Reads 16 bytes that are read once: they need not stay in the first-level cache.
DEVICE uint4 load_streamed(const void *global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}

// What other blocks wrote before they counted themselves is seen by the block that counted last.
DEVICE uint32_t count_arrival(uint32_t *counter) {
    __threadfence();
    uint32_t before = atomicAdd(counter, 1u);
    __threadfence();
    return before;
}

// 2^x. Exactly 1 for 0, and 0 for negative infinity.
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Whether any lane of the warp says so.
DEVICE bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
// What lane `from` holds.
DEVICE uint32_t shuffle_from(uint32_t x, int from) { return __shfl_sync(0xffffffffu, x, from); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

#endif

// The highest and the lowest of a warp's values, known to all lanes.
DEVICE uint32_t reduce_max(uint32_t x) { return __reduce_max_sync(0xffffffffu, x); }
DEVICE uint32_t reduce_min(uint32_t x) { return __reduce_min_sync(0xffffffffu, x); }
