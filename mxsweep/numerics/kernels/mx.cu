// Fake quantization to a microscaling format: the exact arithmetic of definition.py, bit for bit. Compiled behind bits.cu. What
// kernels on a GPU need beside it stands in vectors.cu, and the kernels themselves in other files, all compiled behind this one.
//
// Compiled at first use by NVRTC (source.py), which prepends the format and the storage type as macros, so that every
// choice below that depends on them is made by the compiler. No header is needed, CUDA's included. This file is plain
// C++ that a host compiler accepts as well: there a Format is an ordinary argument. On a CPU rows.cpp quantizes with it,
// and the tests compare what it computes with the torch definition on machines without a GPU.
//
// Every operation is one IEEE 754 float32 operation, rounded to nearest even, subnormals kept. A compiler must not
// contract a product and a sum into one (NVRTC: -fmad=false, g++: -ffp-contract=off). Where fused operations are
// wanted, in `quick_quotient`, `reciprocal_of` and `magnitude_on_grid`, they are written.

#ifndef __CUDACC__
// <math.h> takes a compiler as long as all that is below.
extern "C" float fabsf(float) noexcept, fminf(float, float) noexcept, fmaxf(float, float) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
#endif

// Roundings in the order of the names in formats/.
enum Rounding { NEAREST, EVEN, FLOOR, STOCHASTIC, TIES_TO_ZERO };
enum Scale { E8M0, MINIFLOAT, FP32 };
enum ScaleRounding { SCALE_FLOOR, SCALE_EVEN, SCALE_CEIL, SCALE_RCEIL };

// The formulas of formats/scale_rules.py: a block's largest magnitude is a, the element format's largest value E, and t the
// tensor's scale, as a divisor g or a factor d, 1 where there is none. 1 / y is INVERSE_y.
enum TensorScale { DIVISOR, DIVISOR_BY_RECIPROCAL, FACTOR };
enum Wanted { AG_OVER_E, A_OVER_E_OVER_D, A_OVER_ED, G_A_OVER_E, G_A_INVERSE_E };
enum Quotient { OVER_READ, TIMES_INVERSE_D_OVER_S, TIMES_INVERSE_S_INVERSE_G };  // the first: by what is read back with
enum Read { S_OVER_G, SD, INVERSE_INVERSE_S_INVERSE_G };
struct Rule {
    int tensor_scale, wanted, quotient, read;
    int within;        // of Storage: what g and a / E are rounded to
    float zero_scale;  // what a scale becomes that is 0
};

// The values of a small float: u = 2^(max(exponent, min_exponent) - mantissa_bits) apart, from `lowest` to `largest`.
struct Grid {
    int mantissa_bits, min_exponent;
    float largest, lowest;
};

// MXFormat, without its block size, and a prescale. Of `scale_grid` an fp32 scale has `largest` only, an e8m0 scale nothing.
struct Format {
    Grid element;
    int max_exponent;  // of the element format's largest value
    int rounding, scale, scale_rounding, max_scale_exponent;
    int even_bits;  // of the maximum, that SCALE_EVEN rounds to
    Grid scale_grid;
    float smallest_scale;  // but of an e8m0 scale
    Rule rule;             // likewise
    bool symmetric, tensor_scale, saturates, four_over_six;
    float prescale;  // that elements are multiplied by under the scales that they have without it; mostly 1
};

// What the elements of one block are divided by, or multiplied by where the rule `multiplies`; what they are read back
// with; and what they are first lessened by.
struct BlockScale {
    float by, read, reciprocal, midpoint;
    bool quick;  // whether `quick_quotient` may divide by `by`
};

constexpr unsigned SIGN = 0x80000000u;
constexpr unsigned INFINITY_BITS = 0x7f800000u;  // a magnitude's bits from here up are Inf or NaN
constexpr int MANTISSA_BITS = 23, BIAS = 127;
constexpr unsigned IMPLICIT_ONE = 1u << MANTISSA_BITS;  // also the bits of 2^-126, the smallest normal float32
constexpr unsigned HALF_ONE = IMPLICIT_ONE / 2;         // also the bits of 2^-127
constexpr float SECOND = 1.5f;                          // definition.py's, as the two that follow
constexpr float MOST_ERROR = 4.0f, ERROR_UNITS = 0x1p40f;

FUNCTION float not_a_number() { return from_bits(0x7fc00000u); }
// 2^exponent, from -127 to 127.
FUNCTION float power_of_two(int exponent) {
    return from_bits(exponent == -BIAS ? HALF_ONE : unsigned(exponent + BIAS) << MANTISSA_BITS);
}
FUNCTION float largest_float32() { return from_bits(INFINITY_BITS - 1); }

// The sum, rounded toward zero, of numbers that are not negative, `large` a normal one that is at least twice the other.
FUNCTION float sum_toward_zero(float small, float large) {
#ifdef __CUDA_ARCH__
    float sum;
    asm("add.rz.f32 %0, %1, %2;" : "=f"(sum) : "f"(small), "f"(large));
    return sum;
#else
    const float sum = small + large;
    return sum - large > small ? from_bits(bits_of(sum) - 1u) : sum;
#endif
}

// The lesser of |a| and a positive limit, which a NaN becomes.
FUNCTION float held_magnitude(float a, float limit) {
#ifdef __CUDA_ARCH__
    return fminf(fabsf(a), limit);
#else
    const unsigned magnitude = bits_of(a) & ~SIGN;  // ordered as the magnitudes are, NaN above; compilers make vectors of it
    return from_bits(magnitude < bits_of(limit) ? magnitude : bits_of(limit));
#endif
}

// |a| on a grid, saturated. Adding and subtracting 1.5 * 2^23 * u leaves no bit below u, and the addition rounds to
// nearest even. The other roundings are made from that one:
//   NEAREST     Ties go away from zero: setting the lowest bit of |a| lifts a tie, whose low bits are all zero, above
//               itself, and moves nothing else across a tie (the float just below a tie has that bit set already).
//   TIES_TO_ZERO  The same on the float just below |a|.
//   FLOOR       Toward zero, and so does the addition.
//   STOCHASTIC  Up from there iff the random number v < (|a| - down) / u. Both sides are taken times u, which is exact;
//               `random` is 1 + v, so that v * u is one operation.
// A NaN becomes `largest`: its block's scale is NaN, by which it is multiplied next.
FUNCTION float magnitude_on_grid(float a, Grid grid, int rounding, float random) {
    // The same constant of every format but mint<n>.
    float magnitude = held_magnitude(a, grid.lowest < -grid.largest && a < 0.0f ? -grid.lowest : grid.largest);
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
    if (rounding == TIES_TO_ZERO && magnitude > 0.0f) magnitude = from_bits(bits_of(magnitude) - 1u);
    if (rounding == NEAREST || rounding == TIES_TO_ZERO) magnitude = from_bits(bits_of(magnitude) | 1u);
    float rounded = (magnitude + shift) - shift;
    if (rounding == EVEN && grid.mantissa_bits == 0) {
        // Midway between two powers of two the sum takes the upper; wanted is the one with the even code.
        const unsigned power = shift_bits - to_shift;
        const unsigned code = (power >> MANTISSA_BITS) - unsigned(grid.min_exponent + BIAS - 1);
        if (magnitude == 1.5f * from_bits(power) && code % 2 == 0) rounded = from_bits(power);
    }
    return rounded;
}

// The exponent that a block's e8m0 scale wants: scales.py's `exact_exponent`.
FUNCTION int wanted_exponent(float amax, Format format) {
    const bool by_quotient = format.scale_rounding == SCALE_RCEIL;
    int bits = int(bits_of(by_quotient ? amax / format.element.largest : amax));
    if (bits < int(IMPLICIT_ONE)) {
        // Subnormals from 2^-127 up, rewritten as if exponent code 0 had an implicit one like the others.
        bits = 2 * bits - int(IMPLICIT_ONE);
        if (bits < 0) bits = 0;
    }
    if (format.scale_rounding == SCALE_EVEN) bits += 1 << (MANTISSA_BITS - 1 - format.even_bits);
    if (format.scale_rounding == SCALE_CEIL || by_quotient) bits += int(IMPLICIT_ONE) - 1;
    return (bits >> MANTISSA_BITS) - BIAS - (by_quotient ? 0 : format.max_exponent);
}

// What is kept of a block: the exponent that it wants, and the bits behind the leading one of its maximum; 0 of blocks that want
// none. See wanted_exponents.py.
struct Kept {
    int exponent, fraction;
};
FUNCTION Kept kept_of(float amax, Format format) {
    const bool wants = amax > 0.0f && bits_of(amax) < INFINITY_BITS;
    return {wants ? wanted_exponent(amax, format) : 0, wants ? int(bits_of(amax) & (IMPLICIT_ONE - 1)) : 0};
}

// The one that it holds, before NaN above `max_scale_exponent`.
FUNCTION int scale_exponent(float amax, Format format) {
    const int exponent = wanted_exponent(amax, format);
    return exponent < -format.max_scale_exponent ? -format.max_scale_exponent : exponent;
}

// 1 / x for x from 2^-100 to 2^100.
FUNCTION float reciprocal_of(float x) {
#ifdef __CUDA_ARCH__
    float rough;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rough) : "f"(x));
    return fmaf(fmaf(-x, rough, 1.0f), rough, rough);
#else
    return 1.0f / x;
#endif
}

FUNCTION float nearest_bfloat16(float value) {
    const unsigned bits = bits_of(value);
    return from_bits((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// A number that is not negative, rounded to a storage type; a NaN stays one.
FUNCTION float rounded_to(int storage, float value) {
    if (storage == FLOAT32 || bits_of(value) >= INFINITY_BITS) return value;
    if (storage == BFLOAT16) return nearest_bfloat16(value);
    const Grid float16 = {10, -14, 65504.0f, -65504.0f};
    return value < 65520.0f ? magnitude_on_grid(value, float16, EVEN, 0.0f) : from_bits(INFINITY_BITS);
}

// A 16-bit number of a storage type as a float32, and what a float32 becomes there.
FUNCTION float widened(unsigned short code, int storage) {
    if (storage == BFLOAT16) return from_bits(unsigned(code) << 16);
    const unsigned magnitude = code & 0x7fffu, sign = unsigned(code & 0x8000u) << 16;
    const float finite = from_bits(magnitude << 13) * 0x1p112f;  // which is exact, of subnormals, too
    return from_bits((magnitude < 0x7c00u ? bits_of(finite) : INFINITY_BITS | (magnitude & 0x3ffu) << 13) | sign);
}

FUNCTION unsigned short narrowed(float value, int storage) {
    const unsigned sign = bits_of(value) >> 16 & 0x8000u, magnitude = bits_of(value) & ~SIGN;
    unsigned code;
    if (storage == BFLOAT16) {
        code = bits_of(nearest_bfloat16(from_bits(magnitude))) >> 16;
    } else {
        const Grid float16 = {10, -14, 65504.0f, -65504.0f};
        const float rounded = magnitude_on_grid(from_bits(magnitude), float16, EVEN, 0.0f);
        code = magnitude < bits_of(65520.0f) ? bits_of(rounded * 0x1p-112f) >> 13 : 0x7c00u;
    }
    return (unsigned short)((magnitude > INFINITY_BITS ? 0x7fffu : code) | sign);
}

// The tensor's scale, g or d; scales.py's `tensor_scale_of`. A NaN stays one.
FUNCTION float tensor_scale_of(float tensor_amax, Format format) {
    if (tensor_amax == 0.0f) return 1.0f;
    const float bounds = format.scale_grid.largest * format.element.largest;
    // Under `room` times it the second scale of the largest block is one, too.
    const float top = from_bits(bits_of(format.scale_grid.largest) & INFINITY_BITS);
    const float room = format.four_over_six ? top / format.scale_grid.largest : 1.0f;
    if (format.rule.tensor_scale == FACTOR) {
        const float d = tensor_amax / bounds;
        return (d < from_bits(1) ? from_bits(1) : d) / room;
    }
    const int within = format.rule.within;
    const float most = within == FLOAT16 ? 65504.0f : within == BFLOAT16 ? from_bits(0x7f7f0000u) : largest_float32();
    const float g = format.rule.tensor_scale == DIVISOR
                        ? bounds / tensor_amax
                        : rounded_to(within, bounds * rounded_to(within, 1.0f / tensor_amax));
    return (g > most ? most : g) * room;
}

// The IEEE quotient of numbers whose quotient and whose every intermediate here are normal: a first quotient corrected by
// its exact remainder (P. Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", IBM J.
// Res. Dev. 34, 1990). With `reciprocal_of` it is what a GPU's own division does for such numbers; written out, the many
// dividends of one divisor share the reciprocal, and the test for other numbers.
FUNCTION float quick_quotient(float x, float divisor, float reciprocal) {
    const float q = x * reciprocal;
    return fmaf(fmaf(-divisor, q, x), reciprocal, q);
}

FUNCTION bool is_ordinary(float value) { return value > power_of_two(-40) && value < power_of_two(40); }

// The largest magnitude of a block, given its bits and, read for asymmetric formats only, its smallest and largest value:
// there it is that of what the midpoint leaves. A NaN's bits lie above an Inf's.
FUNCTION float amax_of_block(Format format, unsigned amax_bits, float low, float high, float& midpoint) {
    midpoint = 0.0f;
    if (format.symmetric || amax_bits >= INFINITY_BITS) return from_bits(amax_bits);
    const float largest_bfloat16 = from_bits(0x7f7f0000u);
    midpoint = nearest_bfloat16(fminf(fmaxf(low * 0.5f + high * 0.5f, -largest_bfloat16), largest_bfloat16));
    return fmaxf(high - midpoint, midpoint - low);
}

// A stored scale for the value `wanted`, which is not NaN but where the tensor's scale is.
FUNCTION float stored_scale(float wanted, Format format) {
    const float held = fminf(fmaxf(wanted, format.smallest_scale), format.scale_grid.largest);
    const float stored = format.scale == FP32 ? held : magnitude_on_grid(held, format.scale_grid, EVEN, 0.0f);
    return format.smallest_scale > 0.0f || stored > 0.0f ? stored : format.rule.zero_scale;
}

// What a block's scale is rounded from; scales.py's `wanted_scale`. Here and below, t is g or d.
FUNCTION float wanted_scale(float a, float t, Format format) {
    const float largest = format.element.largest;
    if (!format.tensor_scale) t = 1.0f;
    switch (format.rule.wanted) {
        case A_OVER_E_OVER_D: return a / largest / t;
        case A_OVER_ED: return a / (largest * t);
        case G_A_OVER_E: return rounded_to(format.rule.within, a / largest) * t;
        case G_A_INVERSE_E: return a * (1.0f / largest) * t;
        default: return a * t / largest;  // AG_OVER_E
    }
}

// Whether a scale format does not hold what a block's scale would be.
FUNCTION bool beyond_scales(float a, float t, Format format) {
    const Grid grid = format.scale_grid;
    const float wanted = wanted_scale(a, t, format);
    const float least = format.scale == FP32 ? from_bits(1) : power_of_two(grid.min_exponent - grid.mantissa_bits);
    return wanted < least || wanted < format.smallest_scale || wanted > grid.largest;
}

// What elements are read back with, given the stored scale. It is NaN where t is.
FUNCTION float read_scale(float stored, float t, Format format) {
    if (!format.tensor_scale) t = 1.0f;
    switch (format.rule.read) {
        case SD: return stored * t;
        case INVERSE_INVERSE_S_INVERSE_G: return 1.0f / (1.0f / (stored * (1.0f / t)));
        default: return format.tensor_scale ? stored / t : stored;  // S_OVER_G
    }
}

// Whether elements are multiplied by a reciprocal, and not divided.
FUNCTION bool multiplies(Format format) { return format.rule.quotient != OVER_READ; }

// Whether a block's scale is computed and applied as mxsweep's own rule has it.
FUNCTION bool is_own(Format format) {
    const Rule rule = format.rule;
    const bool is_rule = rule.wanted == AG_OVER_E && rule.quotient == OVER_READ && rule.read == S_OVER_G;
    return is_rule && format.smallest_scale > 0.0f;
}

// What elements are divided by, or multiplied by; scales.py's `applied_scale`. `read` is as `read_scale` returns it: what is
// read back with 0 or NaN becomes that, whatever it was rounded to.
FUNCTION float applied_scale(float stored, float t, float read, Format format) {
    if (!multiplies(format)) return read;
    if (!format.tensor_scale) t = 1.0f;
    const bool by_d = format.rule.quotient == TIMES_INVERSE_D_OVER_S;
    return fminf(by_d ? 1.0f / t / stored : 1.0f / (stored * (1.0f / t)), largest_float32());
}

// The scale of a block; t is read for formats with a per-tensor scale.
FUNCTION BlockScale scale_of_block(Format format, float amax, float midpoint, float t) {
    const bool finite = bits_of(amax) < INFINITY_BITS;
    if (format.scale == E8M0) {
        const int exponent = scale_exponent(amax, format);
        const bool held = finite && exponent <= format.max_scale_exponent;
        const float scale = held ? power_of_two(exponent) : not_a_number();
        return {scale, scale, power_of_two(held ? -exponent : 0), midpoint, true};
    }
    if (!finite) return {not_a_number(), not_a_number(), 1.0f, midpoint, false};
    const float stored = stored_scale(wanted_scale(amax, t, format), format);
    const float read = read_scale(stored, t, format);
    return {applied_scale(stored, t, read, format), read, 1.0f, midpoint, false};
}

FUNCTION bool may_be_quick(Format format, float amax) {
    return format.element.min_exponent > -16 && amax < power_of_two(40);
}

// The same with quick quotients, where `quick` says that they were allowed: in ordinary ranges of values every
// intermediate is normal, except in quotients so small that a stored scale, or rounding, makes nothing of them (also the
// stochastic, whose random numbers are not below 2^-17). The comparisons are false for NaN. Under another's rule the scale
// itself is not computed quickly.
FUNCTION BlockScale quick_scale_of_block(Format format, float amax, float midpoint, float t) {
    if (format.scale == E8M0) return scale_of_block(format, amax, midpoint, t);
    if (!is_own(format)) {
        BlockScale block = scale_of_block(format, amax, midpoint, t);
        block.reciprocal = reciprocal_of(block.by);
        block.quick = multiplies(format) || (may_be_quick(format, amax) && is_ordinary(block.by));
        return block;
    }
    const float wanted = format.tensor_scale ? amax * t : amax, largest = format.element.largest;
    float scale = stored_scale(quick_quotient(wanted, largest, 1.0f / largest), format);
    bool quick = may_be_quick(format, amax);
    if (format.tensor_scale) {
        scale = quick_quotient(scale, t, reciprocal_of(t));
        quick = quick && is_ordinary(t);
    }
    if (format.scale == FP32) quick = quick && is_ordinary(scale);
    return {scale, scale, reciprocal_of(scale), midpoint, quick};
}

// What x is rounded from: the IEEE quotient, or product. By a power of two a quotient is the product with the reciprocal,
// which is exact.
FUNCTION float quotient(float x, BlockScale block, Format format) {
    if (format.scale == E8M0) return x * block.reciprocal;
    if (multiplies(format)) return x * block.by;
    if (block.quick) return quick_quotient(x, block.by, block.reciprocal);
    return x / block.by;
}

// What is read back of a quotient. The sign is that of what was divided, a zero's too.
FUNCTION float read_back(float a, float divided, BlockScale block, Format format, float random) {
    const float magnitude = magnitude_on_grid(a, format.element, format.rounding, random);
    return from_bits(bits_of(magnitude) | (bits_of(divided) & SIGN)) * block.read;
}

// What x, lessened by its block's midpoint, becomes without it.
FUNCTION float without_midpoint(float centered, BlockScale block, Format format, float random) {
    return read_back(quotient(centered, block, format), centered, block, format, random);
}

// What the format's prescale makes of a number.
FUNCTION float prescaled(float x, Format format) { return format.prescale == 1.0f ? x : x * format.prescale; }

// What of the element x of a block is divided by its scale.
FUNCTION float centered_of(float x, BlockScale block, Format format) {
    return prescaled(format.symmetric ? x : x - block.midpoint, format);
}

// What the element x of a block becomes.
FUNCTION float quantized(float x, BlockScale block, Format format, float random) {
    const float y = without_midpoint(centered_of(x, block, format), block, format, random);
    return format.symmetric ? y : y + prescaled(block.midpoint, format);
}

// Four over six: the two scales of a block, and the inverse of the power of two that its errors are relative to.
struct Candidates {
    BlockScale first, second;
    float inverse;
};
FUNCTION BlockScale quickest_scale_of_block(Format format, float amax, float midpoint, float t) {
    const BlockScale block = quick_scale_of_block(format, amax, midpoint, t);
    return block.quick ? block : scale_of_block(format, amax, midpoint, t);
}
FUNCTION Candidates candidates_of_block(Format format, float amax, float midpoint, float t) {
    const int exponent = int(bits_of(amax) >> MANTISSA_BITS) - BIAS;
    return {quickest_scale_of_block(format, amax, midpoint, t), quickest_scale_of_block(format, amax * SECOND, midpoint, t),
            power_of_two(exponent < 1 - BIAS ? BIAS - 1 : exponent > BIAS ? -BIAS : -exponent)};
}

// The squared error of an element under one of these, in fixed point; that of NaN is the most.
FUNCTION long long squared_error(float centered, BlockScale block, float inverse, Format format, float random) {
    const float error = (without_midpoint(centered, block, format, random) - centered) * inverse;
    return (long long)(fminf(error * error, MOST_ERROR) * ERROR_UNITS);
}

// How much larger the second one's squared error is. Sums of these over a block say which is better.
FUNCTION long long loss_of_second(float x, Candidates of, Format format, float random) {
    const float centered = centered_of(x, of.first, format);
    return squared_error(centered, of.second, of.inverse, format, random) -
           squared_error(centered, of.first, of.inverse, format, random);
}

// The random bits of eight elements, the n-th eight of an example: Philox4x32-7; philox.py has its source. An element takes
// half a word.
struct Bits {
    unsigned words[4];
};
FUNCTION Bits random_bits(unsigned long long key, unsigned long long n, unsigned long long example) {
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
FUNCTION float random_of(Bits bits, int i) {
    const unsigned word = i & 4 ? (i & 2 ? bits.words[3] : bits.words[2]) : (i & 2 ? bits.words[1] : bits.words[0]);
    return from_bits(((i & 1 ? word >> 9 : word << 7) & 0x7fff80u) | (unsigned(BIAS) << MANTISSA_BITS) | 0x40u);
}
