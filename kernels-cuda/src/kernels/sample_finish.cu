// Sampling, third part: one block a view draws the token, or lists the likeliest ones.
#include "sample_list.cuh"

// Most chunks of a vocabulary.
#define MAX_CHUNKS LIST_THREADS
// Candidates looked at first when only the most likely tokens can be drawn, and how their number
// grows.
#define NUCLEUS_FIRST 64
#define NUCLEUS_GROWTH 8
// Weights that are in registers together.
#define AHEAD 8

// What one thread finds and all others need.
struct Found {
    double mass, prefix;
    uint32_t len, first_below, token_id, chunk, largest_id;
};

// ---- sums in order: one thread calls -----------------------------------------------------------

DEVICE double sum_in_order(const double *sums, uint32_t len) {
    double total = 0.0;
    for (uint32_t i = 0; i < len; i += AHEAD) {
        double next[AHEAD];
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) next[j] = i + j < len ? sums[i + j] : 0.0;
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) total = __dadd_rn(total, next[j]);
    }
    return total;
}

// The weight of a candidate: after `weigh_list`, the high half of its key.
DEVICE float weight_at(uint64_t key) { return __uint_as_float((uint32_t)(key >> 32)); }

// The sum of those among `len` candidates that weigh at least `floor`.
DEVICE double candidates_mass(const uint64_t *keys, uint32_t len, float floor) {
    double sum = 0.0;
    for (uint32_t i = 0; i < len; i += AHEAD) {
        float next[AHEAD];
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) next[j] = i + j < len ? weight_at(keys[i + j]) : 0.0f;
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) if (next[j] >= floor) sum = __dadd_rn(sum, (double)next[j]);
    }
    return sum;
}

// The shortest prefix of the candidates that reaches `mass`, or 0; `prefix` is what it weighs.
DEVICE uint32_t nucleus(const uint64_t *keys, uint32_t len, double mass, double *prefix) {
    double sum = 0.0;
    for (uint32_t i = 0; i < len; i += AHEAD) {
        float next[AHEAD];
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) next[j] = i + j < len ? weight_at(keys[i + j]) : 0.0f;
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (i + j >= len) break;
            sum = __dadd_rn(sum, (double)next[j]);
            if (sum >= mass) {
                *prefix = sum;
                return i + j + 1;
            }
        }
    }
    *prefix = sum;
    return 0;
}

// Which of the candidates the cumulative weight `rest` falls on. All of them weigh something: a
// sliver that rounding leaves belongs to the last.
DEVICE uint32_t invert(const uint64_t *keys, uint32_t len, double rest) {
    for (uint32_t i = 0; i < len; i += AHEAD) {
        float next[AHEAD];
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) next[j] = i + j < len ? weight_at(keys[i + j]) : 0.0f;
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (i + j >= len) break;
            if (rest < (double)next[j]) return i + j;
            rest = __dsub_rn(rest, (double)next[j]);
        }
    }
    return len - 1;
}

// ---- a draw from all tokens --------------------------------------------------------------------

// Weights of chunk `chunk` to `weights`. All threads call.
DEVICE void weigh_chunk(const View &view, float max, uint32_t chunk, float *values, float *weights) {
    uint32_t group = chunk / GROUP_CHUNKS;
    if (view.offsets) load_changed(view, group, values);
    if (threadIdx.x < CHUNK / 4) {
        uint32_t within = chunk % GROUP_CHUNKS * CHUNK + threadIdx.x * 4;
        float x[4];
        read_four(view, group, within, values, x);
        #pragma unroll
        for (uint32_t i = 0; i < 4; i++) weights[threadIdx.x * 4 + i] = weight_of(cool(view, x[i]), max);
    }
    __syncthreads();
}

// Walks a chunk: its first token whose cumulative weight exceeds `rest`, or NOWHERE.
DEVICE uint32_t walk_chunk(const float *weights, uint32_t len, double *rest) {
    double left = *rest;
    for (uint32_t i = 0; i < len; i += AHEAD) {
        float next[AHEAD];
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) next[j] = i + j < len ? weights[i + j] : 0.0f;
        #pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (i + j < len && left < (double)next[j]) return i + j;
            left = __dsub_rn(left, (double)next[j]);
        }
    }
    *rest = left;
    return NOWHERE;
}

// The last token that weighs something. All threads call.
DEVICE uint32_t last_positive(const SampleArgs &args, const View &view, float max, float *values, Found *found) {
    if (threadIdx.x == 0) found->largest_id = 0;
    __syncthreads();
    for (uint32_t group = 0; group < args.num_groups; group++) {
        if (view.offsets) load_changed(view, group, values);
        for (uint32_t within = threadIdx.x * 4; within < GROUP; within += LIST_THREADS * 4) {
            float x[4];
            read_four(view, group, within, values, x);
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t id = group * GROUP + within + i;
                if (id < view.vocab && weight_of(cool(view, x[i]), max) > 0.0f) atomicMax(&found->largest_id, id);
            }
        }
    }
    __syncthreads();
    return found->largest_id;
}

// The first token whose cumulative weight exceeds `rest`. All threads call.
DEVICE uint32_t invert_all(
    const SampleArgs &args, const View &view, float max, const double *sums, double rest, float *values, Found *found) {
    __shared__ __align__(16) float weights[CHUNK];
    uint32_t chunk = 0;
    for (;;) {
        if (threadIdx.x == 0) {
            while (chunk < args.num_chunks && rest >= sums[chunk]) rest = __dsub_rn(rest, sums[chunk++]);
            found->chunk = chunk;
        }
        __syncthreads();
        chunk = found->chunk;
        if (chunk >= args.num_chunks) return last_positive(args, view, max, values, found);
        weigh_chunk(view, max, chunk, values, weights);
        if (threadIdx.x == 0) {
            uint32_t len = min(view.vocab - chunk * CHUNK, (uint32_t)CHUNK);
            uint32_t at = walk_chunk(weights, len, &rest);
            found->token_id = at == NOWHERE ? NOWHERE : chunk * CHUNK + at;
        }
        __syncthreads();
        if (found->token_id != NOWHERE) return found->token_id;
        chunk++;
    }
}

// ---- a draw from the likeliest tokens ----------------------------------------------------------

// The list's candidates carry their weights from here on. All threads call.
DEVICE void weigh_list(const List &list, float max) {
    for (uint32_t i = threadIdx.x; i < list.len; i += LIST_THREADS) {
        uint64_t key = list.keys[i];
        float weight = weight_of(of_ordered(key >> 32), max);
        list.keys[i] = (uint64_t)__float_as_uint(weight) << 32 | (uint32_t)key;
    }
    __syncthreads();
}

// At least `count` candidates with their weights; false when they do not fit.
DEVICE bool bring(List &list, const SampleArgs &args, const View &view, float max, uint32_t count) {
    uint32_t before = list.len;
    __syncthreads();
    if (!gather(list, args, view, max, count)) return false;
    // Those that were there already carry theirs.
    if (before == 0 || list.len != before) weigh_list(list, max);
    return true;
}

// What the `limit` likeliest tokens of at least `floor` weigh together, to `found->mass`. The list
// may have been replaced. False when they do not fit.
DEVICE bool find_mass(
    List &list, const SampleArgs &args, const View &view, float max, uint32_t limit, double total, Found *found) {
    float floor = view.spec->min_p;
    __syncthreads();
    if (limit < view.vocab) {
        if (!bring(list, args, view, max, limit)) return false;
        if (threadIdx.x == 0) found->mass = candidates_mass(list.keys, min(limit, list.len), floor);
    } else if (floor > 0.0f) {
        uint32_t len = gather_by_id(list, args, view, max, floor);
        if (len > LIST_CAPACITY) return false;
        if (threadIdx.x == 0) {
            double sum = 0.0;
            for (uint32_t i = 0; i < len; i++)
                sum = __dadd_rn(sum, (double)__uint_as_float((uint32_t)list.keys[i]));
            found->mass = sum;
        }
    } else if (threadIdx.x == 0) {
        found->mass = total;
    }
    __syncthreads();
    return true;
}

// How many of the first `count` candidates are kept by min-p; those that weigh nothing are not in
// the list, and lie behind all others. All threads call.
DEVICE uint32_t count_kept(const List &list, float floor, uint32_t count, Found *found) {
    uint32_t available = min(count, list.len);
    __syncthreads();
    if (threadIdx.x == 0) found->first_below = NOWHERE;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < available; i += LIST_THREADS)
        if (!(weight_at(list.keys[i]) >= floor)) atomicMin(&found->first_below, i);
    __syncthreads();
    uint32_t kept = found->first_below;
    if (kept == NOWHERE) kept = floor > 0.0f ? available : count;
    return max(kept, 1u);
}

// Draws as the host does: see `Sampler::draw`. A status; the token goes to `found`.
DEVICE uint32_t draw_filtered(
    List &list, const SampleArgs &args, const View &view, float max, double total, Found *found) {
    const SlotSpec *spec = view.spec;
    uint32_t limit = spec->top_k == 0 ? view.vocab : min(spec->top_k, view.vocab);
    uint32_t count = min((uint32_t)NUCLEUS_FIRST, limit);
    bool has_mass = false;
    // With few candidates all of them are gathered at once.
    bool has_limit = limit < LIST_CAPACITY / 4 && bring(list, args, view, max, limit);
    for (;;) {
        uint32_t wanted = has_limit ? limit : count;
        if (!bring(list, args, view, max, wanted)) return STATUS_HOST;
        uint32_t kept = count_kept(list, spec->min_p, count, found);
        bool is_whole = count == limit || kept < count;
        if (!is_whole && !has_mass) {
            if (!find_mass(list, args, view, max, limit, total, found)) return STATUS_HOST;
            has_mass = true;
            if (!bring(list, args, view, max, wanted)) return STATUS_HOST;
        }
        uint32_t positive = min(kept, list.len);
        if (threadIdx.x == 0) {
            double mass = is_whole ? candidates_mass(list.keys, positive, 0.0f) : found->mass;
            double target = __dmul_rn((double)spec->top_p, mass);
            uint32_t len = nucleus(list.keys, positive, target, &found->prefix);
            if (len == 0 && is_whole) len = positive;
            found->len = len;
            if (len > 0) {
                uint32_t at = invert(list.keys, len, __dmul_rn(spec->uniform, found->prefix));
                found->token_id = id_of(list.keys[at]);
            }
        }
        __syncthreads();
        if (found->len > 0) return STATUS_TOKEN;
        count = min(count * NUCLEUS_GROWTH, limit);
        __syncthreads();
    }
}

// ---- the kernel --------------------------------------------------------------------------------

DEVICE void finish_draw(
    List &list, const SampleArgs &args, uint32_t slot, const View &view, const Task &task, const double *sums,
    double total, Found *found) {
    uint32_t status = STATUS_TOKEN;
    if (!is_finite(total)) {
        status = STATUS_NOT_FINITE;
    } else if (view.spec->flags & FLAG_FILTERED) {
        open_list(list, args, slot * NUM_VIEWS + VIEW_DRAW, view, task.max);
        status = draw_filtered(list, args, view, task.max, total, found);
    } else {
        double rest = __dmul_rn(view.spec->uniform, total);
        uint32_t token_id = invert_all(args, view, task.max, sums, rest, list.values, found);
        if (threadIdx.x == 0) found->token_id = token_id;
    }
    if (threadIdx.x != 0) return;
    Header *header = args.headers + slot;
    header->status = status;
    if (status != STATUS_TOKEN) return;
    header->token_id = found->token_id;
    header->logit = view.logits[found->token_id];
}

DEVICE void finish_raw(
    List &list, const SampleArgs &args, uint32_t slot, const View &view, const Task &task, double total) {
    uint32_t num_top = min(view.spec->num_top, view.vocab);
    uint32_t status = STATUS_TOKEN;
    if (num_top > 0 && is_finite(total)) {
        open_list(list, args, slot * NUM_VIEWS + VIEW_RAW, view, task.max);
        if (!gather(list, args, view, task.max, num_top)) status = STATUS_HOST;
    }
    if (status == STATUS_TOKEN && threadIdx.x < num_top && is_finite(total)) {
        Top *top = (Top *)(args.headers + args.num_slots) + slot * MAX_TOP + threadIdx.x;
        uint64_t key = list.keys[threadIdx.x];
        *top = Top{id_of(key), of_ordered(key >> 32)};
    }
    if (threadIdx.x != 0) return;
    args.headers[slot].raw_sum = total;
    args.headers[slot].raw_status = status;
}

// blocks (1, slots, views); dynamic shared memory for LIST_CAPACITY keys
KERNEL __launch_bounds__(LIST_THREADS, 1) sample_finish(SampleArgs args) {
    DYNAMIC_SHARED(keys);
    __shared__ __align__(16) float values[GROUP_SHARED];
    __shared__ double sums[MAX_CHUNKS];
    __shared__ uint32_t up_to[NUM_BUCKETS];
    __shared__ uint16_t chunk_buckets[MAX_CHUNKS], chunks[MAX_CHUNKS];
    __shared__ uint32_t num_pushed, num_chunks, last;
    __shared__ double shared_total;
    __shared__ Found found;
    uint32_t slot = blockIdx.y, which = blockIdx.z;
    if (!has_view(spec_of(args, slot), which)) return;
    uint32_t index = slot * NUM_VIEWS + which;
    Task task = args.tasks[index];
    if (!task.is_active) return;
    View view = view_of(args, slot, which);
    view.offset = task.offset;

    for (uint32_t c = threadIdx.x; c < args.num_chunks; c += LIST_THREADS)
        sums[c] = args.sums[index * args.num_chunks + c];
    __syncthreads();
    if (threadIdx.x == 0) shared_total = sum_in_order(sums, args.num_chunks);
    __syncthreads();
    double total = shared_total;
    List list = {(uint64_t *)keys, values, up_to, chunk_buckets, chunks, &num_pushed, &num_chunks, &last, 0, 0};
    list.last_bucket = which == VIEW_RAW ? LAST_BUCKET : LAST_POSITIVE;
    if (which == VIEW_RAW) finish_raw(list, args, slot, view, task, total);
    else finish_draw(list, args, slot, view, task, sums, total, &found);
}
EXPORT(sample_finish)
