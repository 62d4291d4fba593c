// Latent attention: where the parts of heads lie. A thread moves one value of a head; heads of all
// rows are counted through.

#include "rows.cuh"

// Sizes of a head.
struct LatentShape {
    uint32_t num_rows;
    uint32_t num_heads;
    // Elements of a query and key that are not rotated, and those that are.
    uint32_t nope;
    uint32_t rope;
    uint32_t v_dim;
};

// Heads with their rotated part first: `wide` has it last.
KERNEL latent_queries(const float *wide, float *q, LatentShape shape) {
    uint32_t head_dim = shape.nope + shape.rope;
    Place at(head_dim);
    if (at.row >= shape.num_rows * shape.num_heads) return;
    uint32_t source = at.part < shape.rope ? shape.nope + at.part : at.part - shape.rope;
    q[(size_t)at.row * head_dim + at.part] = wide[(size_t)at.row * head_dim + source];
}
EXPORT(latent_queries)

struct LatentSources {
    // [rows, latent_width]: the rotated part of a key, one for all heads, lies at its end.
    const float *latent;
    // The other part of keys and values; a head's begin `key_stride` and `value_stride` after those
    // of the head before.
    const float *keys;
    const float *values;
    uint32_t latent_width;
    uint32_t key_stride;
    uint32_t value_stride;
};

// Every head's key and value; values are padded with zeros.
KERNEL latent_keys_values(LatentSources from, float *k, float *v, LatentShape shape) {
    uint32_t head_dim = shape.nope + shape.rope;
    Place at(head_dim);
    if (at.row >= shape.num_rows * shape.num_heads) return;
    size_t row = at.row / shape.num_heads, target = (size_t)at.row * head_dim + at.part;
    k[target] = at.part < shape.rope ? from.latent[(row + 1) * from.latent_width - shape.rope + at.part]
                                      : from.keys[(size_t)at.row * from.key_stride + at.part - shape.rope];
    v[target] = at.part < shape.v_dim ? from.values[(size_t)at.row * from.value_stride + at.part] : 0.0f;
}
EXPORT(latent_keys_values)

// The first `v_dim` elements of each head.
KERNEL latent_values(const float *padded, float *out, LatentShape shape) {
    Place at(shape.v_dim);
    if (at.row >= shape.num_rows * shape.num_heads) return;
    out[(size_t)at.row * shape.v_dim + at.part] = padded[(size_t)at.row * (shape.nope + shape.rope) + at.part];
}
EXPORT(latent_values)

// Back to where the padded rows were.
KERNEL copy_values(const float *from, float *to, uint32_t num_values) {
    uint32_t i = thread_index();
    if (i < num_values) to[i] = from[i];
}
EXPORT(copy_values)
