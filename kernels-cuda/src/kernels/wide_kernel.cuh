// Kernels of the products for many rows: what a block's warps do with their items.
#pragma once

#include "wide_epilogue.cuh"

#ifdef PONDER_HOPPER

template <class TILE> DEVICE void product_wide(const ProductArgs &args, const WideLaunch &launch) {
    DYNAMIC_SHARED(shared);
    WideRing ring(shared, launch.num_stages);
    if (threadIdx.x == 0) ring.start();
    __syncthreads();
    uint32_t group = threadIdx.x / WARPGROUP;
    if (group == 2) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == NUM_CONSUMERS) produce<TILE>(args, launch, ring);
        return;
    }
    registers_grow<CONSUMER_REGISTERS>();
    uint8_t *scratch = ring.stages + launch.num_stages * TILE::STAGE_BYTES + group * launch.scratch_bytes;
    uint32_t *is_last = (uint32_t *)(shared + RING_OFFSET) - 1;
    const WideOffsets offsets{TILE::IS_FLAT ? 0 : group * TILE::Source::STAGE_BYTES, TILE::IS_FLAT ? group * TILE::COLUMNS * LINE_BYTES : 0};
    for (uint32_t index = blockIdx.x; index < launch.first_item[MAX_JOBS]; index += gridDim.x) {
        WideItem item = wide_item<TILE>(args, launch, index);
        if (item.num_rows == 0) continue;
        // Of this item alone: sums that lived on would keep the compiler from leaving them to the
        // tensor cores.
        float sums[TILE::NUM_SUMS];
        uint32_t a[2][HALF_STEPS][4];
        auto sum = [&](uint32_t part) {
            sum_part<TILE>(sums, a, ring, part_begin(args, item.job, part), part_begin(args, item.job, part + 1), offsets);
        };
        if constexpr (TILE::IS_SPREAD) {
            sum(item.first_part);
            if (args.jobs[item.job].num_parts > 1 && !gather_parts<TILE>(sums, args, launch, item, is_last)) continue;
        } else {
            float totals[TILE::REGISTER_TOTALS];
            for (uint32_t part = 0; part < item.num_parts; part++) {
                sum(part);
                add_part<TILE>(sums, totals, (float *)scratch, part == 0, part + 1 == item.num_parts);
            }
        }
        // The other kernels start from a zero, so that none of their sums is a negative one.
#pragma unroll
        for (int i = 0; i < (int)TILE::NUM_SUMS; i++) sums[i] = __fadd_rn(sums[i], 0.0f);
        WideItem done = wide_item<TILE>(args, launch, opaque(index));
        if constexpr (!TILE::IS_FLAT) {
            if (args.num_summed == 2) {
                store_gated<TILE>(sums, args, done, scratch, launch.scratch_bytes);
                continue;
            }
        }
        store_sums<TILE>(sums, args, done);
    }
}

#define WIDE(name, TYPE, COLUMNS, IS_FLAT, IS_SPREAD) \
    KERNEL __launch_bounds__(NUM_WIDE_THREADS, 1) name(const __grid_constant__ ProductArgs args, const __grid_constant__ WideLaunch launch) { \
        product_wide<WideTile<TYPE, COLUMNS, IS_FLAT, IS_SPREAD>>(args, launch); \
    } \
    EXPORT(name)

// The kernels of a type, as `wide.rs` picks from them.
#define WIDE_KERNELS(name, TYPE) \
    WIDE(product_wide_256_##name, TYPE, 256, false, false) \
    WIDE(product_wide_128_##name, TYPE, 128, false, false) \
    WIDE(product_wide_spread_128_##name, TYPE, 128, false, true) \
    WIDE(product_wide_flat_128_##name, TYPE, 128, true, true) \
    WIDE(product_wide_flat_64_##name, TYPE, 64, true, true)

#endif
