// Products for many rows (sm_90a): weights of Q5_0.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q5_0, Q5_0)
#endif
