// What kernels on a GPU need beside the arithmetic: elements in memory, 16 bytes at a time. Compiled behind mx.cu, pairs.cu
// and storage.cu.
//
// MX_FORMAT   the initializer of a Format
// MX_LANES    threads that share a block of neighbouring elements, a power of two up to 32
// MX_RANGES   where kernels keep the exponents that e8m0 scales want, in how many places, MX_RANGE numbers each; else not
//             there

constexpr Format FORMAT = MX_FORMAT;
constexpr int PER_WORD = WIDE ? 1 : 2;     // elements in 32 bits
constexpr int PER_VECTOR = 4 * PER_WORD;  // elements in the 16 bytes that a thread reads at once

#ifdef MX_RANGES
constexpr bool KEEPS = true;
#define RANGES_ARGUMENT , int *ranges
#define RANGES ranges
#else
constexpr bool KEEPS = false;
#define RANGES_ARGUMENT
#define RANGES nullptr
#endif

// Where the per-tensor scales g are (`group` elements share one), and what stochastic rounding draws from: `example`
// elements are an example, of which the first has the number `first_example`; -1 where all draw as number 0.
struct Beside {
    const float* tensor_scales;
    i64 group;
    u64 key;
    i64 example, first_example;
    int* ranges;
};
#define BESIDE_ARGUMENTS const float *tensor_scales, i64 group, u64 key, i64 example, i64 first_example RANGES_ARGUMENT
#define BESIDE {tensor_scales, group, key, example, first_example, RANGES}

// a / b for numbers that are not negative. A GPU divides 64 bits several times more slowly than 32, and those slowly.
FUNCTION i64 divided(i64 a, i64 b) {
    if (a < b) return 0;
    return (a | b) >> 32 ? a / b : i64(unsigned(a) / unsigned(b));
}

FUNCTION float element_of(const unsigned (&words)[4], int i) {
    if (WIDE) return from_bits(words[i]);
    const unsigned word = words[i / 2];
    if (STORAGE == BFLOAT16) return from_bits(i % 2 ? word & 0xffff0000u : word << 16);
    return widened((unsigned short)(i % 2 ? word >> 16 : word));
}

// Bits of a magnitude as stored, both halves of a word at once, ordered as the magnitudes are (NaN above Inf).
FUNCTION unsigned magnitudes(unsigned word) { return word & (WIDE ? 0x7fffffffu : 0x7fff7fffu); }
FUNCTION unsigned larger(unsigned a, unsigned b) { return WIDE ? (a > b ? a : b) : __vmaxu2(a, b); }

// A word with the largest finite value for Inf, the code below, where `format` wants that.
FUNCTION unsigned without_inf(unsigned word, Format format) {
    if (!format.saturates) return word;
    if (WIDE) return magnitudes(word) == INFINITY_BITS ? word - 1u : word;
    const unsigned infinity = STORAGE == BFLOAT16 ? 0x7f80u : 0x7c00u, halves = magnitudes(word);
    return word - ((halves & 0xffffu) == infinity ? 1u : 0u) - (halves >> 16 == infinity ? 0x10000u : 0u);
}

// The float32 bits of the larger magnitude in a word.
FUNCTION unsigned magnitude_bits(unsigned word) {
    if (WIDE) return word;
    const unsigned low = word & 0xffffu, high = word >> 16;
    return bits_of(widened((unsigned short)(low > high ? low : high)));
}

FUNCTION float tensor_scale_at(Beside beside, i64 i) {
    return FORMAT.tensor_scale ? beside.tensor_scales[divided(i, beside.group)] : 1.0f;
}

// The number of element i's example, and i's place in it.
struct Place {
    u64 example, i;
};
FUNCTION Place place_of(Beside beside, i64 i) {
    const i64 before = divided(i, beside.example);
    return {beside.first_example < 0 ? 0 : u64(beside.first_example + before), u64(i - before * beside.example)};
}

// Of the elements of a vector, the first of which is given; they lie within one example, as a row does.
FUNCTION Place place_of_vector(Beside beside, i64 first) {
    return FORMAT.rounding == STOCHASTIC ? place_of(beside, first) : Place{0, 0};
}

FUNCTION float random_at(Beside beside, i64 i) {
    if (FORMAT.rounding != STOCHASTIC) return 0.0f;
    const Place place = place_of(beside, i);
    return random_of(random_bits(beside.key, place.i / 8, place.example), int(place.i % 8));
}

// The 1 + v of the elements of a vector that begins at `place`.
FUNCTION void draw_vector(float (&random)[PER_VECTOR], u64 key, Place place) {
    const Bits bits = random_bits(key, place.i / 8, place.example);
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) random[i] = random_of(bits, WIDE && place.i % 8 ? i + 4 : i);
}

FUNCTION uint4 packed_vector(const float (&values)[PER_VECTOR]) {
    unsigned words[4];
#pragma unroll
    for (int word = 0; word < 4; ++word)
        words[word] = WIDE ? bits_of(values[word]) : packed(values[word * PER_WORD], values[word * PER_WORD + PER_WORD - 1]);
    return uint4{words[0], words[1], words[2], words[3]};
}

FUNCTION float read_at(const void* x, i64 i) {
    if (WIDE) return from_bits(without_inf(static_cast<const unsigned*>(x)[i], FORMAT));
    return widened((unsigned short)without_inf(static_cast<const unsigned short*>(x)[i], FORMAT));
}

FUNCTION void write_at(void* y, i64 i, float value) {
    if (WIDE)
        static_cast<float*>(y)[i] = value;
    else
        static_cast<unsigned short*>(y)[i] = narrowed(value);
}

// The largest magnitude of a vector, and its smallest and largest element where `format` asks for them; then those of a
// block, which MX_LANES neighbouring threads hold.
struct Extremes {
    unsigned magnitude;  // as stored
    float low, high;
};
FUNCTION Extremes extremes_of_vector(const unsigned (&words)[4], Format format) {
    Extremes of = {larger(larger(magnitudes(words[0]), magnitudes(words[1])),
                          larger(magnitudes(words[2]), magnitudes(words[3]))), 0.0f, 0.0f};
    if (format.symmetric) return of;
    of.low = of.high = element_of(words, 0);
#pragma unroll
    for (int i = 1; i < PER_VECTOR; ++i) {
        of.low = fminf(of.low, element_of(words, i));
        of.high = fmaxf(of.high, element_of(words, i));
    }
    return of;
}
FUNCTION Extremes extremes_of_both(Extremes a, Extremes b, Format format) {
    a.magnitude = larger(a.magnitude, b.magnitude);
    if (format.symmetric) return a;
    return {a.magnitude, fminf(a.low, b.low), fmaxf(a.high, b.high)};
}
FUNCTION Extremes extremes_of_lane(Extremes of, int lane, Format format) {
    Extremes from = {__shfl_sync(ALL, of.magnitude, lane), 0.0f, 0.0f};
    if (format.symmetric) return from;
    from.low = __shfl_sync(ALL, of.low, lane);
    from.high = __shfl_sync(ALL, of.high, lane);
    return from;
}
FUNCTION Extremes extremes_of_row(Extremes of, Format format) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = MX_LANES / 2; distance; distance /= 2)
        of = extremes_of_both(of, extremes_of_lane(of, lane ^ distance, format), format);
    return of;
}

// The sum over a block, which `lanes` neighbouring threads have a share of each.
FUNCTION i64 sum_of_lanes(i64 share, int lanes) {
#pragma unroll
    for (int distance = lanes / 2; distance; distance /= 2) share += __shfl_xor_sync(ALL, share, distance);
    return share;
}

FUNCTION unsigned largest_of_warp(unsigned value) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// What is kept of blocks: the least and the largest exponent that they want, and the largest fraction, in MX_RANGES places, among
// which thread blocks take turns, so that they do not wait for each other. A thread compares with what was there when it
// began, which is read beside the elements; what goes beyond that is rare.
struct Range {
    int *ends, low, high, fraction;
};
FUNCTION Range range_of(int* ranges) {
    Range range = {};
#ifdef MX_RANGES
    range.ends = ranges + blockIdx.x % MX_RANGES * MX_RANGE;
#ifdef __CUDA_ARCH__
    int unused;
    asm volatile("ld.volatile.global.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(range.low), "=r"(range.high), "=r"(range.fraction), "=r"(unused)
                 : "l"(range.ends));
#else
    range.low = range.ends[0], range.high = range.ends[1], range.fraction = range.ends[2];
#endif
#endif
    return range;
}
FUNCTION void keep(Range range, float amax, Format format) {
    if (!KEEPS || format.scale != E8M0) return;
    const Kept kept = kept_of(amax, format);
    int low = kept.exponent, high = low, fraction = kept.fraction;
    if (range.low <= low && high <= range.high && fraction <= range.fraction) return;
#if __CUDA_ARCH__ >= 800
    const unsigned lanes = __activemask();
    low = __reduce_min_sync(lanes, low), high = __reduce_max_sync(lanes, high);
    fraction = __reduce_max_sync(lanes, fraction);
    if (threadIdx.x % 32 != __ffs(lanes) - 1) return;
#endif
    atomicMin(&range.ends[0], low);
    atomicMax(&range.ends[1], high);
    atomicMax(&range.ends[2], fraction);
}
FUNCTION void keep_block(Range range, Extremes of, Format format) {
    float midpoint;
    keep(range, amax_of_block(format, magnitude_bits(of.magnitude), of.low, of.high, midpoint), format);
}

// Four over six: how much larger the error of a vector, which begins with the element `first`, is under its block's second
// scale than under the first.
FUNCTION i64 loss_of_vector(const unsigned (&words)[4], Extremes of, float g, Beside beside, i64 first) {
    float random[PER_VECTOR] = {}, midpoint;
    if (FORMAT.rounding == STOCHASTIC) draw_vector(random, beside.key, place_of_vector(beside, first));
    const float amax = amax_of_block(FORMAT, magnitude_bits(of.magnitude), of.low, of.high, midpoint);
    const Candidates candidates = candidates_of_block(FORMAT, amax, midpoint, g);
    i64 loss = 0;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) loss += loss_of_second(element_of(words, i), candidates, FORMAT, random[i]);
    return loss;
}

// Calls `each` with a function that quantizes a vector of a block, given its place, which stochastic rounding reads;
// `second` says whether the block has its second scale.
template <class Each>
FUNCTION void with_scale_of_block(Extremes of, Format format, float g, u64 key, bool second, Each each) {
    if (takes_pairs(format, STORAGE)) {
        const unsigned halves_changed = of.magnitude << 16 | of.magnitude >> 16;
        const PairScale block = scale_of_pair(format, __vmaxu2(of.magnitude, halves_changed));
        each([&](const unsigned (&words)[4], Place) {
            return uint4{quantized_pair(words[0], block, format), quantized_pair(words[1], block, format),
                         quantized_pair(words[2], block, format), quantized_pair(words[3], block, format)};
        });
        return;
    }
    const auto quantize = [&](const unsigned (&words)[4], BlockScale block, Place place) {
        float random[PER_VECTOR] = {}, result[PER_VECTOR];
        if (format.rounding == STOCHASTIC) draw_vector(random, key, place);
#pragma unroll
        for (int i = 0; i < PER_VECTOR; ++i) result[i] = quantized(element_of(words, i), block, format, random[i]);
        return packed_vector(result);
    };
    float midpoint;
    float amax = amax_of_block(format, magnitude_bits(of.magnitude), of.low, of.high, midpoint);
    if (second) amax *= SECOND;
    // Twice, since a choice inside would be made for each element.
    BlockScale block = quick_scale_of_block(format, amax, midpoint, g);
    if (block.quick) {
        block.quick = true;
        each([&](const unsigned (&words)[4], Place place) { return quantize(words, block, place); });
    } else {
        block = scale_of_block(format, amax, midpoint, g);
        block.quick = false;
        each([&](const unsigned (&words)[4], Place place) { return quantize(words, block, place); });
    }
}

// What the elements of a vector, all of one block, become.
FUNCTION uint4 quantized_vector(const unsigned (&words)[4], Extremes of, Format format, float g, u64 key, Place place,
                                bool second = false) {
    uint4 result;
    with_scale_of_block(of, format, g, key, second, [&](auto quantized) { result = quantized(words, place); });
    return result;
}
