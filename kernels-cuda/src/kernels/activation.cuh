// What gated units, gates and logits compute of a number. One place: a product that ends in a gated
// unit gives the bits of a product followed by `activate`, so no operation here may be fused with a
// neighbour.
#pragma once

#include "common.cuh"

// As `product::glu_kind` counts them.
enum GluKind : uint32_t { GLU_SILU = 0, GLU_GELU_TANH = 1, GLU_CLAMPED_SWISH = 2 };

// x / (1 + exp(-y)). The quotient is within two units of the last place: one that is rounded takes
// a branch for each value, and gated units of many rows would wait for it. The divisor is at least
// 1; where it is infinite, the quotient is zero.
DEVICE float over_sigmoid_divisor(float x, float y) { return __fdividef(x, __fadd_rn(1.0f, expf(-y))); }

DEVICE float sigmoid_of(float x) { return over_sigmoid_divisor(1.0f, x); }

DEVICE float silu_of(float x) { return over_sigmoid_divisor(x, x); }

// The tanh form of GELU: x * sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
DEVICE float gelu_tanh_of(float x) {
    const float SQRT_2_OVER_PI = 0.7978846f;
    float cubic = __fmaf_rn(__fmul_rn(0.044715f, x), x, 1.0f);
    float u = __fmul_rn(__fmul_rn(SQRT_2_OVER_PI, x), cubic);
    return over_sigmoid_divisor(x, __fmul_rn(2.0f, u));
}

// x * sigmoid(1.702 x) * (up + 1) of clamped values. Comparisons, since fminf would hide what is not a number.
DEVICE float clamped_swish_of(float gate, float up) {
    const float LIMIT = 7.0f, SLOPE = 1.702f;
    float x = gate > LIMIT ? LIMIT : gate;
    float factor = up > LIMIT ? LIMIT : up < -LIMIT ? -LIMIT : up;
    return __fmul_rn(over_sigmoid_divisor(x, __fmul_rn(SLOPE, x)), __fadd_rn(factor, 1.0f));
}

// act(gate) * up
DEVICE float glu_of(float gate, float up, uint32_t glu) {
    if (glu == GLU_CLAMPED_SWISH) return clamped_swish_of(gate, up);
    float activated = glu == GLU_SILU ? silu_of(gate) : gelu_tanh_of(gate);
    return __fmul_rn(activated, up);
}

// cap * tanh(x / cap)
DEVICE float soft_cap(float x, float cap) { return __fmul_rn(cap, tanhf(__fdiv_rn(x, cap))); }
