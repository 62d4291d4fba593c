// Products for many rows (sm_90a): weights of Q5_1.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q5_1, Q5_1)
#endif
