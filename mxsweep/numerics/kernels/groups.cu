// Kernels for groups of neighbours that share a per-tensor scale, such as tokens, where threads can hold a group: it is read
// once, for its maximum and to be quantized. Compiled behind tiles.cu, with MX_KEPT and WITH_ as there.

#if defined(WITH_mx_groups) || defined(WITH_mx_groups_by_warp)
// Of `vectors` vectors each, which whole blocks of MX_LANES, a power of two, cut; THREADS threads have KEPT of them or fewer.
template <int THREADS>
FUNCTION void groups(const uint4* x, uint4* y, i64 vectors, i64 count, Beside beside) {
    const int thread = threadIdx.x % THREADS, threads = THREADS == 32 ? 32 : blockDim.x;
    const i64 index = THREADS == 32 ? i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
    if (index >= count) return;  // whole warps, and thread blocks, leave together
    const i64 first = index * vectors;
    uint4 read[KEPT];
    // Past the end the group's first vector, which changes no maximum. Blocks lie there as a whole or not at all.
#pragma unroll
    for (int i = 0; i < KEPT; ++i) read[i] = x[first + (thread + i * threads < vectors ? thread + i * threads : 0)];
    unsigned kept[KEPT][4], largest = 0;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        kept[i][0] = without_inf(read[i].x, FORMAT), kept[i][1] = without_inf(read[i].y, FORMAT);
        kept[i][2] = without_inf(read[i].z, FORMAT), kept[i][3] = without_inf(read[i].w, FORMAT);
#pragma unroll
        for (int word = 0; word < 4; ++word) largest = larger(largest, magnitudes(kept[i][word]));
    }
    largest = largest_of_warp(magnitude_bits(largest));
    if (THREADS > 32) {
        __shared__ unsigned of_warps[THREADS / 32];
        if (thread % 32 == 0) of_warps[thread / 32] = largest;
        __syncthreads();
        for (int warp = 0; warp < threads / 32; ++warp) largest = of_warps[warp] > largest ? of_warps[warp] : largest;
    }
    const float t = tensor_scale_of(from_bits(largest), FORMAT);
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const int within = thread + i * threads;
        const i64 vector = first + within;
        const Extremes of = extremes_of_row(extremes_of_vector(kept[i], FORMAT), FORMAT);
        bool second = false;
        if (FORMAT.four_over_six)
            second = sum_of_lanes(loss_of_vector(kept[i], of, t, beside, vector * PER_VECTOR), MX_LANES) < 0;
        const Place place = place_of_vector(beside, vector * PER_VECTOR);
        if (within < vectors) y[vector] = quantized_vector(kept[i], of, FORMAT, t, beside.key, place, second);
    }
}
#endif
#define GROUP_ARGUMENTS i64 vectors, i64 count, u64 key, i64 example, i64 first_example
#define BESIDE_GROUP {nullptr, 1, key, example, first_example, nullptr}
#ifdef WITH_mx_groups_by_warp
extern "C" __global__ void __launch_bounds__(256) mx_groups_by_warp(const uint4* x, uint4* y, GROUP_ARGUMENTS) {
    groups<32>(x, y, vectors, count, BESIDE_GROUP);
}
#endif
#ifdef WITH_mx_groups
extern "C" __global__ void __launch_bounds__(256) mx_groups(const uint4* x, uint4* y, GROUP_ARGUMENTS) {
    groups<256>(x, y, vectors, count, BESIDE_GROUP);
}
#endif
