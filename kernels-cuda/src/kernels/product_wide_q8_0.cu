// Products for many rows (sm_90a): weights of Q8_0.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(q8_0, Q8_0)
#endif
