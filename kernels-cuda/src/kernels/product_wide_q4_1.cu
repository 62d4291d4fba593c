// Products for many rows (sm_90a): weights of Q4_1.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q4_1, Q4_1)
#endif
