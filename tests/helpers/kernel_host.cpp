// A kernel that is made of warps which exchange values by shuffles only, run by a host compiler: 32 threads are the lanes
// of a warp, and wait for each other at each shuffle. KERNEL_SOURCE is the kernel's source with its macros in front.
#include <math.h>
#include <string.h>

#include <barrier>
#include <thread>
#include <vector>

#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
    unsigned x, y, z, w;
};
struct Index {
    unsigned x;
};
static Index blockDim = {256};
static Index gridDim;
static thread_local Index blockIdx, threadIdx;
static std::barrier<> warp(32);
static unsigned long long exchanged[32];

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    const int lane = threadIdx.x % 32;
    memcpy(&exchanged[lane], &value, sizeof(T));
    warp.arrive_and_wait();
    T other;
    memcpy(&other, &exchanged[lane ^ distance], sizeof(T));
    warp.arrive_and_wait();
    return other;
}
static inline unsigned __vmaxu2(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffffu) > (b & 0xffffu) ? a : b, high = (a >> 16) > (b >> 16) ? a : b;
    return (low & 0xffffu) | (high & 0xffff0000u);
}
static inline unsigned __vminu2(unsigned a, unsigned b) { return a ^ b ^ __vmaxu2(a, b); }

// Of kernels that are compiled and not run.
#define __shared__ static
static inline void __syncthreads() { warp.arrive_and_wait(); }  // of thread blocks of one warp
static inline void __threadfence() {}
static inline unsigned atomicMax(unsigned*, unsigned) { return 0; }
static inline unsigned atomicAdd(unsigned*, unsigned) { return 0; }
static inline unsigned atomicExch(unsigned*, unsigned) { return 0; }

#include KERNEL_SOURCE

template <class Kernel>
static void launch(long threads, Kernel kernel) {
    gridDim.x = unsigned((threads + blockDim.x - 1) / blockDim.x);
    std::vector<std::thread> lanes;
    for (unsigned lane = 0; lane < 32; ++lane)
        lanes.emplace_back([=] {
            for (unsigned first = 0; first < gridDim.x * blockDim.x; first += 32) {
                blockIdx.x = first / blockDim.x;
                threadIdx.x = first % blockDim.x + lane;
                kernel();
                warp.arrive_and_wait();
            }
        });
    for (auto& lane : lanes) lane.join();
}

#ifdef MX_COLUMN_FORMAT
extern "C" void both_on_host(long threads, const void* x, void* by_row, void* by_column, i64 rows, i64 width, u64 row_key,
                             u64 column_key, i64 example, i64 first_example, const float* row_scales,
                             const unsigned* strip_maxima, i64 strips, u64 negative) {
    launch(threads, [=] {
        mx_both(static_cast<const uint4*>(x), static_cast<uint4*>(by_row), static_cast<uint4*>(by_column), rows, width,
                row_key, column_key, example, first_example, row_scales, strip_maxima, strips, negative);
    });
}
#ifdef MX_MAXIMA_ON_HOST
extern "C" void maxima_on_host(long threads, const void* x, float* row_scales, unsigned* strip_maxima, i64 width,
                               u64 negative) {
    const long thread_blocks = threads / blockDim.x;
    blockDim.x = 32;
    launch(thread_blocks * 32, [=] { mx_maxima(static_cast<const uint4*>(x), row_scales, strip_maxima, width, negative); });
    blockDim.x = 256;
}
#endif
#endif
#ifdef MX_BLOCKS_ON_HOST
extern "C" void rows_on_host(long threads, const void* x, void* y, i64 vectors, BESIDE_ARGUMENTS) {
    launch(threads, [=] {
        mx_rows(static_cast<const uint4*>(x), static_cast<uint4*>(y), vectors, tensor_scales, group, key, example,
                first_example);
    });
}
extern "C" void tiles_by_warp_on_host(long threads, const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    launch(threads, [=] {
        mx_tiles_by_warp(x, y, outer, height, width, rows, columns, tensor_scales, group, key, example, first_example);
    });
}
extern "C" void tiles_by_thread_on_host(long threads, const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    launch(threads, [=] {
        mx_tiles_by_thread(x, y, outer, height, width, rows, columns, tensor_scales, group, key, example, first_example);
    });
}
#endif
