// The product with the dense factor of a Hadamard matrix: y[r, j, i] is the sum over k of factor(k, j) x[r, k, i], for a
// contiguous float32 x. The sum is made of fused multiply-adds in the order of k, as cuBLAS makes it.
//
// Compiled at first use by NVRTC (hadamard_cuda.py), which prepends
//   SIZE     of the factor
//   FACTOR   its entries, row by row; they become constants of instructions
//   STORAGE  FLOAT32, BFLOAT16 or FLOAT16: of y
//   WIDTH    neighbouring i that a thread has, 4 or 2: as many as leave room for SIZE of them in its registers

#define FUNCTION __device__ __forceinline__
constexpr int FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2;
constexpr int WORDS = STORAGE == FLOAT32 ? WIDTH : WIDTH / 2;
struct alignas(4 * WIDTH) Read {
    float of[WIDTH];
};
struct alignas(4 * WORDS) Written {
    unsigned of[WORDS];
};

// On GPUs of compute capability 8.0 or more.
FUNCTION unsigned packed(float low, float high) {
    unsigned word;
    if (STORAGE == BFLOAT16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// `inner` is how many i there are, in threads; a thread has one of `rows` of x, and its WIDTH of them.
extern "C" __global__ void __launch_bounds__(256) dense_factor(const Read* x, Written* y, long long rows, long long inner) {
    constexpr float factor[SIZE][SIZE] = FACTOR;
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x, row = thread / inner;
    if (row >= rows) return;
    const long long first = row * SIZE * inner + (thread - row * inner);
    Read read[SIZE];
#pragma unroll
    for (int k = 0; k < SIZE; ++k) read[k] = x[first + k * inner];
#pragma unroll
    for (int j = 0; j < SIZE; ++j) {
        float sum[WIDTH] = {};
#pragma unroll
        for (int k = 0; k < SIZE; ++k) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum[i] = fmaf(factor[k][j], read[k].of[i], sum[i]);
        }
        Written written;
#pragma unroll
        for (int word = 0; word < WORDS; ++word)
            written.of[word] = STORAGE == FLOAT32 ? __builtin_bit_cast(unsigned, sum[word])
                                                  : packed(sum[2 * word], sum[2 * word + 1]);
        y[first + j * inner] = written;
    }
}
