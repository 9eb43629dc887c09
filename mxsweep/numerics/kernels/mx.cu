// Fake quantization to a microscaling format in one pass over memory: the exact arithmetic of definition.py, bit for
// bit, for a GPU.
//
// Compiled at first use by NVRTC (cuda.py), which prepends the format and the storage type as macros, so that every
// choice below that depends on them is made by the compiler. No header is needed, CUDA's included. The arithmetic, up
// to "Kernels", is plain C++ that a host compiler accepts as well: there a Format is an ordinary argument, and the
// tests compare what it computes with the torch definition on machines without a GPU.
//
// Every operation is one IEEE 754 float32 operation, rounded to nearest even, subnormals kept. A compiler must not
// contract a product and a sum into one (NVRTC: -fmad=false, g++: -ffp-contract=off). Where fused operations are
// wanted, in `quick_quotient` and `reciprocal_of`, they are written.

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

// |a| on a grid, saturated. Adding and subtracting 1.5 * 2^23 * u leaves no bit below u, and the addition rounds to
// nearest even. The other roundings are made from that one:
//   NEAREST     Ties go away from zero: setting the lowest bit of |a| lifts a tie, whose low bits are all zero, above
//               itself, and moves nothing else across a tie (the float just below a tie has that bit set already).
//   FLOOR       Toward zero: one u back where rounding went up.
//   STOCHASTIC  Up from there iff random < (|a| - down) / u, which is exact.
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
    if (rounding == NEAREST) magnitude = from_bits(bits_of(magnitude) | 1u);
    float rounded = (magnitude + shift) - shift;
    if (rounding == EVEN && grid.mantissa_bits == 0) {
        // Midway between two powers of two the sum takes the upper; wanted is the one with the even code.
        const unsigned power = shift_bits - to_shift;
        const unsigned code = (power >> MANTISSA_BITS) - unsigned(grid.min_exponent + BIAS - 1);
        if (magnitude == 1.5f * from_bits(power) && code % 2 == 0) rounded = from_bits(power);
    }
    if (rounding == FLOOR || rounding == STOCHASTIC) {
        const float u = from_bits(shift_bits - to_shift - (unsigned(grid.mantissa_bits) << MANTISSA_BITS));
        if (rounded > magnitude) rounded = rounded - u;
        if (rounding == STOCHASTIC && random < (magnitude - rounded) / u) rounded = rounded + u;
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
// intermediate is normal, except in quotients so small that a stored scale, or every rounding but the stochastic, makes
// nothing of them. The comparisons are false for NaN.
MX_FUNCTION BlockScale quick_scale_of_block(Format format, float amax, float midpoint, float g) {
    if (format.scale == E8M0) return scale_of_block(format, amax, midpoint, g);
    const float wanted = format.tensor_scale ? amax * g : amax, largest = format.element.largest;
    float scale = stored_scale(quick_quotient(wanted, largest, 1.0f / largest), format);
    bool quick = format.element.min_exponent > -16 && format.rounding != STOCHASTIC && amax < power_of_two(40);
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

// The number in [0, 1) of an example's element i: the first word of Philox4x32-10; philox.py has its source.
MX_FUNCTION float uniform(unsigned long long key, unsigned long long i, unsigned long long example) {
    unsigned c0 = unsigned(i), c1 = unsigned(i >> 32), c2 = unsigned(example), c3 = unsigned(example >> 32);
    unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = 0xd2511f53ull * c0, p2 = 0xcd9e8d57ull * c2;
        c0 = unsigned(p2 >> 32) ^ c1 ^ k0;
        c1 = unsigned(p2);
        c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return float(c0 >> 8) * from_bits(unsigned(BIAS - 24) << MANTISSA_BITS);
}

#ifdef __CUDACC__
// ---------------------------------------------------------------------------------------------------- Kernels
//
// MX_FORMAT   the initializer of a Format
// MX_STORAGE  FLOAT32, BFLOAT16 or FLOAT16
// MX_LANES    threads that share a block in `mx_rows`, a power of two up to 32

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
    return uniform(beside.key, place.i, place.example);
}

MX_FUNCTION void quantize_vector(float (&result)[PER_VECTOR], const unsigned (&words)[4], BlockScale block, u64 key,
                                 Place place) {
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        const float random = FORMAT.rounding == STOCHASTIC ? uniform(key, place.i + i, place.example) : 0.0f;
        result[i] = quantized(element_of(words, i), block, FORMAT, random);
    }
}

// Blocks that cut a contiguous tensor evenly into runs of MX_LANES * PER_VECTOR elements: one thread for 16 bytes, the
// block's maximum by shuffles, nothing read twice. `vectors` counts the 16-byte pieces.
extern "C" __global__ void __launch_bounds__(256) mx_rows(const uint4* x, uint4* y, i64 vectors, BESIDE_ARGUMENTS) {
    const Beside beside = BESIDE;
    // After the pass for a per-tensor scale the end of x is what the L2 cache still holds: begin there.
    const unsigned thread_block = FORMAT.tensor_scale ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const i64 vector = i64(thread_block) * blockDim.x + threadIdx.x;
    const bool inside = vector < vectors;
    const i64 first = vector * PER_VECTOR;
    const uint4 read = inside ? x[vector] : uint4{0, 0, 0, 0};
    const float g = inside ? tensor_scale_at(beside, first) : 1.0f;
    const unsigned words[4] = {read.x, read.y, read.z, read.w};

    unsigned largest = larger(larger(magnitudes(words[0]), magnitudes(words[1])),
                              larger(magnitudes(words[2]), magnitudes(words[3])));
#pragma unroll
    for (int distance = MX_LANES / 2; distance; distance /= 2)
        largest = larger(largest, __shfl_xor_sync(ALL, largest, distance));
    float low = 0.0f, high = 0.0f;
    if (!FORMAT.symmetric) {
        low = high = element_of(words, 0);
#pragma unroll
        for (int i = 1; i < PER_VECTOR; ++i) {
            low = fminf(low, element_of(words, i));
            high = fmaxf(high, element_of(words, i));
        }
#pragma unroll
        for (int distance = MX_LANES / 2; distance; distance /= 2) {
            low = fminf(low, __shfl_xor_sync(ALL, low, distance));
            high = fmaxf(high, __shfl_xor_sync(ALL, high, distance));
        }
    }
    if (!inside) return;

    // A row, and so these elements, lie within one example.
    const Place place = FORMAT.rounding == STOCHASTIC ? place_of(beside, first) : Place{0, 0};
    float midpoint;
    const float amax = amax_of_block(FORMAT, magnitude_bits(largest), low, high, midpoint);
    // Two loops, since a choice inside one would be made for each element.
    const BlockScale block = quick_scale_of_block(FORMAT, amax, midpoint, g);
    float result[PER_VECTOR];
    if (block.quick)
        quantize_vector(result, words, {block.scale, block.reciprocal, midpoint, true}, beside.key, place);
    else
        quantize_vector(result, words, scale_of_block(FORMAT, amax, midpoint, g), beside.key, place);
    unsigned written[4];
#pragma unroll
    for (int word = 0; word < 4; ++word)
        written[word] = WIDE ? bits_of(result[word]) : packed(result[word * PER_WORD], result[word * PER_WORD + PER_WORD - 1]);
    y[vector] = uint4{written[0], written[1], written[2], written[3]};
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

// A tensor as `outer` matrices of height x width, cut into tiles of `rows` x `columns`; those at the edges are smaller.
struct Tiling {
    i64 outer, height, width, rows, columns;
};
#define TILING_ARGUMENTS i64 outer, i64 height, i64 width, i64 rows, i64 columns
#define TILING {outer, height, width, rows, columns}

// Any block, LANES threads each: its elements are read twice, the second time mostly from the caches.
template <int LANES>
MX_FUNCTION void tiles(const void* x, void* y, Tiling tiling, Beside beside) {
    const i64 down = (tiling.height + tiling.rows - 1) / tiling.rows;
    const i64 across = (tiling.width + tiling.columns - 1) / tiling.columns;
    const i64 tile = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    if (tile >= tiling.outer * down * across) return;  // whole groups of LANES leave together
    const i64 top = tile / across % down * tiling.rows, left = tile % across * tiling.columns;
    const i64 rows = tiling.rows < tiling.height - top ? tiling.rows : tiling.height - top;
    const i64 columns = tiling.columns < tiling.width - left ? tiling.columns : tiling.width - left;
    const i64 corner = (tile / across / down * tiling.height + top) * tiling.width + left;
    // An element's place in the tile, advanced by LANES without dividing.
    const i64 first_row = threadIdx.x % LANES / columns, first_column = threadIdx.x % LANES % columns;
    const auto advance = [columns](i64& row, i64& column) {
        for (column += LANES; column >= columns; column -= columns) ++row;
    };

    unsigned largest = 0;
    float low = from_bits(INFINITY_BITS), high = -low;
#pragma unroll 1
    for (i64 row = first_row, column = first_column; row < rows; advance(row, column)) {
        const float value = read_at(x, corner + row * tiling.width + column);
        const unsigned magnitude = bits_of(value) & ~SIGN;
        largest = magnitude > largest ? magnitude : largest;
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL, largest, distance);
        largest = other > largest ? other : largest;
        low = fminf(low, __shfl_xor_sync(ALL, low, distance));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, distance));
    }
    float midpoint;
    const float amax = amax_of_block(FORMAT, largest, low, high, midpoint);
    const BlockScale block = scale_of_block(FORMAT, amax, midpoint, tensor_scale_at(beside, corner));
#pragma unroll 1
    for (i64 row = first_row, column = first_column; row < rows; advance(row, column)) {
        const i64 i = corner + row * tiling.width + column;
        write_at(y, i, quantized(read_at(x, i), block, FORMAT, random_at(beside, i)));
    }
}

// A warp for a block whose elements lie side by side; a thread for one whose neighbours belong to other blocks.
extern "C" __global__ void __launch_bounds__(256)
    mx_tiles_by_warp(const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    tiles<32>(x, y, TILING, BESIDE);
}
extern "C" __global__ void __launch_bounds__(256)
    mx_tiles_by_thread(const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    tiles<1>(x, y, TILING, BESIDE);
}

MX_FUNCTION unsigned largest_of_warp(unsigned value) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// The largest of a thread block's values; right in its first warp.
MX_FUNCTION unsigned largest_of_thread_block(unsigned value) {
    __shared__ unsigned of_warp[32];
    value = largest_of_warp(value);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x >= 32) return value;
    value = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0;
    return largest_of_warp(value);
}

// The per-tensor scale g of each `group` elements of x, which `thread_blocks` of them read, together from the group's
// beginning to its end, so that its end is what the L2 cache holds afterwards. `work` holds for each group the largest
// magnitude so far and how many are done; both are zero before and, thanks to the last one, after.
extern "C" __global__ void __launch_bounds__(256)
    mx_tensor_scales(const void* x, float* scales, unsigned* work, i64 group, i64 thread_blocks) {
    const i64 index = i64(blockIdx.x) / thread_blocks;
    const i64 first = i64(blockIdx.x) % thread_blocks * blockDim.x + threadIdx.x, step = thread_blocks * blockDim.x;
    unsigned largest = 0;
    if (group % PER_VECTOR == 0) {
        const uint4* vectors = static_cast<const uint4*>(x) + index * (group / PER_VECTOR);
        unsigned word = 0;
#pragma unroll 4
        for (i64 i = first; i < group / PER_VECTOR; i += step) {
            const uint4 read = vectors[i];
            word = larger(word, larger(larger(magnitudes(read.x), magnitudes(read.y)),
                                       larger(magnitudes(read.z), magnitudes(read.w))));
        }
        largest = magnitude_bits(word);
    } else {
        for (i64 i = first; i < group; i += step) {
            const unsigned magnitude = bits_of(read_at(x, index * group + i)) & ~SIGN;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    largest = largest_of_thread_block(largest);
    if (threadIdx.x) return;
    if (thread_blocks > 1) {
        atomicMax(&work[2 * index], largest);
        __threadfence();
        if (atomicAdd(&work[2 * index + 1], 1u) + 1 < thread_blocks) return;
        largest = atomicExch(&work[2 * index], 0u);
        work[2 * index + 1] = 0;
    }
    scales[index] = tensor_scale_of(from_bits(largest), FORMAT);
}
#endif
