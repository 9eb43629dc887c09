// The arithmetic of mx.cu compiled by a host compiler, for comparing it with torch without a GPU. SOURCE is mx.cu with MX_FORMATS,
// the initializer of an array of Format, in front.
#include SOURCE

static const Format formats[] = MX_FORMATS;

// `blocks` rows of `length` elements, each row a block. tensor_amax: the maximum that a block's per-tensor scale comes
// from, one a block. index: of each element within its example, for stochastic rounding; else null; example: the number of
// its example. Returns how many blocks were divided quickly.
extern "C" long quantize_blocks(int format_index, const float* x, float* y, long blocks, long length,
                                const float* tensor_amax, const long* index, const long* example, unsigned long long key) {
    const Format format = formats[format_index];
    long quick = 0;
    for (long block = 0; block < blocks; ++block, x += length, y += length) {
        unsigned amax = 0;
        float low = x[0], high = x[0];
        for (long i = 0; i < length; ++i) {
            const unsigned magnitude = bits_of(x[i]) & ~SIGN;
            amax = magnitude > amax ? magnitude : amax;
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
        }
        const float g = format.tensor_scale ? tensor_scale_of(tensor_amax[block], format) : 1.0f;
        float midpoint;
        const float largest = amax_of_block(format, amax, low, high, midpoint);
        const auto random = [=](long i) {
            const long place = block * length + i;
            const unsigned long long at = index ? (unsigned long long)index[place] : 0;
            return index ? random_of(random_bits(key, at / 8, (unsigned long long)example[place]), int(at % 8)) : 0.0f;
        };
        long long loss = 0;
        if (format.four_over_six) {
            const Candidates candidates = candidates_of_block(format, largest, midpoint, g);
            for (long i = 0; i < length; ++i) loss += loss_of_second(x[i], candidates, format, random(i));
        }
        const float chosen = loss < 0 ? largest * SECOND : largest;
        const BlockScale scale = quickest_scale_of_block(format, chosen, midpoint, g);
        quick += scale.quick;
        for (long i = 0; i < length; ++i) y[i] = quantized(x[i], scale, format, random(i));
    }
    return quick;
}

extern "C" void rounded_to_storage(int storage, const float* x, float* y, long count) {
    for (long i = 0; i < count; ++i) y[i] = rounded_to(storage, x[i]);
}
