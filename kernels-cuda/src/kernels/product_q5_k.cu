// Kernels: product_q5_k_8, product_q5_k_16, product_q5_k_32, product_q5_k_64.
#include "product.cuh"

PRODUCTS(q5_k, Q5_K)
