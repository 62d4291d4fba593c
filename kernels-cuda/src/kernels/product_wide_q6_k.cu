// Products for many rows (sm_90a): weights of Q6_K.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q6_k, Q6_K)
#endif
