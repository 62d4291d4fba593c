// Kernels: product_bf16_8, product_bf16_16, product_bf16_32, product_bf16_64.
#include "product.cuh"

PRODUCTS(bf16, BF16)
