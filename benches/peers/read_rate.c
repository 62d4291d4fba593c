/* The rate at which threads read memory: `read_rate THREADS` prints bytes a second, the best of
 * PASSES passes, each thread over a buffer of its own. Pages are written first, so that none is
 * the shared zero page, and huge where the system has them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

/* Of all threads together: more than caches hold. */
#define TOTAL_BYTES ((size_t)1 << 30)
#define PASSES 7
#define STREAMS 8

static pthread_barrier_t barrier;
static size_t buffer_bytes;
static volatile uint64_t sink;

static uint64_t *new_buffer(void) {
    uint64_t *buffer = mmap(NULL, buffer_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    madvise(buffer, buffer_bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < buffer_bytes / 8; i++) buffer[i] = i;
    return buffer;
}

/* Sums several regions at once: a core reads faster from more than one. */
static uint64_t sum(const uint64_t *buffer) {
    const size_t length = buffer_bytes / 8 / STREAMS, width = 16;
    uint64_t sums[STREAMS][16] = {{0}};
    for (size_t i = 0; i + width <= length; i += width)
        for (int s = 0; s < STREAMS; s++)
            for (size_t lane = 0; lane < width; lane++)
                sums[s][lane] += buffer[s * length + i + lane];
    uint64_t total = 0;
    for (int s = 0; s < STREAMS; s++)
        for (size_t lane = 0; lane < width; lane++) total += sums[s][lane];
    return total;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

struct pass {
    double started, ended;
};

/* Each thread takes its own times: on a machine whose cores are all busy nobody else could. */
static void *reads(void *passes) {
    struct pass *own = passes;
    const uint64_t *buffer = new_buffer();
    for (int i = 0; i < PASSES; i++) {
        pthread_barrier_wait(&barrier);
        own[i].started = now();
        sink += sum(buffer);
        own[i].ended = now();
    }
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > 1024) return 2;
    buffer_bytes = TOTAL_BYTES / threads;
    pthread_t *handles = calloc(threads, sizeof *handles);
    struct pass *passes = calloc((size_t)threads * PASSES, sizeof *passes);
    pthread_barrier_init(&barrier, NULL, threads);
    for (int i = 0; i < threads; i++)
        pthread_create(&handles[i], NULL, reads, passes + i * PASSES);
    for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL);
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        double started = passes[pass].started, ended = 0;
        for (int i = 0; i < threads; i++) {
            struct pass of = passes[i * PASSES + pass];
            if (of.started < started) started = of.started;
            if (of.ended > ended) ended = of.ended;
        }
        double rate = (double)threads * buffer_bytes / (ended - started);
        if (rate > best) best = rate;
    }
    printf("%.0f\n", best);
    return 0;
}
