// The emulator's launches: blocks one after the other, and what this library exports.
#pragma once

#include <utility>

#include "emulator_fibers.hpp"

namespace emulator {

// ---- blocks ------------------------------------------------------------------------------------

static void thread_main() {
    block.body(block.args);
    current->state = State::Done;
    block.num_live--;
    Barrier &all = block.barriers[0];
    if (block.num_live && all.arrived && all.expected == 0 && is_complete(all)) release(all);
    to_main();
    abort();
}

static void start_thread(Thread *t) {
    t->copies.clear();
    t->num_groups = 0;
#if defined(__x86_64__)
    void **top = (void **)(t->stack + STACK_BYTES);
    // As if called: the return address lies 8 past a multiple of 16.
    *--top = nullptr;
    *--top = (void *)thread_main;
    for (size_t i = 0; i < SAVED_REGISTERS; i++) *--top = nullptr;
    t->stack_pointer = top;
#else
    getcontext(&t->context);
    t->context.uc_stack.ss_sp = t->stack + PAGE_BYTES;
    t->context.uc_stack.ss_size = STACK_BYTES - PAGE_BYTES;
    t->context.uc_link = nullptr;
    makecontext(&t->context, thread_main, 0);
#endif
    wake(t);
}

static bool is_reversed() {
    static const char *order = getenv("PONDER_EMULATOR_ORDER");
    return order && !strcmp(order, "reverse");
}

static void report_deadlock() {
    Thread *first = nullptr;
    uint32_t count = 0;
    for (uint32_t i = 0; i < block.num_threads; i++) {
        Thread *t = &block.threads[i];
        if (t->state == State::Done) continue;
        if (!first) first = t;
        count++;
    }
    current = nullptr;
    fail("deadlock: %u of %u threads wait and %u have left; thread %u waits for %s", count,
        block.num_threads, block.num_threads - count, first->linear, first->reason);
}

static void take_turns() {
    for (;;) {
        while (block.num_ready) {
            Thread *t = block.ready[block.first_ready];
            block.first_ready = (block.first_ready + 1) % MAX_THREADS;
            block.num_ready--;
            current = t;
            to_thread(t);
            if (block.has_failed) return;
        }
        if (block.num_live == 0) return;
        if (block.polling.empty()) return report_deadlock();
        block.has_progress = false;
        std::vector<Thread *> polling;
        polling.swap(block.polling);
        for (Thread *t : polling) wake(t);
        for (size_t i = polling.size(); i > 0 && !block.has_failed; i--) {
            Thread *t = block.ready[block.first_ready];
            block.first_ready = (block.first_ready + 1) % MAX_THREADS;
            block.num_ready--;
            current = t;
            to_thread(t);
        }
        if (block.has_failed) return;
        if (!block.has_progress && !block.num_ready) return report_deadlock();
    }
}

static size_t static_shared_bytes() { return __stop_ponder_shared - __start_ponder_shared; }

// The page below a stack faults. Each is a mapping of its own, of which a process has a limited number
// (every kernel file is a library with its own stacks), so only stacks that are used have one.
static void guard_stacks() {
    static uint32_t num_guarded;
    for (; num_guarded < block.num_threads; num_guarded++)
        mprotect(block.threads[num_guarded].stack, PAGE_BYTES, PROT_NONE);
}

static void run_block() {
    guard_stacks();
    memset(block.shared, GARBAGE, block.shared_bytes);
    if (static_shared_bytes()) memset(__start_ponder_shared, GARBAGE, static_shared_bytes());
    memset(block.shared + block.shared_bytes, CANARY, SHARED_CANARY_BYTES);
    for (Barrier &barrier : block.barriers) barrier = Barrier{0, 0, {}};
    block.first_ready = block.num_ready = 0;
    block.polling.clear();
    block.num_live = block.num_threads;
    for (uint32_t w = 0; w * WARP < block.num_threads; w++) {
        uint32_t count = block.num_threads - w * WARP;
        block.warps[w].existing = count >= WARP ? 0xffffffffu : (1u << count) - 1;
        block.warps[w].meetings.clear();
    }
    for (uint32_t i = 0; i < block.num_threads; i++) {
        Thread *t = &block.threads[is_reversed() ? block.num_threads - 1 - i : i];
        t->linear = t - block.threads;
        t->index = uint3{t->linear, 0, 0};
        start_thread(t);
    }
    take_turns();
    current = nullptr;
    for (void (*hook)() : block.after_block) hook();
    if (block.has_failed) return;
    for (size_t i = 0; i < SHARED_CANARY_BYTES; i++)
        if (block.shared[block.shared_bytes + i] != CANARY)
            return fail("wrote %zu bytes past its %zu bytes of shared memory", i, block.shared_bytes);
}

// Tells which kernel reached for memory that is not there; then the process dies of it.
static void on_fault(int signal) {
    char text[512];
    int length = snprintf(text, sizeof text,
        "emulator: bad memory access in kernel %s, block (%u, %u, %u), thread %d\n",
        block.kernel ? block.kernel : "(none)", block.index.x, block.index.y, block.index.z,
        current ? (int)current->linear : -1);
    if (write(2, text, length) < 0) abort();
    ::signal(signal, SIG_DFL);
    raise(signal);
}

static void set_up() {
    if (block.shared) return;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    size_t nbytes = MAX_THREADS * STACK_BYTES;
    uint8_t *stacks = (uint8_t *)mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    for (uint32_t i = 0; i < MAX_THREADS; i++) block.threads[i].stack = stacks + i * STACK_BYTES;
    nbytes = MAX_SHARED_BYTES + SHARED_CANARY_BYTES;
    block.shared = (uint8_t *)mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    struct sigaction action = {};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}

// ---- launches ----------------------------------------------------------------------------------

struct Kernel {
    const char *name;
    Body body;
    std::vector<size_t> arg_sizes;
};

static std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

template <auto FUNCTION> struct Thunk;
template <class... P, void (*FUNCTION)(P...)> struct Thunk<FUNCTION> {
    template <size_t... I> static void spread(void **args, std::index_sequence<I...>) {
        FUNCTION(*(std::remove_cv_t<P> *)args[I]...);
    }
    static void call(void **args) { spread(args, std::index_sequence_for<P...>()); }
    static Kernel kernel(const char *name) { return Kernel{name, call, {sizeof(P)...}}; }
};

struct Registration {
    Registration(Kernel kernel) { kernels().push_back(kernel); }
};

static void check_launch(const Kernel &kernel, const size_t *arg_sizes, size_t num_args) {
    uint3 blocks = block.num_blocks;
    if (blocks.x > 0x7fffffffu || blocks.y > 65535 || blocks.z > 65535)
        fail("a grid of (%u, %u, %u) blocks", blocks.x, blocks.y, blocks.z);
    else if (block.num_threads == 0 || block.num_threads > MAX_THREADS)
        fail("blocks of %u threads", block.num_threads);
    else if (block.shared_bytes > MAX_SHARED_BYTES)
        fail("%zu bytes of shared memory", block.shared_bytes);
    else if (num_args != kernel.arg_sizes.size())
        fail("%zu arguments for %zu parameters", num_args, kernel.arg_sizes.size());
    else
        for (size_t i = 0; i < num_args; i++)
            if (arg_sizes[i] != kernel.arg_sizes[i])
                return fail("argument %zu has %zu bytes, its parameter %zu", i, arg_sizes[i],
                    kernel.arg_sizes[i]);
}

static void run_grid() {
    uint3 n = block.num_blocks;
    uint64_t total = (uint64_t)n.x * n.y * n.z;
    for (uint64_t i = 0; i < total && !block.has_failed; i++) {
        uint64_t at = is_reversed() ? total - 1 - i : i;
        block.index = uint3{(uint32_t)(at % n.x), (uint32_t)(at / n.x % n.y), (uint32_t)(at / n.x / n.y)};
        run_block();
    }
}

} // namespace emulator

// Whether this library has a kernel of that name.
extern "C" __attribute__((visibility("default"))) int ponder_emulator_has(const char *name) {
    for (const emulator::Kernel &kernel : emulator::kernels())
        if (!strcmp(kernel.name, name)) return 1;
    return 0;
}

struct PonderLaunch {
    uint32_t blocks[3], threads, shared_bytes;
    void **args;
    const size_t *arg_sizes;
    size_t num_args;
};

// Runs a kernel of this library: null, or why it failed (until the next launch). One call at a time.
extern "C" __attribute__((visibility("default"))) const char *ponder_emulator_launch(
    const char *name, const PonderLaunch *launch) {
    using namespace emulator;
    set_up();
    for (const Kernel &kernel : kernels()) {
        if (strcmp(kernel.name, name)) continue;
        block.kernel = kernel.name;
        block.body = kernel.body;
        block.args = launch->args;
        block.num_blocks = uint3{launch->blocks[0], launch->blocks[1], launch->blocks[2]};
        block.index = uint3{0, 0, 0};
        block.num_threads = launch->threads;
        block.shape = uint3{launch->threads, 1, 1};
        block.shared_bytes = launch->shared_bytes;
        block.has_failed = false;
        current = nullptr;
        check_launch(kernel, launch->arg_sizes, launch->num_args);
        if (!block.has_failed) run_grid();
        return block.has_failed ? block.message.c_str() : nullptr;
    }
    return "no such kernel";
}
