// The emulator's threads: every CUDA thread is a fiber with a stack of its own. Fibers of a block
// take turns; blocks run one after the other. Whoever must wait for others gives its turn away.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct uint3 {
    uint32_t x, y, z;
};

// Where the static shared arrays of this library lie, if it has any.
extern uint8_t __start_ponder_shared[] __attribute__((weak, visibility("hidden")));
extern uint8_t __stop_ponder_shared[] __attribute__((weak, visibility("hidden")));

namespace emulator {

constexpr uint32_t WARP = 32;
constexpr uint32_t MAX_THREADS = 1024;
constexpr uint32_t NUM_BARRIERS = 16;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t PAGE_BYTES = 4096;
constexpr size_t MAX_SHARED_BYTES = 227 << 10;
// Written behind a block's dynamic shared memory; damage there is an overrun.
constexpr size_t SHARED_CANARY_BYTES = 1024;
constexpr uint8_t CANARY = 0xA5;
// What nobody wrote reads as NaN.
constexpr uint8_t GARBAGE = 0xFF;

enum class State { Ready, Waiting, Polling, Done };

// A copy to shared memory that is under way until its thread waits for it.
struct AsyncCopy {
    void *target;
    const void *source;
    uint32_t nbytes;
    uint32_t group;
};

struct Thread {
    void *stack_pointer;
    uint8_t *stack;
    uint3 index;
    uint32_t linear;
    State state;
    // What it waits for, in words.
    const char *reason;
    // Brought to a block-wide vote, and what came of it.
    int vote, votes;
    uint32_t num_groups;
    std::vector<AsyncCopy> copies;
#if !defined(__x86_64__)
    ucontext_t context;
#endif
};

// What lanes of a warp do together: the last to come does it for all. `lanes[l]` is what lane l
// brought.
typedef void (*Collective)(void *const *lanes, uint32_t mask);

struct Meeting {
    Collective run;
    uint32_t mask, arrived;
    void *lanes[WARP];
};

struct Warp {
    uint32_t existing;
    std::vector<Meeting> meetings;
};

struct Barrier {
    // 0: everybody who has not left.
    uint32_t expected;
    uint32_t arrived;
    std::vector<Thread *> waiting;
};

typedef void (*Body)(void **args);

static struct {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    Barrier barriers[NUM_BARRIERS];
    // Whose turn comes, first in first out.
    Thread *ready[MAX_THREADS];
    uint32_t first_ready, num_ready;
    std::vector<Thread *> polling;
    bool has_progress;
    uint32_t num_threads, num_live;
    uint3 index, num_blocks, shape;
    uint8_t *shared;
    size_t shared_bytes;
    Body body;
    void **args;
    const char *kernel;
    bool has_failed;
    std::string message;
    void *main_stack_pointer;
#if !defined(__x86_64__)
    ucontext_t main_context;
#endif
    // Run after each block, by parts that keep state of a block (barriers in shared memory).
    std::vector<void (*)()> after_block;
} block;

static Thread *current = nullptr;

// ---- turns -------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) void ponder_switch(void **save, void *load);
asm(R"(
    .text
    .globl ponder_switch
    .hidden ponder_switch
    .type ponder_switch, @function
ponder_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ponder_switch, . - ponder_switch
)");
constexpr size_t SAVED_REGISTERS = 6;
static inline void to_main() { ponder_switch(&current->stack_pointer, block.main_stack_pointer); }
static inline void to_thread(Thread *t) { ponder_switch(&block.main_stack_pointer, t->stack_pointer); }
#else
static inline void to_main() { swapcontext(&current->context, &block.main_context); }
static inline void to_thread(Thread *t) { swapcontext(&block.main_context, &t->context); }
#endif

// Ends the launch with a message that tells where it was.
__attribute__((noinline, cold, format(printf, 1, 2))) static void fail(const char *format, ...) {
    char text[1024], place[256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    snprintf(place, sizeof place, "kernel %s, block (%u, %u, %u), thread %d: ", block.kernel,
        block.index.x, block.index.y, block.index.z, current ? (int)current->linear : -1);
    block.has_failed = true;
    block.message = std::string(place) + text;
    // Its turn never comes again.
    if (current) to_main();
}

static inline void wake(Thread *t) {
    t->state = State::Ready;
    block.ready[(block.first_ready + block.num_ready++) % MAX_THREADS] = t;
}

// Gives the turn away until somebody wakes this thread.
__attribute__((noinline)) static void wait(const char *reason) {
    current->state = State::Waiting;
    current->reason = reason;
    to_main();
}

__attribute__((noinline)) static void poll_once(const char *reason) {
    current->state = State::Polling;
    current->reason = reason;
    block.polling.push_back(current);
    to_main();
}

// Gives the turn away until `is_ready()` holds. When nobody else can go on, that is a deadlock.
template <class Condition> static void wait_until(Condition is_ready, const char *reason) {
    if (is_ready()) return;
    do poll_once(reason);
    while (!is_ready());
    block.has_progress = true;
}

// ---- meetings ----------------------------------------------------------------------------------

// The lanes of `mask` call this together; `run` sees what each brought.
__attribute__((noinline)) static void meet(
    uint32_t mask, const char *what, Collective run, void *brought) {
    Warp &warp = block.warps[current->linear / WARP];
    uint32_t lane = current->linear % WARP;
    mask &= warp.existing;
    if (!(mask >> lane & 1)) fail("%s with mask %08x, which leaves out the caller", what, mask);
    size_t at = 0;
    while (at < warp.meetings.size()
        && (warp.meetings[at].mask != mask || warp.meetings[at].run != run)) at++;
    if (at == warp.meetings.size()) warp.meetings.push_back(Meeting{run, mask, 0, {}});
    Meeting &meeting = warp.meetings[at];
    meeting.lanes[lane] = brought;
    meeting.arrived |= 1u << lane;
    if (meeting.arrived != mask) return wait(what);
    Meeting complete = meeting;
    warp.meetings.erase(warp.meetings.begin() + at);
    if (run) run(complete.lanes, mask);
    Thread *first = current - lane;
    for (uint32_t other = 0; other < WARP; other++)
        if (other != lane && (mask >> other & 1)) wake(first + other);
}

static void release(Barrier &barrier) {
    int votes = 0;
    for (Thread *t : barrier.waiting) votes += t->vote != 0;
    for (Thread *t : barrier.waiting) {
        t->votes = votes;
        if (t != current) wake(t);
    }
    barrier.waiting.clear();
    barrier.arrived = barrier.expected = 0;
}

static bool is_complete(const Barrier &barrier) {
    return barrier.arrived == (barrier.expected ? barrier.expected : block.num_live);
}

// A barrier of `count` threads (0: of all that have not left). Returns how many voted yes.
__attribute__((noinline)) static int join_barrier(
    uint32_t id, uint32_t count, bool waits, int vote, const char *what) {
    if (id >= NUM_BARRIERS) fail("%s: there are %u barriers, no barrier %u", what, NUM_BARRIERS, id);
    if (count % WARP) fail("%s: barrier %u of %u threads, not of whole warps", what, id, count);
    Barrier &barrier = block.barriers[id];
    if (barrier.arrived && barrier.expected != count)
        fail("%s: barrier %u of %u threads is in use for %u", what, id, count, barrier.expected);
    barrier.expected = count;
    barrier.arrived++;
    current->vote = vote;
    if (waits) barrier.waiting.push_back(current);
    if (is_complete(barrier)) release(barrier);
    else if (waits) wait(what);
    return current->votes;
}

} // namespace emulator
