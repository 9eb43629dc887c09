// pairs.cu compiled by a host compiler, for comparing it with mx.cu. SOURCE is pairs.cu behind that, with MX_FORMATS, the
// initializer of an array of Format for bfloat16, in front.
#include <initializer_list>

#include "pairs_of_halves.h"
#include SOURCE

static const Format formats[] = MX_FORMATS;

static bool is_same(float expected, unsigned half) {
    const float found = from_bits(half << 16);
    return expected != expected ? found != found : bits_of(expected) == bits_of(found);
}

extern "C" bool are_pairs(int index) { return takes_pairs(formats[index], BFLOAT16); }

// The first of all maxima, Inf and NaN among them, whose scales differ; -1 where none do.
extern "C" long scales_differ(int index) {
    const Format format = formats[index];
    for (unsigned amax = 0; amax <= HALF_MAGNITUDE; ++amax) {
        const unsigned beside = HALF_MAGNITUDE - amax;  // in the other half
        const PairScale pair = scale_of_pair(format, amax << 16 | beside);
        for (const bool upper : {false, true}) {
            const BlockScale block = scale_of_block(format, from_bits((upper ? amax : beside) << 16), 0.0f, 1.0f);
            const unsigned shift = upper ? 16 : 0;
            if (!is_same(block.read, pair.scale >> shift & 0xffffu)) return amax;
            // Of a block that becomes NaN it does not matter.
            if (block.read == block.read && !is_same(block.reciprocal, pair.reciprocal >> shift & 0xffffu)) return amax;
        }
    }
    return -1;
}

// The first of all numbers up to `amax`, in a block that has that maximum, that become different ones; -1 where none do.
extern "C" long elements_differ(int index, unsigned amax) {
    const Format format = formats[index];
    const PairScale pair = scale_of_pair(format, BOTH * amax);
    const BlockScale block = scale_of_block(format, from_bits(amax << 16), 0.0f, 1.0f);
    for (unsigned magnitude = 0; magnitude <= amax; ++magnitude) {
        const unsigned found = quantized_pair((magnitude | 0x8000u) << 16 | magnitude, pair, format);
        for (const bool negative : {false, true}) {
            const float x = from_bits((negative ? magnitude | 0x8000u : magnitude) << 16);
            const float y = quantized(x, block, format, 0.0f), expected = y == y ? nearest_bfloat16(y) : y;
            if (!is_same(expected, (negative ? found >> 16 : found) & 0xffffu)) return magnitude;
        }
    }
    return -1;
}
