// Products for many rows (sm_90a): weights of BF16.
#include "wide_kernel.cuh"

#ifdef PONDER_HOPPER
WIDE_KERNELS(bf16, BF16)
#endif
