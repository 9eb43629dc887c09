// The product with the dense factor of a Hadamard matrix: y[r, j, i] is the sum over k of factor(k, j) x[r, k, i], for a
// contiguous float32 x. The sum is made of fused multiply-adds in the order of k, as cuBLAS makes it.
//
// Compiled at first use by NVRTC (dense_cuda.py) behind storage.cu, with these in front:
//   SIZE     of the factor
//   FACTOR   its entries, row by row; they become constants of instructions
//   STORAGE  FLOAT32, BFLOAT16 or FLOAT16: of y
//   WIDTH    neighbouring i that a thread has, 4 or 2: as many as leave room for SIZE of them in its registers

constexpr int WORDS = WIDE ? WIDTH : WIDTH / 2;
struct alignas(4 * WIDTH) Read {
    float of[WIDTH];
};
struct alignas(4 * WORDS) Written {
    unsigned of[WORDS];
};

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
            written.of[word] = WIDE ? bits_of(sum[word]) : packed(sum[2 * word], sum[2 * word + 1]);
        y[first + j * inner] = written;
    }
}
