// Products for many rows (sm_90a): weights of Q4_0.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q4_0, Q4_0)
#endif
