// Kernels: product_q4_0_8, product_q4_0_16, product_q4_0_32, product_q4_0_64.
#include "product.cuh"

PRODUCTS(q4_0, Q4_0)
