// Instructions of sm_90a: barriers in shared memory, bulk copies, and products of warpgroups.
//
// `PONDER_HOPPER` is defined where they are: on sm_90a and in the emulator. Elsewhere this file is
// empty, and so is a kernel file that needs it.
#pragma once

#include "common.cuh"

#ifdef PONDER_EMULATED
#define PONDER_HOPPER 1
#elif __CUDA_ARCH__ >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PONDER_HOPPER 1

// ---- barriers in shared memory -----------------------------------------------------------------

// A phase ends when `count` threads have arrived and all bytes that were expected have come.
DEVICE void mbarrier_init(uint64_t *barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// After the last `mbarrier_init`, by the thread that did them: bulk copies see the barriers.
DEVICE void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and makes the phase wait for so many bytes of bulk copies.
DEVICE void mbarrier_arrive_expect(uint64_t *barrier, uint32_t nbytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(nbytes) : "memory");
}
// Waits until the phase of that parity has ended: 0 the first, 1 the second, 0 the third. Before
// the first has, the phase "1" has.
DEVICE void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    uint32_t is_over;
    do {
        asm volatile("{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\nselp.u32 %0, 1, 0, over;\n}"
            : "=r"(is_over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!is_over);
}

// ---- bulk copies: one thread asks for them; addresses and sizes are multiples of 16 ------------

// From global to shared memory. The bytes count at the barrier when they are there.
DEVICE void bulk_copy(void *shared, const void *global, uint32_t nbytes, uint64_t *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(shared_address(shared)), "l"(global), "r"(nbytes), "r"(shared_address(barrier)) : "memory");
}
// From shared to global memory. Threads that wrote the bytes call `fence_async_shared` before.
DEVICE void bulk_store(void *global, const void *shared, uint32_t nbytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)), "r"(nbytes) : "memory");
}
// The stores since the last commit are a group, which may be empty.
DEVICE void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until the bytes of all but this thread's PENDING newest groups have been read: their shared
// memory may be written.
template <int PENDING> DEVICE void bulk_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
// What this thread wrote to shared memory is seen by bulk copies and warpgroup products after it.
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- threads of a block ------------------------------------------------------------------------

// Barrier `id` (1 to 15) of `count` threads, which are whole warps.
DEVICE void named_barrier_sync(uint32_t id, uint32_t count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }

// Registers a thread may use from here on, for all threads of a warpgroup together. A multiple of
// 8.
template <int COUNT> DEVICE void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// `x`, of which the compiler knows nothing: what follows from it is computed anew instead of kept
// in registers.
DEVICE uint32_t opaque(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Four 8 x 8 matrices of 16 bits, transposed. `x[i]` holds of matrix i what `mma` has in `d`: lane
// 4 g + t has row g, columns 2t, 2t+1. Column c of matrix i becomes the 16 bytes at the address
// that lane 8 i + c names.
DEVICE void store_matrices_transposed(void *shared, const uint32_t (&x)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
        ::"r"(shared_address(shared)), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}

// ---- products of warpgroups: all 128 threads call together -------------------------------------

// Before the first product, and after `a` or `d` were written in another way.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The products since the last commit are a group.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING of the newest groups are under way.
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// The compiler moves no use of sums from after this to before it: comes after the wait for them.
template <int COUNT> DEVICE void wgmma_hold(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Registers of sums, as operands of a constraint and as text.
#define SUMS_8(x, i) x(d[i]), x(d[i + 1]), x(d[i + 2]), x(d[i + 3]), x(d[i + 4]), x(d[i + 5]), x(d[i + 6]), x(d[i + 7])
#define SUMS_32(x, i) SUMS_8(x, i), SUMS_8(x, i + 8), SUMS_8(x, i + 16), SUMS_8(x, i + 24)
#define SUMS_64(x, i) SUMS_32(x, i), SUMS_32(x, i + 32)
#define SUMS_128(x, i) SUMS_64(x, i), SUMS_64(x, i + 64)
#define READ_AND_WRITTEN(x) "+f"(x)
#define WRITTEN(x) "=f"(x)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// The operands after the sums: numbers of registers of `a`, of the descriptor, and whether the sums
// go on.
#define OPERANDS_32 "{%32, %33, %34, %35}, %36"
#define OPERANDS_64 "{%64, %65, %66, %67}, %68"
#define OPERANDS_128 "{%128, %129, %130, %131}, %132"
#define WGMMA_TEXT(num_sums, columns, keeps) \
    "{\n.reg .pred keeps;\nsetp.eq.b32 keeps, " #keeps ", 1;\n" \
    "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 " \
    "{" NAMES_##num_sums "}, " OPERANDS_##num_sums ", keeps, 1, 1, 0;\n}"
#define WGMMA(num_sums, columns) \
    DEVICE void wgmma_bf16_first(float (&d)[num_sums], const uint32_t (&a)[4], uint64_t b) { \
        asm volatile(WGMMA_TEXT(num_sums, columns, 0) \
            : SUMS_##num_sums(WRITTEN, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    } \
    DEVICE void wgmma_bf16(float (&d)[num_sums], const uint32_t (&a)[4], uint64_t b) { \
        asm volatile(WGMMA_TEXT(num_sums, columns, 1) \
            : SUMS_##num_sums(READ_AND_WRITTEN, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }

// d (64 x N) += a (64 x 16) * b (16 x N), f32 sums; `first`: = instead of +=, so that sums before
// it need not exist. Warp w of the warpgroup has rows 16 w to 16 w + 15; in its rows `a` lies as
// for `mma_bf16`, and d[4 j + i] is the d[i] of `mma_bf16` for columns 8 j to 8 j + 7. `b` is a
// `wgmma_descriptor`. Until a wait says that it is done, `a`, `d` and what `b` names are in use.
WGMMA(128, 256)
WGMMA(64, 128)
WGMMA(32, 64)

#undef WGMMA
#undef WGMMA_TEXT
#endif

#ifdef PONDER_HOPPER

// ---- where a product finds b -------------------------------------------------------------------

// Fields of a matrix descriptor (PTX ISA, "Matrix Descriptor Format"): addresses and strides in
// units of 16 bytes.
constexpr uint32_t DESCRIPTOR_ADDRESS_MASK = 0x3ffff;
constexpr uint32_t DESCRIPTOR_UNIT_SHIFT = 4;
constexpr uint32_t DESCRIPTOR_LEADING_BIT = 16;
constexpr uint32_t DESCRIPTOR_STRIDE_BIT = 32;
constexpr uint32_t DESCRIPTOR_SWIZZLE_BIT = 62;
constexpr uint64_t SWIZZLE_128_BYTES = 1;
// One column of b, 64 inputs: a line of the 128-byte swizzle. Eight lines are an atom.
constexpr uint32_t LINE_BYTES = 128;
constexpr uint32_t ATOM_BYTES = 8 * LINE_BYTES;
// From one step of 16 inputs to the next within the lines.
constexpr uint64_t DESCRIPTOR_K_STEP = 32 >> DESCRIPTOR_UNIT_SHIFT;

// Columns one after the other, each a line of 64 inputs whose 16-byte chunks are swizzled (chunk c
// of column n lies at c ^ (n % 8)). `shared` is a multiple of 1024, so that the base offset is 0.
// The leading stride has no meaning in a swizzled layout along k.
DEVICE uint64_t wgmma_descriptor(const void *shared) {
    uint64_t start = (shared_address(shared) & DESCRIPTOR_ADDRESS_MASK) >> DESCRIPTOR_UNIT_SHIFT;
    uint64_t atom = ATOM_BYTES >> DESCRIPTOR_UNIT_SHIFT;
    return start | 1ull << DESCRIPTOR_LEADING_BIT | atom << DESCRIPTOR_STRIDE_BIT
        | SWIZZLE_128_BYTES << DESCRIPTOR_SWIZZLE_BIT;
}

#endif
