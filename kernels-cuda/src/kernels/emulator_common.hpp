// The twins of the functions in `common.cuh`, in its order.
#pragma once

// ---- conversions -------------------------------------------------------------------------------

DEVICE uint16_t bf16_of(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE float of_bf16(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }
DEVICE uint32_t pack_bf16(float low, float high) {
    return bf16_of(low) | (uint32_t)bf16_of(high) << 16;
}
DEVICE uint16_t f16_of(float x) {
    if (x != x) return 0x7fff;
    return emulator::bits<uint16_t>((_Float16)x);
}
DEVICE float of_f16(uint16_t bits) { return (float)emulator::bits<_Float16>(bits); }
DEVICE uint32_t pack_f16(float low, float high) {
    return f16_of(low) | (uint32_t)f16_of(high) << 16;
}
DEVICE void unpack_f16(uint32_t pair, float &low, float &high) {
    low = of_f16((uint16_t)pair);
    high = of_f16((uint16_t)(pair >> 16));
}
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}
DEVICE void hold(uint32_t &) {}
DEVICE void hold(int32_t &) {}
DEVICE uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }

// ---- tensor cores ------------------------------------------------------------------------------

namespace emulator {
struct Mma {
    float *d;
    const uint32_t *a, *b;
};
// d[16][8] += a[16][16] * b[16][8], one multiply-add after the other along k.
template <float (*WIDEN)(uint16_t)> static void multiply(void *const *lanes, uint32_t mask) {
    if (mask != 0xffffffffu) fail("mma by lanes %08x alone", mask);
    float a[16][16], b[16][8];
    for (uint32_t lane = 0; lane < WARP; lane++) {
        const Mma *mine = (const Mma *)lanes[lane];
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t half = 0; half < 2; half++) {
            for (uint32_t i = 0; i < 4; i++)
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = WIDEN(mine->a[i] >> (16 * half));
            for (uint32_t i = 0; i < 2; i++)
                b[2 * t + i * 8 + half][g] = WIDEN(mine->b[i] >> (16 * half));
        }
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        float *d = ((const Mma *)lanes[lane])->d;
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t row = g + i / 2 * 8, column = 2 * t + i % 2;
            float sum = d[i];
            for (uint32_t k = 0; k < 16; k++) sum = fmaf(a[row][k], b[k][column], sum);
            d[i] = sum;
        }
    }
}
} // namespace emulator

DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::Mma mine{d, a, b};
    emulator::meet(0xffffffffu, "mma_bf16", emulator::multiply<of_bf16>, &mine);
}
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::Mma mine{d, a, b};
    emulator::meet(0xffffffffu, "mma_f16", emulator::multiply<of_f16>, &mine);
}

// ---- memory ------------------------------------------------------------------------------------

// Addresses in shared memory: the dynamic part from 0, the static arrays from STATIC_SHARED.
namespace emulator {
constexpr uint32_t STATIC_SHARED = 1u << 20;
static bool is_static_shared(const void *pointer) {
    return pointer >= __start_ponder_shared && pointer < __stop_ponder_shared;
}
static bool is_dynamic_shared(const void *pointer) {
    return pointer >= block.shared && pointer < block.shared + block.shared_bytes;
}
static uint8_t *shared_pointer(uint32_t address) {
    return address < STATIC_SHARED ? block.shared + address : __start_ponder_shared + (address - STATIC_SHARED);
}
} // namespace emulator

DEVICE uint32_t shared_address(const void *pointer) {
    if (emulator::is_dynamic_shared(pointer)) return (uint8_t *)pointer - emulator::block.shared;
    if (!emulator::is_static_shared(pointer)) emulator::fail("not an address in shared memory");
    return emulator::STATIC_SHARED + (uint32_t)((uint8_t *)pointer - __start_ponder_shared);
}

// The bytes come when the thread waits for them: who does not wait reads what was there before.
DEVICE void copy_async_16(void *shared, const void *global) {
    shared_address(shared);
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
        emulator::fail("copy_async_16 between %p and %p: not multiples of 16", shared, global);
    emulator::Thread *t = emulator::current;
    t->copies.push_back(emulator::AsyncCopy{shared, global, 16, t->num_groups});
}
DEVICE void copy_async_commit() { emulator::current->num_groups++; }
template <int PENDING> static inline void copy_async_wait() {
    emulator::Thread *t = emulator::current;
    size_t kept = 0;
    for (const emulator::AsyncCopy &copy : t->copies) {
        // Copies after the newest commit belong to no group yet.
        if (copy.group + PENDING < t->num_groups) memcpy(copy.target, copy.source, copy.nbytes);
        else t->copies[kept++] = copy;
    }
    t->copies.resize(kept);
}

namespace emulator {
struct LoadMatrices {
    uint32_t *x;
    const uint8_t *row;
};
static void load_matrices(void *const *lanes, uint32_t mask) {
    if (mask != 0xffffffffu) fail("ldmatrix by lanes %08x alone", mask);
    for (uint32_t lane = 0; lane < WARP; lane++)
        for (uint32_t i = 0; i < 4; i++) {
            const uint8_t *row = ((const LoadMatrices *)lanes[8 * i + lane / 4])->row;
            memcpy(&((LoadMatrices *)lanes[lane])->x[i], row + lane % 4 * 4, 4);
        }
}
} // namespace emulator
DEVICE void load_matrices(uint32_t (&x)[4], const void *row) {
    if (shared_address(row) % 16) emulator::fail("ldmatrix of %u: not a multiple of 16", shared_address(row));
    emulator::LoadMatrices mine{x, (const uint8_t *)row};
    emulator::meet(0xffffffffu, "ldmatrix", emulator::load_matrices, &mine);
}

namespace emulator {
static void load_transposed(void *const *lanes, uint32_t mask) {
    if (mask != 0xffffffffu) fail("ldmatrix by lanes %08x alone", mask);
    for (uint32_t lane = 0; lane < WARP; lane++)
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t k = 0; k < 2; k++) {
                const uint8_t *row = ((const LoadMatrices *)lanes[8 * i + lane % 4 * 2 + k])->row;
                memcpy((uint8_t *)&((LoadMatrices *)lanes[lane])->x[i] + 2 * k, row + lane / 4 * 2, 2);
            }
}
} // namespace emulator
DEVICE void load_transposed(uint32_t (&x)[4], const void *row) {
    if (shared_address(row) % 16) emulator::fail("ldmatrix of %u: not a multiple of 16", shared_address(row));
    emulator::LoadMatrices mine{x, (const uint8_t *)row};
    emulator::meet(0xffffffffu, "ldmatrix", emulator::load_transposed, &mine);
}

DEVICE uint4 load_streamed(const void *global) {
    if ((uintptr_t)global % 16) emulator::fail("load_streamed of %p: not a multiple of 16", global);
    return *(const uint4 *)global;
}

DEVICE uint32_t count_arrival(uint32_t *counter) { return atomicAdd(counter, 1u); }

DEVICE float exp2_approx(float x) { return exp2f(x); }
DEVICE bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
DEVICE uint32_t shuffle_from(uint32_t x, int from) { return __shfl_sync(0xffffffffu, x, from); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
