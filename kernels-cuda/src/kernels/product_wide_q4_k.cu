// Products for many rows (sm_90a): weights of Q4_K.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q4_k, Q4_K)
#endif
