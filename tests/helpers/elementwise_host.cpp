// elementwise.cu on the host: a thread block is as many threads, which wait for each other where they exchange numbers.

#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

#define __global__
#define __launch_bounds__(threads)
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __shfl_sync exchanged
#define __shfl_down_sync(all, value, distance, width) \
    exchanged(all, value, threadIdx.x % width + distance < width ? threadIdx.x % width + distance : threadIdx.x % width, width)

struct Place {
    unsigned x;
};
static thread_local Place threadIdx, blockIdx;

static float given[1024];
static std::barrier<>* everyone;

static float exchanged(unsigned, float value, unsigned from, unsigned width) {
    given[threadIdx.x] = value;
    everyone->arrive_and_wait();
    const float answer = given[threadIdx.x / width * width + from];
    everyone->arrive_and_wait();
    return answer;
}

#include ELEMENTWISE_SOURCE

template <class Work>
static void run(i64 threads, Work work) {
    for (unsigned block = 0; i64(block) * THREADS < threads; ++block) {
        std::barrier<> barrier(THREADS);
        everyone = &barrier;
        std::vector<std::thread> running;
        for (unsigned thread = 0; thread < THREADS; ++thread)
            running.emplace_back([=] {
                threadIdx.x = thread;
                blockIdx.x = block;
                work();
            });
        for (std::thread& one : running) one.join();
    }
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
