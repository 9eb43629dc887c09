// elementwise.cu on the host: a thread block is a warp, whose lanes wait for each other where they exchange numbers.

#include <math.h>

#include "lanes.h"

#define __global__
#define __launch_bounds__(threads)
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __shfl_sync exchanged
#define __shfl_down_sync(all, value, distance, width) \
    exchanged(all, value, threadIdx.x % width + distance < width ? threadIdx.x % width + distance : threadIdx.x % width, width)

static float given[32];

static float exchanged(unsigned, float value, unsigned from, unsigned width) {
    given[threadIdx.x] = value;
    wait_for_all();
    const float answer = given[threadIdx.x / width * width + from];
    wait_for_all();
    return answer;
}

#include ELEMENTWISE_SOURCE

static_assert(THREADS == 32);

template <class Work>
static void run(i64 threads, Work work) {
    run_lanes([&](unsigned lane) {
        for (unsigned block = 0; i64(block) * THREADS < threads; ++block) {
            threadIdx.x = lane;
            blockIdx.x = block;
            work();
        }
    });
}

extern "C" void rms_norm_on_host(const uint4* x, const uint4* weight, uint4* y, float* means, i64 rows, i64 channels,
                                 i64 factor, i64 epsilon) {
    run(rows * ROW_THREADS, [=] { rms_norm(x, weight, y, means, rows, channels, factor, epsilon); });
}
extern "C" void silu_times_on_host(const uint4* gate, const uint4* up, uint4* y, i64 vectors) {
    run(vectors, [=] { silu_times(gate, up, y, vectors); });
}
extern "C" void rotary_on_host(const uint4* x, const uint4* cosines, const uint4* sines, uint4* y, i64 vectors, i64 half,
                               i64 heads, i64 tokens, i64 of_each) {
    run(vectors, [=] { rotary(x, cosines, sines, y, vectors, half, heads, tokens, of_each); });
}
