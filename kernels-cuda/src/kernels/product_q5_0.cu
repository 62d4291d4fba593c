// Kernels: product_q5_0_8, product_q5_0_16, product_q5_0_32, product_q5_0_64.
#include "product.cuh"

PRODUCTS(q5_0, Q5_0)
