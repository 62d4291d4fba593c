// Kernels: product_q8_0_8, product_q8_0_16, product_q8_0_32, product_q8_0_64.
#include "product.cuh"

PRODUCTS(q8_0, Q8_0)
