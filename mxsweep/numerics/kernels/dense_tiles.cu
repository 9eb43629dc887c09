// Rows of 16-bit elements times the Hadamard matrix that is a factor of signs and Sylvester's matrix of order 2^LOG_INNER, in
// one reading and one writing. A row is SIZE runs of INNER elements. At each place of a run tensor cores multiply the SIZE
// elements there by the factor; what comes of that is transformed by Sylvester's matrix, run by run, in registers.
//
// Compiled at first use by NVRTC (dense_cuda.py) behind storage.cu and butterflies.cu, with these in front:
//   SIZE       of the factor
//   LOG_INNER  log2 of the order of Sylvester's matrix: 5 to 7
//   STORAGE    BFLOAT16 or FLOAT16
//   MAGNITUDE  what stands for the factor's signs, a power of two as stored, in both halves of a word: so small that no sum
//              leaves the range of float32 unless an answer does
//   SCALE      by which sums are multiplied at last
//   TILES, WARPS, PARTS   tiles of 16 of the factor's rows that a warp has, warps of a thread block, and thread blocks that
//              share what comes of a row
//   DEPTH      tiles of 16 runs that are read at a time, while the ones before are multiplied
//
// Products of an element and a sign are exact; their sums are tensor cores' own, in float32.

#ifdef __CUDA_ARCH__
// 16 bytes from global to shared memory, which go on while the thread does; zeros where nothing is there.
FUNCTION void begin_copy(uint4* to, const uint4* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}
FUNCTION void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
FUNCTION void wait_for_all_groups_but_one() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

// Four matrices of 8 x 8 elements, of which each lane has the address of a row, eight lanes to a matrix. A lane gets of each
// two elements of a column.
FUNCTION void read_transposed(unsigned (&words)[4], const uint4* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

// sum += a b for matrices of 16 x 16 and 16 x 8, whose elements the lanes of a warp share as PTX's m16n8k16 has it.
FUNCTION void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned low, unsigned high) {
#define MULTIPLY(type)                                                                                                       \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "         \
        "{%0, %1, %2, %3};"                                                                                                  \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high))
    if (STORAGE == BFLOAT16)
        MULTIPLY("bf16");
    else
        MULTIPLY("f16");
}
#endif

constexpr int INNER = 1 << LOG_INNER, ACROSS = INNER / 8;  // vectors of a run
constexpr int DEEP = (SIZE + 15) / 16, GROUPS = (DEEP + 3) / 4, STAGES = (DEEP + DEPTH - 1) / DEPTH;
constexpr int THREADS = 32 * WARPS, BUFFERS = STAGES > 1 ? 2 : 1, RUNS = DEPTH * 16;  // of a stage
static_assert(LOG_INNER >= 5 && LOG_INNER <= 7);

// Where a vector of a run is held: such that the vectors of a column of eight neighbouring runs, which are read at once, lie in
// banks of their own. Eight vectors are all banks; where these are more runs than one, runs that lie in the same are shifted.
FUNCTION int place_of(int run, int column) {
    constexpr int ABREAST = ACROSS < 8 ? 8 / ACROSS : 1, SHIFTS = ACROSS < 8 ? ACROSS : 8;
    return run * ACROSS + (column ^ run / ABREAST % SHIFTS);
}

// Of two lanes at a distance the lower one gives its high word for the other's low one.
FUNCTION void exchange(unsigned& low, unsigned& high, int distance) {
    const bool is_above = threadIdx.x & distance;
    const unsigned got = __shfl_xor_sync(ALL, is_above ? low : high, distance);
    (is_above ? low : high) = got;
}

// `signs` are the factor's: for each tile of its rows, each four tiles of its columns and each lane a word. It has two bits for
// each of the four words that the lane has of a tile, which a shift brings to where a number's sign is, 15 and 31 (DensePlan).
extern "C" __global__ void __launch_bounds__(THREADS) dense_tiles(const uint4* x, uint4* y, const unsigned* signs) {
    __shared__ uint4 held[BUFFERS][RUNS * ACROSS];
    const int lane = threadIdx.x % 32, first_tile = (blockIdx.x % PARTS * WARPS + threadIdx.x / 32) * TILES;
    const long long first = (long long)(blockIdx.x / PARTS) * SIZE * ACROSS;
    x += first, y += first;
    const auto begin_stage = [&](int stage) {
        for (int i = threadIdx.x; stage < STAGES && i < RUNS * ACROSS; i += THREADS) {
            const int run = i / ACROSS, column = i % ACROSS, vector = stage * RUNS * ACROSS + i;
            const bool is_there = vector < SIZE * ACROSS;
            begin_copy(&held[stage % BUFFERS][place_of(run, column)], x + (is_there ? vector : 0), is_there);
        }
        end_group();
    };

    float sum[TILES][ACROSS][4] = {};
    begin_stage(0);
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        begin_stage(stage + 1);
        wait_for_all_groups_but_one();
        __syncthreads();
        const int deep = stage * DEPTH + DEPTH < DEEP ? DEPTH : DEEP - stage * DEPTH;
#pragma unroll 1
        for (int n = 0; n < deep; ++n) {
            const int k = stage * DEPTH + n;
            unsigned a[TILES][4];
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const unsigned word = signs[((first_tile + tile) * GROUPS + k / 4) * 32 + lane] << k % 4 * 4;
#pragma unroll
                for (int i = 0; i < 4; ++i) a[tile][i] = (word << i & 0x80008000u) ^ MAGNITUDE;
            }
#pragma unroll
            for (int column = 0; column < ACROSS; column += 2) {
                unsigned b[4];
                read_transposed(b, &held[stage % BUFFERS][place_of(n * 16 + lane % 16, column + lane / 16)]);
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    multiply(sum[tile][column], a[tile], b[0], b[1]);
                    multiply(sum[tile][column + 1], a[tile], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }

    // A lane has of a run two neighbours in every eight, of two runs of a tile.
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        const auto each = [&](auto change) {
#pragma unroll
            for (int column = 0; column < ACROSS; ++column) {
#pragma unroll
                for (int i = 0; i < 4; ++i) change(column, i);
            }
        };
        each([&](int column, int i) {
            if (i % 2 == 0) butterfly(sum[tile][column][i], sum[tile][column][i + 1]);
        });
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2) {
            each([&](int column, int i) {
                sum[tile][column][i] = butterfly_of_lanes(sum[tile][column][i], distance);
            });
        }
#pragma unroll
        for (int distance = 1; distance < ACROSS; distance *= 2) {
            each([&](int column, int i) {
                if (!(column & distance)) butterfly(sum[tile][column][i], sum[tile][column | distance][i]);
            });
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int j = (first_tile + tile) * 16 + lane / 4 + i / 2 * 8;
            uint4* to = y + j * ACROSS + lane % 4;
#pragma unroll
            for (int column = 0; column < ACROSS; column += 4) {
                unsigned words[4];
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    words[n] = packed(SCALE * sum[tile][column + n][i], SCALE * sum[tile][column + n][i + 1]);
                // Of four vectors each of four lanes has a word; then each has a vector.
                exchange(words[0], words[1], 1), exchange(words[2], words[3], 1);
                exchange(words[0], words[2], 2), exchange(words[1], words[3], 2);
                if (j < SIZE) to[column] = uint4{words[0], words[1], words[2], words[3]};
            }
        }
    }
}
