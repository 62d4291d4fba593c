// Kernels: product_q5_k_q6_k_8, product_q5_k_q6_k_16.
#include "product.cuh"

PRODUCT_OF_TWO(q5_k_q6_k, Q5_K, Q6_K, 8, 4)
PRODUCT_OF_TWO(q5_k_q6_k, Q5_K, Q6_K, 16, 4)
