// Kernels: product_q5_1_8, product_q5_1_16, product_q5_1_32, product_q5_1_64.
#include "product.cuh"

PRODUCTS(q5_1, Q5_1)
