// The twins of the functions in `hopper.cuh`. What the device does while threads go on is done here
// as late as it may be: a copy when its barrier is asked, a product when its group is waited for.
// Who reads too early, or writes what is still in use, gets a wrong result.
#pragma once

namespace emulator {

// ---- barriers in shared memory -----------------------------------------------------------------

// What the eight bytes of a barrier mean here.
struct Mbarrier {
    uint16_t count, pending;
    int32_t bytes : 31;
    uint32_t parity : 1;
};
static_assert(sizeof(Mbarrier) == 8);
constexpr uint16_t MAX_ARRIVALS = 1024;
constexpr uint32_t MAX_PENDING_BYTES = (1 << 20) - 1;

struct BulkCopy {
    void *shared;
    const void *global;
    uint32_t nbytes;
    Mbarrier *barrier;
};
struct BulkStore {
    void *global;
    const void *shared;
    uint32_t nbytes, group;
};
struct WarpgroupProduct {
    float *d;
    const uint32_t *a;
    uint64_t b;
    uint32_t num_columns, keeps, group;
};

// What is under way in a block.
static std::vector<BulkCopy> bulk_copies;
static std::vector<BulkStore> bulk_stores[MAX_THREADS];
static std::vector<WarpgroupProduct> products[MAX_THREADS];
static uint32_t num_product_groups[MAX_THREADS], num_store_groups[MAX_THREADS];

static void end_of_block() {
    if (!block.has_failed && !bulk_copies.empty()) fail("ends with %zu bulk copies under way", bulk_copies.size());
    bulk_copies.clear();
    for (uint32_t i = 0; i < MAX_THREADS; i++) {
        if (!block.has_failed && !bulk_stores[i].empty()) fail("thread %u ends with bulk stores under way", i);
        if (!block.has_failed && !products[i].empty()) fail("thread %u ends with products under way", i);
        bulk_stores[i].clear();
        products[i].clear();
        num_product_groups[i] = num_store_groups[i] = 0;
    }
}
static const bool HAS_END_OF_BLOCK = (block.after_block.push_back(end_of_block), true);

static Mbarrier *mbarrier_of(uint64_t *address) {
    shared_address(address);
    Mbarrier *barrier = (Mbarrier *)address;
    if (barrier->count == 0 || barrier->count > MAX_ARRIVALS) fail("a barrier in shared memory that nobody initialised");
    return barrier;
}

static void end_phase_if_complete(Mbarrier *barrier) {
    if (barrier->pending || barrier->bytes) return;
    barrier->pending = barrier->count;
    barrier->parity ^= 1;
    block.has_progress = true;
}

static void arrive(Mbarrier *barrier) {
    if (barrier->pending == 0) fail("more arrivals at a barrier than its %u", barrier->count);
    barrier->pending--;
    end_phase_if_complete(barrier);
}

static void run_copies(Mbarrier *barrier) {
    std::vector<BulkCopy> others;
    std::vector<BulkCopy> all;
    all.swap(bulk_copies);
    for (const BulkCopy &copy : all) {
        if (copy.barrier != barrier) {
            others.push_back(copy);
            continue;
        }
        memcpy(copy.shared, copy.global, copy.nbytes);
        barrier->bytes -= copy.nbytes;
        end_phase_if_complete(barrier);
    }
    bulk_copies.swap(others);
}

static void check_bulk(const void *shared, const void *global, uint32_t nbytes) {
    uint32_t address = shared_address(shared);
    if (address % 16 || (uintptr_t)global % 16 || nbytes % 16 || nbytes == 0)
        fail("a bulk copy of %u bytes between %x and %p: not multiples of 16", nbytes, address, global);
    if (is_dynamic_shared(shared) && address + nbytes > block.shared_bytes)
        fail("a bulk copy of %u bytes at %u, past the %zu bytes of shared memory", nbytes, address, block.shared_bytes);
}

// ---- products ----------------------------------------------------------------------------------

// Element (column, k) of b: the address pattern is linear, then the swizzle moves 16-byte chunks by
// the line within an atom.
static float element_of_b(uint64_t descriptor, uint32_t column, uint32_t k) {
    uint32_t start = (descriptor & 0x3fff) << 4, atom = (descriptor >> 32 & 0x3fff) << 4;
    uint32_t at = start + column / 8 * atom + column % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    return of_bf16(*(const uint16_t *)shared_pointer(at));
}

static void check_descriptor(uint64_t descriptor, uint32_t num_columns) {
    if (descriptor >> 62 != 1) fail("a descriptor %llx of another swizzle than 128 bytes", (unsigned long long)descriptor);
    if (descriptor >> 49 & 7) fail("a descriptor with a base offset");
    if (descriptor & 0x1ffff0000000c000ull & ~(0x3fffull << 16) & ~(0x3fffull << 32) & ~(7ull << 49))
        fail("a descriptor %llx with bits that mean nothing", (unsigned long long)descriptor);
    uint32_t start = (descriptor & 0x3fff) << 4, atom = (descriptor >> 32 & 0x3fff) << 4;
    // A step of 16 inputs moves the start by up to 96 bytes within the first line.
    if (start % 1024 > 96) fail("b at %u does not begin with an atom", start);
    if (start / 1024 * 1024 + (num_columns / 8 - 1) * atom + 1024 > block.shared_bytes) fail("b passes the end of shared memory");
}

// One warp's 16 rows. `lanes` are the products of the lanes, one each.
static void multiply_warpgroup(void *const *lanes, uint32_t mask) {
    if (mask != 0xffffffffu) return fail("wgmma by lanes %08x alone", mask);
    const WarpgroupProduct *first = (const WarpgroupProduct *)lanes[0];
    check_descriptor(first->b, first->num_columns);
    static float a[16][16], b[256][16];
    for (uint32_t column = 0; column < first->num_columns; column++)
        for (uint32_t k = 0; k < 16; k++) b[column][k] = element_of_b(first->b, column, k);
    for (uint32_t lane = 0; lane < WARP; lane++) {
        const WarpgroupProduct *mine = (const WarpgroupProduct *)lanes[lane];
        if (mine->b != first->b || mine->keeps != first->keeps || mine->num_columns != first->num_columns)
            return fail("wgmma: lane %u has another descriptor or mode than lane 0", lane);
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t half = 0; half < 2; half++)
                a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + half] = of_bf16(mine->a[i] >> (16 * half));
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        const WarpgroupProduct *mine = (const WarpgroupProduct *)lanes[lane];
        for (uint32_t i = 0; i < mine->num_columns / 2; i++) {
            uint32_t row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = mine->keeps ? mine->d[i] : 0.0f;
            for (uint32_t k = 0; k < 16; k++) sum = fmaf(a[row][k], b[column][k], sum);
            mine->d[i] = sum;
        }
    }
}

static void start_product(float *d, uint32_t num_columns, const uint32_t *a, uint64_t b, uint32_t keeps) {
    uint32_t thread = current->linear;
    products[thread].push_back(WarpgroupProduct{d, a, b, num_columns, keeps, num_product_groups[thread]});
}

static void finish_products(uint32_t pending) {
    uint32_t thread = current->linear;
    std::vector<WarpgroupProduct> &mine = products[thread];
    size_t count = 0;
    while (count < mine.size() && mine[count].group + pending < num_product_groups[thread]) {
        meet(0xffffffffu, "wgmma", multiply_warpgroup, &mine[count]);
        count++;
    }
    // All four warps are there before any of them goes on.
    mine.erase(mine.begin(), mine.begin() + count);
}

// ---- matrices ----------------------------------------------------------------------------------

struct StoreMatrices {
    void *shared;
    const uint32_t *x;
};
static void store_matrices(void *const *lanes, uint32_t mask) {
    if (mask != 0xffffffffu) return fail("stmatrix by lanes %08x alone", mask);
    for (uint32_t matrix = 0; matrix < 4; matrix++)
        for (uint32_t column = 0; column < 8; column++) {
            uint8_t *line = (uint8_t *)((StoreMatrices *)lanes[8 * matrix + column])->shared;
            if (shared_address(line) % 16) return fail("stmatrix at %u: not a multiple of 16", shared_address(line));
            for (uint32_t row = 0; row < 8; row++) {
                uint32_t pair = ((StoreMatrices *)lanes[4 * row + column / 2])->x[matrix];
                uint16_t value = pair >> (16 * (column % 2));
                memcpy(line + 2 * row, &value, 2);
            }
        }
}

} // namespace emulator

DEVICE void mbarrier_init(uint64_t *barrier, uint32_t count) {
    if (shared_address(barrier) % 8) emulator::fail("a barrier that is not aligned");
    *(emulator::Mbarrier *)barrier = emulator::Mbarrier{(uint16_t)count, (uint16_t)count, 0, 0};
}
DEVICE void mbarrier_fence_init() {}
DEVICE void mbarrier_arrive(uint64_t *barrier) { emulator::arrive(emulator::mbarrier_of(barrier)); }
DEVICE void mbarrier_arrive_expect(uint64_t *barrier, uint32_t nbytes) {
    emulator::Mbarrier *state = emulator::mbarrier_of(barrier);
    if (state->bytes + nbytes > emulator::MAX_PENDING_BYTES) emulator::fail("a barrier of %u bytes", nbytes);
    state->bytes += nbytes;
    emulator::arrive(state);
}
DEVICE void mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    emulator::Mbarrier *state = emulator::mbarrier_of(barrier);
    auto is_over = [=] {
        if (state->parity != parity) return true;
        emulator::run_copies(state);
        return state->parity != parity;
    };
    emulator::wait_until(is_over, "a barrier in shared memory");
}
DEVICE void bulk_copy(void *shared, const void *global, uint32_t nbytes, uint64_t *barrier) {
    emulator::check_bulk(shared, global, nbytes);
    emulator::bulk_copies.push_back(emulator::BulkCopy{shared, global, nbytes, emulator::mbarrier_of(barrier)});
}
DEVICE void bulk_store(void *global, const void *shared, uint32_t nbytes) {
    emulator::check_bulk(shared, global, nbytes);
    uint32_t thread = emulator::current->linear, group = emulator::num_store_groups[thread];
    emulator::bulk_stores[thread].push_back(emulator::BulkStore{global, shared, nbytes, group});
}
DEVICE void bulk_store_commit() { emulator::num_store_groups[emulator::current->linear]++; }
template <int PENDING> static inline void bulk_store_wait_read() {
    uint32_t thread = emulator::current->linear;
    std::vector<emulator::BulkStore> &mine = emulator::bulk_stores[thread];
    size_t count = 0;
    for (; count < mine.size() && mine[count].group + PENDING < emulator::num_store_groups[thread]; count++)
        memcpy(mine[count].global, mine[count].shared, mine[count].nbytes);
    mine.erase(mine.begin(), mine.begin() + count);
}
DEVICE void fence_async_shared() {}

DEVICE void named_barrier_sync(uint32_t id, uint32_t count) { emulator::join_barrier(id, count, true, 0, "a named barrier"); }
template <int COUNT> static inline void registers_grow() { static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256); }
template <int COUNT> static inline void registers_shrink() { static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256); }
DEVICE uint32_t opaque(uint32_t x) { return x; }
DEVICE void store_matrices_transposed(void *shared, const uint32_t (&x)[4]) {
    emulator::StoreMatrices mine{shared, x};
    emulator::meet(0xffffffffu, "stmatrix", emulator::store_matrices, &mine);
}

DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { emulator::num_product_groups[emulator::current->linear]++; }
template <int PENDING> static inline void wgmma_wait() { emulator::finish_products(PENDING); }
template <int COUNT> static inline void wgmma_hold(float (&)[COUNT]) {}
template <int SUMS> static inline void wgmma_bf16(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
    emulator::start_product(d, 2 * SUMS, a, b, 1);
}
template <int SUMS> static inline void wgmma_bf16_first(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
    emulator::start_product(d, 2 * SUMS, a, b, 0);
}
