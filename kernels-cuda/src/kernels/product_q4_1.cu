// Kernels: product_q4_1_8, product_q4_1_16, product_q4_1_32, product_q4_1_64.
#include "product.cuh"

PRODUCTS(q4_1, Q4_1)
