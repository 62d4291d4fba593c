// What the sampling kernels share: how a row's logits are read and changed, and what they weigh.
//
// A slot is one request for a token or for logprobs. It has up to two views of a row of logits: one
// to draw from (biases, penalties, masks and a temperature applied) and the raw one, for logprobs.
// A vocabulary is cut into chunks of 1024, whose sums are the host's, and groups of four chunks,
// which one block reads.
#pragma once

#include "common.cuh"

#define CHUNK 1024
#define GROUP_CHUNKS 4
#define GROUP (CHUNK * GROUP_CHUNKS)
// Keeps the eight sums of each of four chunks in banks of their own.
#define CHUNK_STRIDE (CHUNK + 8)
#define GROUP_SHARED (CHUNK_STRIDE * GROUP_CHUNKS)
#define NUM_VIEWS 2
#define VIEW_DRAW 0
#define VIEW_RAW 1

// Values by their distance to the largest: 32 buckets for each power of two from 2^-17 on, so that
// rows of any spread are told apart. Further away than MAX_DISTANCE nothing weighs.
#define MAX_DISTANCE 87.0f
#define BUCKET_SHIFT 18
// One less than the bits of 2^-17, shifted.
#define BUCKET_BASE 3519u
// Of MAX_DISTANCE.
#define LAST_POSITIVE 748u
#define LAST_BUCKET 751u
#define NUM_BUCKETS 752

#define FLAG_DRAW 1u
#define FLAG_RAW 2u
// min-p, top-k or top-p.
#define FLAG_FILTERED 4u
#define NOWHERE 0xffffffffu

#define STATUS_TOKEN 0u
#define STATUS_NOT_FINITE 1u
#define STATUS_NOTHING_ALLOWED 2u
// The host's sampler decides.
#define STATUS_HOST 3u

#define MAX_TOP 32

// As `SlotSpec` in sample/pack.rs.
struct SlotSpec {
    uint32_t row, flags;
    float temperature, top_p, min_p;
    uint32_t top_k;
    // Likeliest tokens that are reported, and the token whose raw logit is.
    uint32_t num_top, token_id;
    double uniform;
    // Word of the input where they begin, or NOWHERE.
    uint32_t mask, changes;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t padding;
};

struct Change {
    uint32_t token_id;
    // A bias, how often the output has the token, or nothing.
    uint32_t value;
};

// What of a view is known once its largest logit is.
struct Task {
    // Subtracted before the temperature divides.
    float offset;
    // The largest, cooled.
    float max;
    uint32_t is_active;
    uint32_t padding;
};

// As `Header` in sample/read.rs.
struct Header {
    uint32_t token_id, status;
    // Of the token drawn, and of the token asked for.
    float logit, asked_logit;
    double raw_sum;
    float raw_max;
    uint32_t raw_status;
};

struct Top {
    uint32_t token_id;
    float logit;
};

// As `SampleArgs` in sample/mod.rs. T = slots * NUM_VIEWS.
struct SampleArgs {
    // [rows, vocab]
    const float *logits;
    const uint32_t *input;
    // [T, num_chunks]: the largest of a chunk.
    uint64_t *keys;
    // [T, num_chunks]: what a chunk weighs.
    double *sums;
    // [T, NUM_BUCKETS]
    uint32_t *histogram;
    // [T]
    Task *tasks;
    uint32_t *arrivals;
    // [num_slots], and [num_slots, MAX_TOP] behind it.
    Header *headers;
    uint32_t vocab, num_slots, num_chunks, num_groups;
};

// ---- numbers -----------------------------------------------------------------------------------

// Keeps the order of IEEE's total order.
DEVICE uint32_t ordered(float x) {
    uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float of_ordered(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
// Larger values first, then lower ids.
DEVICE uint64_t key_of(uint32_t high, uint32_t token_id) { return (uint64_t)high << 32 | (uint32_t)~token_id; }
DEVICE uint32_t id_of(uint64_t key) { return ~(uint32_t)key; }
DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
DEVICE bool is_finite(double x) {
    return ((uint64_t)__double_as_longlong(x) >> 52 & 0x7ff) != 0x7ff;
}

// e^x as the host computes it, bit for bit.
DEVICE float exp_of(float x) {
    const float ROUND = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = __fmaf_rn(x, 1.44269504f, ROUND);
    float n = __fsub_rn(shifted, ROUND);
    float r = __fmaf_rn(n, -0.6933594f, x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 5e-1f);
    float y = __fadd_rn(__fmaf_rn(__fmul_rn(p, r), r, r), 1.0f);
    uint32_t power = (__float_as_uint(shifted) - __float_as_uint(ROUND) + 127u) << 23;
    return __fmul_rn(y, __uint_as_float(power));
}

// What a logit weighs beside the largest, which weighs 1.
DEVICE float weight_of(float x, float max) {
    float shifted = __fsub_rn(x, max);
    return shifted < -MAX_DISTANCE ? 0.0f : exp_of(shifted);
}

// Of values that are no larger than `max`: larger values have no larger bucket.
DEVICE uint32_t bucket_of(float x, float max) {
    float distance = __fsub_rn(max, x);
    uint32_t place = __float_as_uint(distance) >> BUCKET_SHIFT;
    uint32_t bucket = place > BUCKET_BASE ? place - BUCKET_BASE : 0;
    return distance <= MAX_DISTANCE ? bucket : LAST_BUCKET;
}
// No distance in the bucket is as large.
DEVICE float end_of_bucket(uint32_t bucket) { return __uint_as_float((bucket + 1 + BUCKET_BASE) << BUCKET_SHIFT); }

// ---- views -------------------------------------------------------------------------------------

struct View {
    const float *logits;
    const uint32_t *mask;
    // [3 * num_groups + 1]: where a group's biases, counts and ends begin among `changes`.
    const uint32_t *offsets;
    const Change *changes;
    const SlotSpec *spec;
    uint32_t vocab;
    float temperature, offset;
};

DEVICE const SlotSpec *spec_of(const SampleArgs &args, uint32_t slot) {
    return (const SlotSpec *)args.input + slot;
}

DEVICE bool has_view(const SlotSpec *spec, uint32_t which) {
    return spec->flags & (which == VIEW_RAW ? FLAG_RAW : FLAG_DRAW);
}

// Whether the likeliest tokens of a view are looked for.
DEVICE bool has_candidates(const SlotSpec *spec, uint32_t which) {
    return which == VIEW_RAW ? spec->num_top > 0 : (spec->flags & FLAG_FILTERED) != 0;
}

DEVICE View view_of(const SampleArgs &args, uint32_t slot, uint32_t which) {
    const SlotSpec *spec = spec_of(args, slot);
    View view;
    view.spec = spec;
    view.vocab = args.vocab;
    view.logits = args.logits + (uint64_t)spec->row * args.vocab;
    bool is_draw = which == VIEW_DRAW;
    view.mask = is_draw && spec->mask != NOWHERE ? args.input + spec->mask : nullptr;
    bool has_changes = is_draw && spec->changes != NOWHERE;
    view.offsets = has_changes ? args.input + spec->changes : nullptr;
    uint32_t table = 3 * args.num_groups + 1;
    // Pairs of words lie at even places.
    view.changes = has_changes ? (const Change *)(view.offsets + table + (table & 1)) : nullptr;
    view.temperature = is_draw ? spec->temperature : 1.0f;
    view.offset = 0.0f;
    return view;
}

DEVICE float cool(const View &view, float x) {
    if (view.temperature == 1.0f && view.offset == 0.0f) return x;
    return __fdiv_rn(__fsub_rn(x, view.offset), view.temperature);
}

// Four logits of the row from token `first` on, a multiple of 4; negative infinity past the last.
DEVICE void load_four(const View &view, uint32_t first, float (&x)[4]) {
    if (view.vocab % 4 == 0) {
        float4 four = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (first < view.vocab) four = *(const float4 *)(view.logits + first);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        return;
    }
    #pragma unroll
    for (uint32_t i = 0; i < 4; i++) x[i] = first + i < view.vocab ? view.logits[first + i] : -INFINITY;
}

DEVICE void mask_four(const View &view, uint32_t first, float (&x)[4]) {
    if (!view.mask || first >= view.vocab) return;
    uint32_t bits = view.mask[first / 32] >> (first % 32);
    #pragma unroll
    for (uint32_t i = 0; i < 4; i++) x[i] = bits >> i & 1 ? x[i] : -INFINITY;
}

// Where a token of a group lies in shared memory.
DEVICE uint32_t shared_place(uint32_t within) { return within + within / CHUNK * (CHUNK_STRIDE - CHUNK); }

// A legal change may carry a logit past what f32 can hold: it stays at the end of the range.
DEVICE float within_range(float x) {
    const float LARGEST = 3.40282347e38f;
    x = x < -LARGEST ? -LARGEST : x;
    return x > LARGEST ? LARGEST : x;
}

DEVICE float penalised(const SlotSpec *spec, float x, uint32_t count) {
    x = x > 0.0f ? __fdiv_rn(x, spec->repetition_penalty) : __fmul_rn(x, spec->repetition_penalty);
    if (count > 0) {
        float by_count = __fmul_rn(spec->frequency_penalty, (float)count);
        x = __fsub_rn(x, __fadd_rn(spec->presence_penalty, by_count));
    }
    return within_range(x);
}

// Brings a group's logits to shared memory and changes them: biases, then penalties, then ends.
// Masks come when they are read. All threads of a block call, and all see the result.
DEVICE void load_changed(const View &view, uint32_t group, float *values) {
    uint32_t first = group * GROUP;
    __syncthreads();
    for (uint32_t i = threadIdx.x * 4; i < GROUP; i += blockDim.x * 4) {
        float x[4];
        load_four(view, first + i, x);
        *(float4 *)(values + shared_place(i)) = make_float4(x[0], x[1], x[2], x[3]);
    }
    const uint32_t *offsets = view.offsets + 3 * group;
    #pragma unroll
    for (uint32_t kind = 0; kind < 3; kind++) {
        __syncthreads();
        for (uint32_t i = offsets[kind] + threadIdx.x; i < offsets[kind + 1]; i += blockDim.x) {
            Change change = view.changes[i];
            float *x = values + shared_place(change.token_id - first);
            if (kind == 0) *x = within_range(__fadd_rn(*x, __uint_as_float(change.value)));
            else if (kind == 1) *x = penalised(view.spec, *x, change.value);
            else *x = -INFINITY;
        }
    }
    __syncthreads();
}

// Four logits as the view has them; of a view with changes, from what `load_changed` brought.
DEVICE void read_four(const View &view, uint32_t group, uint32_t within, const float *values, float (&x)[4]) {
    if (view.offsets) {
        float4 four = *(const float4 *)(values + shared_place(within));
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
        load_four(view, group * GROUP + within, x);
    }
    mask_four(view, group * GROUP + within, x);
}

// One logit as the view has it; as above.
DEVICE float read_one(const View &view, uint32_t group, uint32_t within, const float *values) {
    uint32_t id = group * GROUP + within;
    if (id >= view.vocab) return -INFINITY;
    if (view.mask && !(view.mask[id / 32] >> (id % 32) & 1)) return -INFINITY;
    return view.offsets ? values[shared_place(within)] : view.logits[id];
}
