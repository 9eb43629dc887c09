// Two bfloat16 numbers in a word, quantized at once in bfloat16 arithmetic where that is exact: half the instructions of
// float32's. Compiled behind mx.cu, before vectors.cu.
//
// It is exact of elements of few mantissa bits under an e8m0 scale, a power of two. Quotients and answers then have no
// more bits than what was read, or are so small that nothing is left of them, and a magnitude on its grid is found as
// `magnitude_on_grid` finds it: a sum with 1.5 * 2^7 u, of eight bits, leaves no bit below u.

constexpr unsigned BOTH = 0x10001u;  // times a half: a word of it twice
constexpr unsigned HALF_MAGNITUDE = 0x7fffu, HALF_EXPONENT = 0x7f80u, HALF_NAN = 0x7fc0u;
constexpr int HALF_MANTISSA_BITS = 7;

// What the blocks of a word's two numbers are multiplied by, and then read back with.
struct PairScale {
    unsigned reciprocal, scale;
};

// Whether the numbers of a format are quantized so where they are stored in `storage`.
FUNCTION constexpr bool takes_pairs(Format format, int storage) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return false;
#else
    // Above the exponents of scales then none is missing, and the least are those of subnormal maxima, too.
    const bool has_exponent = format.scale_rounding == SCALE_RCEIL ? format.element.largest >= 2.0f
                                                                   : format.max_exponent >= 1;
    return storage == BFLOAT16 && format.scale == E8M0 && format.symmetric && format.prescale == 1.0f &&
           (format.rounding == NEAREST || format.rounding == EVEN) && format.element.mantissa_bits > 0 &&
           format.element.mantissa_bits < 5 && format.element.min_exponent > -64 &&
           format.element.lowest == -format.element.largest && has_exponent;
#endif
}

FUNCTION unsigned half_bits_of(float value) { return bits_of(value) >> 16; }

// a b + c of each half, rounded once.
FUNCTION unsigned fma_of_pairs(unsigned a, unsigned b, unsigned c) {
#ifdef __CUDA_ARCH__
    unsigned word;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
    return word;
#else
    const auto half = [](float x, float y, float z) {
        const float sum = fmaf(x, y, z);
        return sum == sum ? half_bits_of(nearest_bfloat16(sum)) : HALF_MAGNITUDE;
    };
    const unsigned low = half(from_bits(a << 16), from_bits(b << 16), from_bits(c << 16)), high = 0xffff0000u;
    return half(from_bits(a & high), from_bits(b & high), from_bits(c & high)) << 16 | low;
#endif
}
FUNCTION unsigned product_of_pairs(unsigned a, unsigned b) { return fma_of_pairs(a, b, BOTH * 0x8000u); }

// The scales of two blocks, given their largest magnitudes as stored: `scale_of_block`, in 16 bits each.
FUNCTION PairScale scale_of_pair(Format format, unsigned magnitudes) {
    const unsigned largest = half_bits_of(format.element.largest);
    const bool by_quotient = format.scale_rounding == SCALE_RCEIL;
    // What lifts a maximum to the next power of two where its scale is to be rounded up.
    const unsigned lift = by_quotient                               ? 0x7fu - (largest & 0x7fu)
                          : format.scale_rounding == SCALE_CEIL     ? 0x7fu
                          : format.scale_rounding == SCALE_EVEN     ? (1u << 6) >> format.even_bits
                                                                    : 0u;
    const unsigned less = by_quotient ? (largest & HALF_EXPONENT) - (BIAS << HALF_MANTISSA_BITS)
                                      : unsigned(format.max_exponent) << HALF_MANTISSA_BITS;
    const unsigned bottom = unsigned(BIAS - format.max_scale_exponent) << HALF_MANTISSA_BITS;
    const unsigned top = unsigned(BIAS + format.max_scale_exponent) << HALF_MANTISSA_BITS;
    const unsigned lifted = (magnitudes + BOTH * lift) & (BOTH * HALF_EXPONENT);
    const unsigned code = __vmaxu2(lifted, BOTH * (less + bottom)) - BOTH * less;
    // Inf, NaN, and what is above the largest scale, carry into a half's highest bit.
    const unsigned carried = ((magnitudes + BOTH * 0x80u) | (code + BOTH * (HALF_MAGNITUDE - top))) & (BOTH * 0x8000u);
    const unsigned nan = (carried >> 15) * HALF_NAN;
    // 2^-127 is no normal number.
    return {__vmaxu2(BOTH * (2u * BIAS << HALF_MANTISSA_BITS) - code, BOTH * 0x40u), __vmaxu2(code, BOTH * 0x40u) | nan};
}

// (a & b) | c, in one instruction where a compiler would prefer two that read constants.
FUNCTION unsigned masked_or(unsigned a, unsigned b, unsigned c) {
#ifdef __CUDA_ARCH__
    unsigned word;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
    return word;
#else
    return (a & b) | c;
#endif
}

// What two elements become.
FUNCTION unsigned quantized_pair(unsigned word, PairScale block, Format format) {
    const Grid grid = format.element;
    const unsigned quotient = product_of_pairs(word, block.reciprocal);
    unsigned magnitude = format.rounding == NEAREST ? masked_or(quotient, BOTH * HALF_MAGNITUDE, BOTH)
                                                    : quotient & (BOTH * HALF_MAGNITUDE);
    magnitude = __vminu2(magnitude, BOTH * half_bits_of(grid.largest));
    const unsigned least = unsigned(grid.min_exponent + BIAS) << HALF_MANTISSA_BITS;
    const unsigned power = __vmaxu2(magnitude & (BOTH * HALF_EXPONENT), BOTH * least);
    const unsigned shift = half_bits_of(1.5f * power_of_two(HALF_MANTISSA_BITS - grid.mantissa_bits));
    const unsigned sum = fma_of_pairs(power, BOTH * shift, magnitude);
    const unsigned rounded = fma_of_pairs(power, BOTH * (shift | 0x8000u), sum);
    return product_of_pairs(rounded | (quotient & (BOTH * 0x8000u)), block.scale);
}
