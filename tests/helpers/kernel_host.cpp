// A kernel that is made of warps which exchange values by shuffles only, run by a host compiler. KERNEL_SOURCE is the
// kernel's source with its macros in front.
#include <math.h>
#include <string.h>

#include "lanes.h"

#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
    unsigned x, y, z, w;
};
static Index blockDim = {256};
static Index gridDim;
static unsigned long long exchanged[32];

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    memcpy(&exchanged[threadIdx.x % 32], &value, sizeof(T));
    wait_for_all();
    T other;
    memcpy(&other, &exchanged[lane % 32], sizeof(T));
    wait_for_all();
    return other;
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int distance) {
    return __shfl_sync(all, value, int(threadIdx.x % 32) ^ distance);
}
static inline bool __all_sync(unsigned all, bool value) {
    for (int distance = 16; distance; distance /= 2) value = __shfl_xor_sync(all, value, distance) && value;
    return value;
}
static inline unsigned __vmaxu2(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffffu) > (b & 0xffffu) ? a : b, high = (a >> 16) > (b >> 16) ? a : b;
    return (low & 0xffffu) | (high & 0xffff0000u);
}
static inline unsigned __vminu2(unsigned a, unsigned b) { return a ^ b ^ __vmaxu2(a, b); }

// Of kernels that are compiled and not run.
#define __shared__ static
static inline void __syncthreads() { wait_for_all(); }  // of thread blocks of one warp
static inline void __threadfence() {}
static inline unsigned atomicMax(unsigned*, unsigned) { return 0; }
static inline unsigned atomicAdd(unsigned*, unsigned) { return 0; }
static inline unsigned atomicExch(unsigned*, unsigned) { return 0; }

// Threads of the host are the lanes.
static inline void atomicMin(int* at, int value) {
    int now = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < now && !__atomic_compare_exchange_n(at, &now, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}
static inline void atomicMax(int* at, int value) {
    int now = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value > now && !__atomic_compare_exchange_n(at, &now, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

// Of dense_tiles.cu what a GPU has instructions for, of bfloat16.
static inline void begin_copy(uint4* to, const uint4* from, bool is_there) { *to = is_there ? *from : uint4{}; }
static inline void end_group() {}
static inline void wait_for_all_groups_but_one() {}
static const unsigned short* rows_of_lanes[32];
static void read_transposed(unsigned (&words)[4], const uint4* row) {
    const unsigned lane = threadIdx.x % 32;
    rows_of_lanes[lane] = reinterpret_cast<const unsigned short*>(row);
    wait_for_all();
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned first = 8 * i + lane % 4 * 2;
        words[i] = rows_of_lanes[first][lane / 4] | unsigned(rows_of_lanes[first + 1][lane / 4]) << 16;
    }
    wait_for_all();
}
static float left_of_product[16][16], right_of_product[16][8];
static float bfloat16_of(unsigned word, unsigned half) {
    const unsigned bits = half ? word & 0xffff0000u : word << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned low, unsigned high) {
    const unsigned lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    for (unsigned half = 0; half < 2; ++half) {
        for (unsigned i = 0; i < 4; ++i)
            left_of_product[group + i % 2 * 8][pair + half + i / 2 * 8] = bfloat16_of(a[i], half);
        right_of_product[pair + half][group] = bfloat16_of(low, half);
        right_of_product[pair + half + 8][group] = bfloat16_of(high, half);
    }
    wait_for_all();
    for (unsigned i = 0; i < 4; ++i)
        for (unsigned k = 0; k < 16; ++k)
            sum[i] += left_of_product[group + i / 2 * 8][k] * right_of_product[k][pair + i % 2];
    wait_for_all();
}

#include KERNEL_SOURCE

#ifdef MX_RANGES
#define RANGES_GIVEN , ranges
#else
#define RANGES_GIVEN
#endif

template <class Kernel>
static void launch(long threads, Kernel kernel) {
    gridDim.x = unsigned((threads + blockDim.x - 1) / blockDim.x);
    run_lanes([&](unsigned lane) {
        for (unsigned first = 0; first < gridDim.x * blockDim.x; first += 32) {
            blockIdx.x = first / blockDim.x;
            threadIdx.x = first % blockDim.x + lane;
            kernel();
            wait_for_all();
        }
    });
}

// Thread blocks that share memory, each of one warp: so many warps, or as many thread blocks.
template <class Kernel>
static void launch_warps(long threads, Kernel kernel) {
    blockDim.x = 32;
    launch(threads, kernel);
    blockDim.x = 256;
}
template <class Kernel>
static void launch_thread_blocks(long threads, Kernel kernel) {
    launch_warps(threads / blockDim.x * 32, kernel);
}

#ifdef MX_COLUMN_BLOCK
extern "C" void both_on_host(long threads, const void* x, void* by_row, void* by_column, i64 rows, i64 width, u64 row_key,
                             u64 column_key, i64 example, i64 first_example, const float* row_scales,
                             const unsigned* strip_maxima, i64 strips, u64 negative, i64 across, u64 multiplier,
                             i64 shift RANGES_ARGUMENT) {
    launch(threads, [=] {
        mx_both(static_cast<const uint4*>(x), static_cast<uint4*>(by_row), static_cast<uint4*>(by_column), rows, width,
                row_key, column_key, example, first_example, row_scales, strip_maxima, strips, negative, across,
                multiplier, shift RANGES_GIVEN);
    });
}
#ifdef MX_MAXIMA_ON_HOST
extern "C" void maxima_on_host(long threads, const void* x, float* row_scales, unsigned* strip_maxima, i64 width,
                               u64 negative) {
    launch_thread_blocks(threads, [=] {
        mx_maxima(static_cast<const uint4*>(x), row_scales, strip_maxima, width, negative);
    });
}
#endif
#endif
#ifdef MX_BLOCKS_ON_HOST
extern "C" void rows_on_host(long threads, const void* x, void* y, i64 vectors, BESIDE_ARGUMENTS) {
    launch(threads, [=] {
        mx_rows(static_cast<const uint4*>(x), static_cast<uint4*>(y), vectors, tensor_scales, group, key, example,
                first_example RANGES_GIVEN);
    });
}
#endif
// Of ways.py's kernels those that were asked for.
#define TILE_KERNEL(name, type, by)                                                                                          \
    extern "C" void name##_on_host(long threads, const type* x, type* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {              \
        by(threads, [=] {                                                                                                    \
            mx_##name(x, y, outer, height, width, rows, columns, tensor_scales, group, key, example,                         \
                      first_example RANGES_GIVEN);                                                                           \
        });                                                                                                                  \
    }
#define GROUP_KERNEL(name, by)                                                                                               \
    extern "C" void name##_on_host(long threads, const uint4* x, uint4* y, GROUP_ARGUMENTS) {                               \
        by(threads, [=] { mx_##name(x, y, vectors, count, key, example, first_example); });                                  \
    }
#if defined(WITH_mx_tiles_by_warp) || defined(WITH_mx_tiles_by_thread)
TILE_KERNEL(tiles_by_warp, void, launch)
TILE_KERNEL(tiles_by_thread, void, launch)
#endif
#ifdef WITH_mx_vector_tiles_by_warp
TILE_KERNEL(vector_tiles_by_warp, uint4, launch)
#endif
#ifdef WITH_mx_vector_tiles
TILE_KERNEL(vector_tiles, uint4, launch_thread_blocks)
#endif
#ifdef WITH_mx_small_tiles
TILE_KERNEL(small_tiles, uint4, launch)
#endif
#ifdef WITH_mx_long_columns
TILE_KERNEL(long_columns, uint4, launch_thread_blocks)
#endif
#ifdef WITH_mx_column_extremes
extern "C" void column_extremes_on_host(long threads, const uint4* x, uint4* extremes, i64 parts, TILING_ARGUMENTS) {
    launch_thread_blocks(threads, [=] { mx_column_extremes(x, extremes, parts, outer, height, width, rows, columns); });
}
#endif
#ifdef WITH_mx_columns_by_parts
extern "C" void columns_by_parts_on_host(long threads, const uint4* x, uint4* y, uint4* extremes, i64 parts,
                                         TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    launch_thread_blocks(threads, [=] {
        mx_columns_by_parts(x, y, extremes, parts, outer, height, width, rows, columns, tensor_scales, group, key, example,
                            first_example RANGES_GIVEN);
    });
}
#endif
#ifdef WITH_mx_short_blocks
extern "C" void short_blocks_on_host(long threads, const uint4* x, uint4* y, i64 rows, i64 width, i64 across,
                                     u64 multiplier, i64 shift, BESIDE_ARGUMENTS) {
    launch_warps((threads + 31) / 32 * 32, [=] {
        mx_short_blocks(x, y, rows, width, across, multiplier, shift, tensor_scales, group, key, example,
                        first_example RANGES_GIVEN);
    });
}
#endif
#ifdef WITH_mx_groups_by_warp
GROUP_KERNEL(groups_by_warp, launch)
#endif
#ifdef WITH_mx_groups
GROUP_KERNEL(groups, launch_thread_blocks)
#endif
#ifdef TILES
// Thread blocks of a warp: WARPS is 1.
extern "C" void dense_tiles_on_host(long threads, const void* x, void* y, const unsigned* signs) {
    launch_warps(threads, [=] { dense_tiles(static_cast<const uint4*>(x), static_cast<uint4*>(y), signs); });
}
#elif defined(LOG_INNER)
// Thread blocks of a warp: THREADS are 32.
extern "C" void dense_rows_on_host(long threads, const void* x, void* y, long long elements) {
    launch_warps(threads, [=] { dense_rows(static_cast<const uint4*>(x), static_cast<uint4*>(y), elements); });
}
#endif
#ifdef FORMAT_SIZE
extern "C" void measures_on_host(long threads, const void* x, const void* y, double* found, const Format* of, i64 storage,
                                 i64 blocks, i64 in_row, i64 length, i64 size, const float* tensor_scales, i64 group,
                                 const float* exponents, const float* scales, i64 compares) {
    launch(threads, [=] {
        mx_measures(x, y, found, of, storage, blocks, in_row, length, size, tensor_scales, group, exponents, scales,
                    compares);
    });
}
#endif
