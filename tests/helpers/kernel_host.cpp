// Kernels run by a host compiler. SOURCE is their source with its macros in front; what CUDA has beside C++ stands here.
#include <math.h>

#include "pairs_of_halves.h"
#include "thread_blocks.h"

#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};

static inline void __syncthreads() { host::wait(host::FOR_THREAD_BLOCK); }
static inline void __threadfence() {}

#define IN_KERNEL __builtin_return_address(0)
template <class T>
__attribute__((noinline)) T __shfl_sync(unsigned mask, T value, unsigned lane, unsigned width = 32) {
    return host::of_lane(mask, value, threadIdx.x % 32 / width * width + lane % width, IN_KERNEL);
}
template <class T>
__attribute__((noinline)) T __shfl_xor_sync(unsigned mask, T value, unsigned distance) {
    return host::of_lane(mask, value, threadIdx.x % 32 ^ distance, IN_KERNEL);
}
template <class T>
__attribute__((noinline)) T __shfl_down_sync(unsigned mask, T value, unsigned distance, unsigned width = 32) {
    const unsigned lane = threadIdx.x % width;
    const unsigned from = lane + distance < width ? lane + distance : lane;
    return host::of_lane(mask, value, threadIdx.x % 32 - lane + from, IN_KERNEL);
}
static inline bool __all_sync(unsigned mask, bool value) {
    for (unsigned distance = 16; distance; distance /= 2) value = __shfl_xor_sync(mask, value, distance) && value;
    return value;
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

template <class T>
T atomicExch(T* at, T value) {
    const T before = *at;
    *at = value;
    return before;
}
template <class T>
T atomicAdd(T* at, T value) {
    return atomicExch(at, *at + value);
}
template <class T>
T atomicMax(T* at, T value) {
    return atomicExch(at, value > *at ? value : *at);
}
template <class T>
T atomicMin(T* at, T value) {
    return atomicExch(at, value < *at ? value : *at);
}

// Of dense_tiles.cu what a GPU has instructions for.
static inline void begin_copy(uint4* to, const uint4* from, bool is_there) { *to = is_there ? *from : uint4{}; }
static inline void end_group() {}
static inline void wait_for_all_groups_but_one() {}
static inline void read_transposed(unsigned (&words)[4], const uint4* row) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = 0; i < 4; ++i) {
        words[i] = 0;
        for (unsigned half = 0; half < 2; ++half) {
            // The row that lane 8 i + ... has the address of is asked for by all that read from it.
            const unsigned of = 8 * i + lane % 4 * 2 + half;
            words[i] |= unsigned(reinterpret_cast<const unsigned short*>(host::of_lane(~0u, row, of, nullptr))[lane / 4]) << 16 * half;
        }
    }
}
static float number_of(unsigned short code);
static float left_of_product[16][16], right_of_product[16][8];
static inline void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned low, unsigned high) {
    const unsigned lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    for (unsigned half = 0; half < 2; ++half) {
        const auto number = [=](unsigned word) { return number_of((unsigned short)(word >> 16 * half)); };
        for (unsigned i = 0; i < 4; ++i) left_of_product[group + i % 2 * 8][pair + half + i / 2 * 8] = number(a[i]);
        right_of_product[pair + half][group] = number(low);
        right_of_product[pair + half + 8][group] = number(high);
    }
    host::wait(host::FOR_WARP);
    for (unsigned i = 0; i < 4; ++i)
        for (unsigned k = 0; k < 16; ++k)
            sum[i] += left_of_product[group + i / 2 * 8][k] * right_of_product[k][pair + i % 2];
    host::wait(host::FOR_WARP);
}

#include SOURCE

#ifdef MAGNITUDE  // a macro of dense_tiles.cu
static float number_of(unsigned short code) { return widened<STORAGE>(code); }
#else
static float number_of(unsigned short) { return 0.0f; }
#endif
