// Products for many rows (sm_90a): weights of Q5_K.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q5_k, Q5_K)
#endif
