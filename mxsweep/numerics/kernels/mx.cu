// Fake quantization to a microscaling format: the exact arithmetic of definition.py, bit for bit, and what kernels on a
// GPU need beside it. The kernels themselves stand in other files, which are compiled behind this one.
//
// Compiled at first use by NVRTC (source.py), which prepends the format and the storage type as macros, so that every
// choice below that depends on them is made by the compiler. No header is needed, CUDA's included. The arithmetic, up
// to "Vectors", is plain C++ that a host compiler accepts as well: there a Format is an ordinary argument, and the
// tests compare what it computes with the torch definition on machines without a GPU.
//
// Every operation is one IEEE 754 float32 operation, rounded to nearest even, subnormals kept. A compiler must not
// contract a product and a sum into one (NVRTC: -fmad=false, g++: -ffp-contract=off). Where fused operations are
// wanted, in `quick_quotient`, `reciprocal_of` and `magnitude_on_grid`, they are written.

#ifdef __CUDACC__
#define MX_FUNCTION __device__ __forceinline__
#else
#include <math.h>
#define MX_FUNCTION static inline
#endif

// ---------------------------------------------------------------------------------------------- The arithmetic

// Roundings in the order of the names in formats/.
enum Rounding { NEAREST, EVEN, FLOOR, STOCHASTIC };
enum Scale { E8M0, MINIFLOAT, FP32 };
enum ScaleRounding { SCALE_FLOOR, SCALE_EVEN, SCALE_CEIL, SCALE_RCEIL };

// The values of a small float: u = 2^(max(exponent, min_exponent) - mantissa_bits) apart, from `lowest` to `largest`.
struct Grid {
    int mantissa_bits, min_exponent;
    float largest, lowest;
};

// MXFormat, without its block size. Of `scale_grid` an fp32 scale has `largest` only, an e8m0 scale nothing.
struct Format {
    Grid element;
    int max_exponent;  // of the element format's largest value
    int rounding, scale, scale_rounding, max_scale_exponent;
    Grid scale_grid;
    float smallest_scale;  // but of an e8m0 scale
    bool symmetric, tensor_scale;
};

// What the elements of one block are divided and multiplied by, and first lessened by.
struct BlockScale {
    float scale, reciprocal, midpoint;
    bool quick;  // whether `quick_quotient` may divide by `scale`
};

constexpr unsigned SIGN = 0x80000000u;
constexpr unsigned INFINITY_BITS = 0x7f800000u;  // a magnitude's bits from here up are Inf or NaN
constexpr int MANTISSA_BITS = 23, BIAS = 127;
constexpr unsigned IMPLICIT_ONE = 1u << MANTISSA_BITS;  // also the bits of 2^-126, the smallest normal float32
constexpr unsigned HALF_ONE = IMPLICIT_ONE / 2;         // also the bits of 2^-127

MX_FUNCTION unsigned bits_of(float value) { return __builtin_bit_cast(unsigned, value); }
MX_FUNCTION float from_bits(unsigned bits) { return __builtin_bit_cast(float, bits); }
MX_FUNCTION float not_a_number() { return from_bits(0x7fc00000u); }
// 2^exponent, from -127 to 127.
MX_FUNCTION float power_of_two(int exponent) {
    return from_bits(exponent == -BIAS ? HALF_ONE : unsigned(exponent + BIAS) << MANTISSA_BITS);
}

// The sum, rounded toward zero, of numbers that are not negative, `large` a normal one that is at least twice the other.
MX_FUNCTION float sum_toward_zero(float small, float large) {
#ifdef __CUDA_ARCH__
    float sum;
    asm("add.rz.f32 %0, %1, %2;" : "=f"(sum) : "f"(small), "f"(large));
    return sum;
#else
    const float sum = small + large;
    return sum - large > small ? from_bits(bits_of(sum) - 1u) : sum;
#endif
}

// |a| on a grid, saturated. Adding and subtracting 1.5 * 2^23 * u leaves no bit below u, and the addition rounds to
// nearest even. The other roundings are made from that one:
//   NEAREST     Ties go away from zero: setting the lowest bit of |a| lifts a tie, whose low bits are all zero, above
//               itself, and moves nothing else across a tie (the float just below a tie has that bit set already).
//   FLOOR       Toward zero, and so does the addition.
//   STOCHASTIC  Up from there iff the random number v < (|a| - down) / u. Both sides are taken times u, which is exact;
//               `random` is 1 + v, so that v * u is one operation.
// A NaN becomes `largest`: its block's scale is NaN, by which it is multiplied next.
MX_FUNCTION float magnitude_on_grid(float a, Grid grid, int rounding, float random) {
    // The same constant of every format but mint<n>.
    float magnitude = fminf(fabsf(a), grid.lowest < -grid.largest && a < 0.0f ? -grid.lowest : grid.largest);
    // From the power of two 2^max(exponent, min_exponent) = u * 2^mantissa_bits, all in the bits of a float.
    const unsigned to_shift = (unsigned(MANTISSA_BITS - grid.mantissa_bits) << MANTISSA_BITS) + HALF_ONE;
    const unsigned least = (unsigned(grid.min_exponent + BIAS) << MANTISSA_BITS) + to_shift;
    const unsigned own = (bits_of(magnitude) & INFINITY_BITS) + to_shift;
    const unsigned shift_bits = own > least ? own : least;
    const float shift = from_bits(shift_bits);
    if (rounding == FLOOR || rounding == STOCHASTIC) {
        const float down = sum_toward_zero(magnitude, shift) - shift;
        if (rounding == FLOOR) return down;
        const float u = from_bits(shift_bits - to_shift - (unsigned(grid.mantissa_bits) << MANTISSA_BITS));
        return fmaf(random, u, -u) < magnitude - down ? down + u : down;
    }
    if (rounding == NEAREST) magnitude = from_bits(bits_of(magnitude) | 1u);
    float rounded = (magnitude + shift) - shift;
    if (rounding == EVEN && grid.mantissa_bits == 0) {
        // Midway between two powers of two the sum takes the upper; wanted is the one with the even code.
        const unsigned power = shift_bits - to_shift;
        const unsigned code = (power >> MANTISSA_BITS) - unsigned(grid.min_exponent + BIAS - 1);
        if (magnitude == 1.5f * from_bits(power) && code % 2 == 0) rounded = from_bits(power);
    }
    return rounded;
}

// The exponent that a block's e8m0 scale holds, before NaN above `max_scale_exponent`: scales.py's `exact_exponent`.
MX_FUNCTION int scale_exponent(float amax, Format format) {
    const bool by_quotient = format.scale_rounding == SCALE_RCEIL;
    int bits = int(bits_of(by_quotient ? amax / format.element.largest : amax));
    if (bits < int(IMPLICIT_ONE)) {
        // Subnormals from 2^-127 up, rewritten as if exponent code 0 had an implicit one like the others.
        bits = 2 * bits - int(IMPLICIT_ONE);
        if (bits < 0) bits = 0;
    }
    if (format.scale_rounding == SCALE_EVEN) bits += 1 << (MANTISSA_BITS - 1 - format.element.mantissa_bits);
    if (format.scale_rounding == SCALE_CEIL || by_quotient) bits += int(IMPLICIT_ONE) - 1;
    const int exponent = (bits >> MANTISSA_BITS) - BIAS - (by_quotient ? 0 : format.max_exponent);
    return exponent < -format.max_scale_exponent ? -format.max_scale_exponent : exponent;
}

// 1 / x for x from 2^-100 to 2^100.
MX_FUNCTION float reciprocal_of(float x) {
#ifdef __CUDA_ARCH__
    float rough;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rough) : "f"(x));
    return fmaf(fmaf(-x, rough, 1.0f), rough, rough);
#else
    return 1.0f / x;
#endif
}

// g of a per-tensor scale; scales.py's `tensor_scale_of`.
MX_FUNCTION float tensor_scale_of(float tensor_amax, Format format) {
    if (tensor_amax == 0.0f) return 1.0f;
    const float g = (format.scale_grid.largest * format.element.largest) / tensor_amax;
    return g > from_bits(INFINITY_BITS - 1) ? from_bits(INFINITY_BITS - 1) : g;  // a NaN stays one
}

MX_FUNCTION float nearest_bfloat16(float value) {
    const unsigned bits = bits_of(value);
    return from_bits((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// The IEEE quotient of numbers whose quotient and whose every intermediate here are normal: a first quotient corrected by
// its exact remainder (P. Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", IBM J.
// Res. Dev. 34, 1990). With `reciprocal_of` it is what a GPU's own division does for such numbers; written out, the many
// dividends of one divisor share the reciprocal, and the test for other numbers.
MX_FUNCTION float quick_quotient(float x, float divisor, float reciprocal) {
    const float q = x * reciprocal;
    return fmaf(fmaf(-divisor, q, x), reciprocal, q);
}

MX_FUNCTION bool is_ordinary(float value) { return value > power_of_two(-40) && value < power_of_two(40); }

// The largest magnitude of a block, given its bits and, read for asymmetric formats only, its smallest and largest value:
// there it is that of what the midpoint leaves. A NaN's bits lie above an Inf's.
MX_FUNCTION float amax_of_block(Format format, unsigned amax_bits, float low, float high, float& midpoint) {
    midpoint = 0.0f;
    if (format.symmetric || amax_bits >= INFINITY_BITS) return from_bits(amax_bits);
    const float largest_bfloat16 = from_bits(0x7f7f0000u);
    midpoint = nearest_bfloat16(fminf(fmaxf(low * 0.5f + high * 0.5f, -largest_bfloat16), largest_bfloat16));
    return fmaxf(high - midpoint, midpoint - low);
}

// A stored scale for the value `wanted`, which is not NaN.
MX_FUNCTION float stored_scale(float wanted, Format format) {
    const float held = fminf(fmaxf(wanted, format.smallest_scale), format.scale_grid.largest);
    return format.scale == FP32 ? held : magnitude_on_grid(held, format.scale_grid, EVEN, 0.0f);
}

// scales.py's `exact_scale`. g is read for formats with a per-tensor scale.
MX_FUNCTION BlockScale scale_of_block(Format format, float amax, float midpoint, float g) {
    const bool finite = bits_of(amax) < INFINITY_BITS;
    if (format.scale == E8M0) {
        const int exponent = scale_exponent(amax, format);
        const bool held = finite && exponent <= format.max_scale_exponent;
        return {held ? power_of_two(exponent) : not_a_number(), power_of_two(held ? -exponent : 0), midpoint, true};
    }
    if (!finite) return {not_a_number(), 1.0f, midpoint, false};
    float scale = stored_scale((format.tensor_scale ? amax * g : amax) / format.element.largest, format);
    if (format.tensor_scale) scale = scale / g;  // NaN where g is
    return {scale, 1.0f, midpoint, false};
}

// The same with quick quotients, where `quick` says that they were allowed: in ordinary ranges of values every
// intermediate is normal, except in quotients so small that a stored scale, or rounding, makes nothing of them (also the
// stochastic, whose random numbers are not below 2^-17). The comparisons are false for NaN.
MX_FUNCTION BlockScale quick_scale_of_block(Format format, float amax, float midpoint, float g) {
    if (format.scale == E8M0) return scale_of_block(format, amax, midpoint, g);
    const float wanted = format.tensor_scale ? amax * g : amax, largest = format.element.largest;
    float scale = stored_scale(quick_quotient(wanted, largest, 1.0f / largest), format);
    bool quick = format.element.min_exponent > -16 && amax < power_of_two(40);
    if (format.tensor_scale) {
        scale = quick_quotient(scale, g, reciprocal_of(g));
        quick = quick && is_ordinary(g);
    }
    if (format.scale == FP32) quick = quick && is_ordinary(scale);
    return {scale, reciprocal_of(scale), midpoint, quick};
}

// The IEEE quotient x / scale. By a power of two it is the product with the reciprocal, which is exact.
MX_FUNCTION float quotient(float x, BlockScale block, Format format) {
    if (format.scale == E8M0) return x * block.reciprocal;
    if (block.quick) return quick_quotient(x, block.scale, block.reciprocal);
    return x / block.scale;
}

// What the element x of a block becomes. The sign is that of what was rounded, a zero's too.
MX_FUNCTION float quantized(float x, BlockScale block, Format format, float random) {
    const float centered = format.symmetric ? x : x - block.midpoint;
    const float a = quotient(centered, block, format);
    const float magnitude = magnitude_on_grid(a, format.element, format.rounding, random);
    const float y = from_bits(bits_of(magnitude) | (bits_of(centered) & SIGN)) * block.scale;
    return format.symmetric ? y : y + block.midpoint;
}

// The random bits of eight elements, the n-th eight of an example: Philox4x32-7; philox.py has its source. An element takes
// half a word.
struct Bits {
    unsigned words[4];
};
MX_FUNCTION Bits random_bits(unsigned long long key, unsigned long long n, unsigned long long example) {
    unsigned c0 = unsigned(n), c1 = unsigned(n >> 32), c2 = unsigned(example), c3 = unsigned(example >> 32);
    unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
    for (int round = 0; round < 7; ++round) {
        const unsigned long long p0 = 0xd2511f53ull * c0, p2 = 0xcd9e8d57ull * c2;
        c0 = unsigned(p2 >> 32) ^ c1 ^ k0;
        c1 = unsigned(p2);
        c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// 1 + v with v = (r + 1/2) / 2^16, r being the i-th half of eight: `magnitude_on_grid`'s `random`.
MX_FUNCTION float random_of(Bits bits, int i) {
    const unsigned word = i & 4 ? (i & 2 ? bits.words[3] : bits.words[2]) : (i & 2 ? bits.words[1] : bits.words[0]);
    return from_bits(((i & 1 ? word >> 9 : word << 7) & 0x7fff80u) | (unsigned(BIAS) << MANTISSA_BITS) | 0x40u);
}

#ifdef __CUDACC__
// ---------------------------------------------------------------------------------------------------- Vectors
//
// MX_FORMAT   the initializer of a Format
// MX_STORAGE  FLOAT32, BFLOAT16 or FLOAT16
// MX_LANES    threads that share a block of neighbouring elements, a power of two up to 32

constexpr int FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2;
constexpr Format FORMAT = MX_FORMAT;
constexpr int STORAGE = MX_STORAGE;
constexpr bool WIDE = STORAGE == FLOAT32;
constexpr int PER_WORD = WIDE ? 1 : 2;     // elements in 32 bits
constexpr int PER_VECTOR = 4 * PER_WORD;  // elements in the 16 bytes that a thread reads at once
constexpr unsigned ALL = 0xffffffffu;

typedef unsigned long long u64;
typedef long long i64;

// Where the per-tensor scales g are (`group` elements share one), and what stochastic rounding draws from: `example`
// elements are an example, of which the first has the number `first_example`; -1 where all draw as number 0.
struct Beside {
    const float* tensor_scales;
    i64 group;
    u64 key;
    i64 example, first_example;
};
#define BESIDE_ARGUMENTS const float *tensor_scales, i64 group, u64 key, i64 example, i64 first_example
#define BESIDE {tensor_scales, group, key, example, first_example}

// a / b for numbers that are not negative. A GPU divides 64 bits several times more slowly than 32, and those slowly.
MX_FUNCTION i64 divided(i64 a, i64 b) {
    if (a < b) return 0;
    return (a | b) >> 32 ? a / b : i64(unsigned(a) / unsigned(b));
}

MX_FUNCTION float widened(unsigned short code) {
    if (STORAGE == BFLOAT16) return from_bits(unsigned(code) << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(code));
    return value;
}

MX_FUNCTION unsigned short narrowed(float value) {
    unsigned short code;
    if (STORAGE == FLOAT16) {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(value));
        return code;
    }
    const unsigned magnitude = bits_of(value) & ~SIGN;
    return magnitude > INFINITY_BITS ? 0x7fc0 : (unsigned short)(bits_of(nearest_bfloat16(value)) >> 16);
}

MX_FUNCTION unsigned packed(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    if (STORAGE == BFLOAT16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return narrowed(low) | (unsigned(narrowed(high)) << 16);
#endif
}

MX_FUNCTION float element_of(const unsigned (&words)[4], int i) {
    if (WIDE) return from_bits(words[i]);
    const unsigned word = words[i / 2];
    if (STORAGE == BFLOAT16) return from_bits(i % 2 ? word & 0xffff0000u : word << 16);
    return widened((unsigned short)(i % 2 ? word >> 16 : word));
}

// Bits of a magnitude as stored, both halves of a word at once, ordered as the magnitudes are (NaN above Inf).
MX_FUNCTION unsigned magnitudes(unsigned word) { return word & (WIDE ? 0x7fffffffu : 0x7fff7fffu); }
MX_FUNCTION unsigned larger(unsigned a, unsigned b) { return WIDE ? (a > b ? a : b) : __vmaxu2(a, b); }

// The float32 bits of the larger magnitude in a word.
MX_FUNCTION unsigned magnitude_bits(unsigned word) {
    if (WIDE) return word;
    const unsigned low = word & 0xffffu, high = word >> 16;
    return bits_of(widened((unsigned short)(low > high ? low : high)));
}

MX_FUNCTION float tensor_scale_at(Beside beside, i64 i) {
    return FORMAT.tensor_scale ? beside.tensor_scales[divided(i, beside.group)] : 1.0f;
}

// The number of element i's example, and i's place in it.
struct Place {
    u64 example, i;
};
MX_FUNCTION Place place_of(Beside beside, i64 i) {
    const i64 before = divided(i, beside.example);
    return {beside.first_example < 0 ? 0 : u64(beside.first_example + before), u64(i - before * beside.example)};
}

MX_FUNCTION float random_at(Beside beside, i64 i) {
    if (FORMAT.rounding != STOCHASTIC) return 0.0f;
    const Place place = place_of(beside, i);
    return random_of(random_bits(beside.key, place.i / 8, place.example), int(place.i % 8));
}

// The 1 + v of the elements of a vector that begins at `place`.
MX_FUNCTION void draw_vector(float (&random)[PER_VECTOR], u64 key, Place place) {
    const Bits bits = random_bits(key, place.i / 8, place.example);
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) random[i] = random_of(bits, WIDE && place.i % 8 ? i + 4 : i);
}

MX_FUNCTION uint4 packed_vector(const float (&values)[PER_VECTOR]) {
    unsigned words[4];
#pragma unroll
    for (int word = 0; word < 4; ++word)
        words[word] = WIDE ? bits_of(values[word]) : packed(values[word * PER_WORD], values[word * PER_WORD + PER_WORD - 1]);
    return uint4{words[0], words[1], words[2], words[3]};
}

MX_FUNCTION float read_at(const void* x, i64 i) {
    return WIDE ? static_cast<const float*>(x)[i] : widened(static_cast<const unsigned short*>(x)[i]);
}

MX_FUNCTION void write_at(void* y, i64 i, float value) {
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
MX_FUNCTION Extremes extremes_of_vector(const unsigned (&words)[4], Format format) {
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
MX_FUNCTION Extremes extremes_of_row(Extremes of, Format format) {
#pragma unroll
    for (int distance = MX_LANES / 2; distance; distance /= 2) {
        of.magnitude = larger(of.magnitude, __shfl_xor_sync(ALL, of.magnitude, distance));
        if (format.symmetric) continue;
        of.low = fminf(of.low, __shfl_xor_sync(ALL, of.low, distance));
        of.high = fmaxf(of.high, __shfl_xor_sync(ALL, of.high, distance));
    }
    return of;
}

// What the elements of a vector, all of one block, become. `place` is read for stochastic rounding only.
MX_FUNCTION uint4 quantized_vector(const unsigned (&words)[4], Extremes of, Format format, float g, u64 key, Place place) {
    float random[PER_VECTOR] = {}, result[PER_VECTOR];
    if (format.rounding == STOCHASTIC) draw_vector(random, key, place);
    float midpoint;
    const float amax = amax_of_block(format, magnitude_bits(of.magnitude), of.low, of.high, midpoint);
    // Two loops, since a choice inside one would be made for each element.
    BlockScale block = quick_scale_of_block(format, amax, midpoint, g);
    if (block.quick) {
        block.quick = true;
#pragma unroll
        for (int i = 0; i < PER_VECTOR; ++i) result[i] = quantized(element_of(words, i), block, format, random[i]);
    } else {
        block = scale_of_block(format, amax, midpoint, g);
        block.quick = false;
#pragma unroll
        for (int i = 0; i < PER_VECTOR; ++i) result[i] = quantized(element_of(words, i), block, format, random[i]);
    }
    return packed_vector(result);
}
#endif
