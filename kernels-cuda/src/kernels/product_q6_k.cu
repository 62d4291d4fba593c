// Kernels: product_q6_k_8, product_q6_k_16, product_q6_k_32, product_q6_k_64.
#include "product.cuh"

PRODUCTS(q6_k, Q6_K)
