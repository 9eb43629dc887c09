// Rows times Sylvester's Hadamard matrix of order 2^LOG_ORDER, divided by the root of its order: for a contiguous
// tensor whose runs of that many neighbours are the rows. One reading and one writing of global memory, float32 in
// between.
//
// Compiled at first use by NVRTC (hadamard_cuda.py) behind storage.cu and butterflies.cu, with these in front:
//   LOG_ORDER  log2 of the order, 1 to 14
//   STORAGE    FLOAT32, BFLOAT16 or FLOAT16: of what is written
//   READ_AS    of what is read: the same, or BFLOAT16 or FLOAT16 where FLOAT32 is written
//   SCALE      2^(-LOG_ORDER / 2), by which elements are multiplied as they are read: no sum then leaves the range of
//              float32 unless an answer nearly does
//   LOG_KEPT, PARTS, THREADS   see below
//
// The product with the matrix is one butterfly (a, b) -> (a + b, a - b) for each bit of an element's index, over the
// pairs that differ in that bit, in any order of the bits. A thread holds KEPT elements of each of PARTS parts of a row
// (one, or the halves of the longest row), and does the butterflies of the bits that number these in its registers. The
// index of an element, highest bit first, is in the two arrangements
//
//   as read and written    | part | high bits of its number | lane of its row | low bits: 16 bytes |
//   exchanged              | part | rest of lane            | its number      | rest of lane       |
//
// A row of up to 512 elements belongs to at most a warp, and butterflies over the bits of the lane are done by
// shuffles, one an element and bit. Longer rows are exchanged through shared memory: four accesses an element there and
// back, but LOG_KEPT bits at once; the lowest bits of the lane, where these are too few, are left to shuffles. That
// makes at most five accesses an element.

// What is read at once: as many elements as the 16 bytes that are written.
constexpr bool WIDENS = WIDE && READ_AS != FLOAT32;
template <bool>
struct VectorOf {
    typedef uint4 type;
};
template <>
struct VectorOf<true> {
    typedef uint2 type;
};
typedef VectorOf<WIDENS>::type Read;
struct Words {
    unsigned of[sizeof(Read) / 4];
};
constexpr int LOG_VECTOR = WIDE ? 2 : 3;  // elements in 16 bytes
constexpr int VECTOR = 1 << LOG_VECTOR;
constexpr int KEPT = 1 << LOG_KEPT;
constexpr int VECTORS = KEPT / VECTOR;
constexpr int LOG_PART = PARTS == 2 ? LOG_ORDER - 1 : LOG_ORDER;
constexpr int LOG_LANES = LOG_PART > LOG_KEPT ? LOG_PART - LOG_KEPT : 0;  // threads to a row
constexpr int LANES = 1 << LOG_LANES;
// Resident on a multiprocessor at least: leaves a thread twice the registers that its elements take.
constexpr int THREAD_BLOCKS = 65536 / (THREADS * (KEPT * PARTS > 32 ? 2 * KEPT * PARTS : 64));
constexpr int TILE = THREADS * KEPT;  // elements that a thread block holds at once: a part, a row or several

constexpr bool EXCHANGED = LOG_ORDER > 9;
constexpr int SHUFFLED = !EXCHANGED ? LOG_LANES : LOG_LANES > LOG_KEPT ? LOG_LANES - LOG_KEPT : 0;  // bits of the lane
constexpr int LOG_APART = EXCHANGED ? LOG_VECTOR + LOG_LANES - LOG_KEPT : 0;  // exchanged, a thread's elements are
constexpr int DONE = LOG_LANES < LOG_KEPT ? LOG_KEPT - LOG_LANES : 0;  // bits of their number that are done before

FUNCTION void read_vector(float* value, Read read) {
    constexpr bool HALVES = READ_AS != FLOAT32;
    const Words words = __builtin_bit_cast(Words, read);
    UNROLL for (int i = 0; i < VECTOR; ++i) {
        const unsigned word = words.of[HALVES ? i / 2 : i];
        value[i] = SCALE * (HALVES ? widened<READ_AS>((unsigned short)(i % 2 ? word >> 16 : word)) : from_bits(word));
    }
}

FUNCTION uint4 vector_of(const float* value) {
    unsigned words[4];
    UNROLL for (int i = 0; i < 4; ++i) words[i] = WIDE ? bits_of(value[i]) : packed(value[2 * i], value[2 * i + 1]);
    return uint4{words[0], words[1], words[2], words[3]};
}

// Element number i of a thread stands among the TILE elements that its thread block holds at the sum of a place of the
// thread and one of i, which have no bit in common.
FUNCTION int thread_as_read(int thread) { return thread / LANES * (LANES * KEPT) + thread % LANES * VECTOR; }
FUNCTION constexpr int number_as_read(int i) { return i / VECTOR * (LANES * VECTOR) + i % VECTOR; }
FUNCTION int thread_exchanged(int thread) {
    return ((thread >> LOG_APART) << (LOG_APART + LOG_KEPT)) + (thread & ((1 << LOG_APART) - 1));
}
FUNCTION constexpr int number_exchanged(int i) { return i << LOG_APART; }

// A place in shared memory, with gaps such that no two lanes of a warp meet in a bank in either arrangement. Of a sum
// without carries it is the sum, so that the part of i is a constant.
FUNCTION constexpr int with_gaps(int place) {
    return place + (place >> 5) + (LOG_KEPT == 6 && LOG_APART < 5 ? (place >> 10) << LOG_APART : 0);
}
#define AS_READ(i) shared[with_gaps(thread_as_read(thread)) + with_gaps(number_as_read(i))]
#define IN_EXCHANGE(i) shared[with_gaps(thread_exchanged(thread)) + with_gaps(number_exchanged(i))]
constexpr int SHARED = EXCHANGED ? with_gaps(TILE - 1) + 1 : 1;

// The butterflies over the bits FIRST to LAST - 1 of the number of a thread's elements.
template <int FIRST, int LAST>
FUNCTION void butterflies(float (&value)[KEPT]) {
    UNROLL for (int bit = FIRST; bit < LAST; ++bit) {
        UNROLL for (int i = 0; i < KEPT; ++i)
            if (!(i >> bit & 1)) butterfly(value[i], value[i | 1 << bit]);
    }
}

// `vectors` counts the 16-byte pieces of y, and as many of x, which hold a whole number of rows.
extern "C" __global__ void __launch_bounds__(THREADS, THREAD_BLOCKS)
    hadamard(const Read* x, uint4* y, long long vectors) {
    __shared__ float shared[SHARED];
    const long long first = (long long)blockIdx.x * (PARTS * TILE / VECTOR);
    const int thread = threadIdx.x;
    float value[PARTS][KEPT];
    UNROLL for (int part = 0; part < PARTS; ++part) {
        UNROLL for (int i = 0; i < VECTORS; ++i) {
            const int place = part * TILE + thread_as_read(thread) + number_as_read(i * VECTOR);
            const long long at = first + place / VECTOR;
            read_vector(value[part] + i * VECTOR, at < vectors ? x[at] : Read{});
        }
        butterflies<0, (LOG_PART < LOG_KEPT ? LOG_PART : LOG_KEPT)>(value[part]);
    }
    if (PARTS == 2) {
        UNROLL for (int i = 0; i < KEPT; ++i) butterfly(value[0][i], value[PARTS - 1][i]);
    }
    UNROLL for (int part = 0; part < PARTS; ++part) {
        UNROLL for (int bit = 0; bit < SHUFFLED; ++bit) {
            UNROLL for (int i = 0; i < KEPT; ++i) value[part][i] = butterfly_of_lanes(value[part][i], 1 << bit);
        }
        if (EXCHANGED) {
            // The places that a thread writes last are those that it read in the same arrangement, which needs no
            // waiting, from this part to the next too.
            UNROLL for (int i = 0; i < KEPT; ++i) AS_READ(i) = value[part][i];
            __syncthreads();
            UNROLL for (int i = 0; i < KEPT; ++i) value[part][i] = IN_EXCHANGE(i);
            butterflies<DONE, LOG_KEPT>(value[part]);
            UNROLL for (int i = 0; i < KEPT; ++i) IN_EXCHANGE(i) = value[part][i];
            __syncthreads();
            UNROLL for (int i = 0; i < KEPT; ++i) value[part][i] = AS_READ(i);
        }
        UNROLL for (int i = 0; i < VECTORS; ++i) {
            const int place = part * TILE + thread_as_read(thread) + number_as_read(i * VECTOR);
            const long long at = first + place / VECTOR;
            if (at < vectors) y[at] = vector_of(value[part] + i * VECTOR);
        }
    }
}
