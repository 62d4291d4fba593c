// Kernels: product_q4_k_8, product_q4_k_16, product_q4_k_32, product_q4_k_64.
#include "product.cuh"

PRODUCTS(q4_k, Q4_K)
