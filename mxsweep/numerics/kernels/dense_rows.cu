// Rows times the Hadamard matrix that is a dense factor and Sylvester's matrix of order 2^LOG_INNER, in one reading and one
// writing: of short rows what hadamard.cu and dense.cu compute of longer ones, in the same order. A row is SIZE runs of INNER
// elements.
//
// Compiled at first use by NVRTC (dense_cuda.py) behind storage.cu and butterflies.cu, with the macros of dense.cu in front,
// where WIDTH may be 1, too, and divides INNER, and
//   LOG_INNER  log2 of the order of Sylvester's matrix: at most 32 threads share a row
//   SCALE      2^(-LOG_INNER / 2)
//   THREADS    of a thread block
//
// Elements come and go 16 bytes at a time through shared memory, where a thread has WIDTH neighbours of each run.

template <bool>
struct ElementOf {
    typedef unsigned short type;
};
template <>
struct ElementOf<true> {
    typedef float type;
};
typedef ElementOf<WIDE>::type Element;
FUNCTION float value_of(float element) { return element; }
FUNCTION float value_of(unsigned short element) { return widened(element); }
FUNCTION void store(float& to, float value) { to = value; }
FUNCTION void store(unsigned short& to, float value) { to = (unsigned short)packed(value, 0.0f); }

constexpr int INNER = 1 << LOG_INNER, LANES = INNER / WIDTH;
constexpr int PER_VECTOR = 16 / sizeof(Element), VECTORS = THREADS * SIZE * WIDTH / PER_VECTOR;  // of a thread block
constexpr int TURNS = (VECTORS + THREADS - 1) / THREADS;
static_assert(LANES * WIDTH == INNER && LANES <= 32 && VECTORS * PER_VECTOR == THREADS * SIZE * WIDTH);
struct alignas(WIDTH * sizeof(Element)) Neighbours {
    Element of[WIDTH];
};

// `elements` are whole rows.
extern "C" __global__ void __launch_bounds__(THREADS) dense_rows(const uint4* x, uint4* y, long long elements) {
    constexpr float factor[SIZE][SIZE] = FACTOR;
    __shared__ uint4 held[VECTORS];
    const int thread = threadIdx.x, rest = int(elements % PER_VECTOR);
    const long long first = (long long)blockIdx.x * VECTORS, vectors = elements / PER_VECTOR;
    const bool is_last = first + VECTORS > vectors;
    const auto copy_rest = [&](Element* to, const Element* from) {
        for (int i = 0; i < rest; ++i) to[i] = from[i];
    };
    uint4 read[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int i = turn * THREADS + thread;
        if (i < VECTORS && first + i < vectors) read[turn] = x[first + i];
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int i = turn * THREADS + thread;
        if (i < VECTORS) held[i] = read[turn];
    }
    if (is_last) {
        __syncthreads();
        if (thread == 0) copy_rest((Element*)(held + (vectors - first)), (const Element*)(x + vectors));
    }
    __syncthreads();
    Neighbours* own = reinterpret_cast<Neighbours*>(held) + thread / LANES * (SIZE * LANES) + thread % LANES;
    float value[SIZE][WIDTH];
#pragma unroll
    for (int k = 0; k < SIZE; ++k) {
        const Neighbours of = own[k * LANES];
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) value[k][i] = SCALE * value_of(of.of[i]);
    }
#pragma unroll
    for (int distance = 1; distance < INNER; distance *= 2) {
#pragma unroll
        for (int k = 0; k < SIZE; ++k) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                if (distance >= WIDTH)
                    value[k][i] = butterfly_of_lanes(value[k][i], distance / WIDTH);
                else if (!(i & distance))
                    butterfly(value[k][i], value[k][i | distance]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < SIZE; ++j) {
        float sum[WIDTH] = {};
#pragma unroll
        for (int k = 0; k < SIZE; ++k) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) sum[i] = fmaf(factor[k][j], value[k][i], sum[i]);
        }
        Neighbours written;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) store(written.of[i], sum[i]);
        own[j * LANES] = written;
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int i = turn * THREADS + thread;
        if (i < VECTORS && first + i < vectors) y[first + i] = held[i];
    }
    if (is_last && thread == 0) copy_rest((Element*)(y + vectors), (const Element*)(held + (vectors - first)));
}
