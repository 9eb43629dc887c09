// What quantizing did to blocks along the rows of a tensor, on a GPU: the numbers of block_totals.py. Compiled behind mx.cu,
// once for all formats and dtypes, which are read at run time: another format waits for no compiler.

constexpr int NUMBERS = 8;
static_assert(sizeof(Format) == FORMAT_SIZE);  // as Python lays it out

FUNCTION float element_at(const void* x, i64 i, int storage) {
    if (storage == FLOAT32) return static_cast<const float*>(x)[i];
    return widened(static_cast<const unsigned short*>(x)[i], storage);
}
FUNCTION float as_stored(float value, int storage) {
    return storage == FLOAT32 ? value : widened(narrowed(value, storage), storage);
}

// Of the values that the threads of a warp have: the sum, the least and the largest.
template <class T>
FUNCTION T sum_of_warp(T value) {
    for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
    return value;
}
FUNCTION float least_of_warp(float value) {
    for (int distance = 16; distance; distance /= 2) value = fminf(value, __shfl_xor_sync(ALL, value, distance));
    return value;
}
FUNCTION float largest_of_warp(float value) { return -least_of_warp(-value); }
FUNCTION unsigned largest_of_warp(unsigned value) {
    for (int distance = 16; distance; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// A warp takes a block at a time, and has what it found of its blocks written to a row of `found`, so that sums have one
// order. x and y: contiguous, what was quantized and what became of it, rows of `length` elements, each cut into `in_row`
// blocks of `size`, of which the last may be shorter. tensor_scales: of each `group` elements; null for none. exponents and
// scales: what native arithmetic of a 16-bit dtype has for each largest magnitude, by its code; null for exact arithmetic.
// `compares`: whether elements that exact arithmetic would have given another value are counted.
extern "C" __global__ void __launch_bounds__(256)
mx_measures(const void* x, const void* y, double* found, const Format* of, i64 storage_type, i64 blocks, i64 in_row,
            i64 length, i64 size, const float* tensor_scales, i64 group, const float* exponents, const float* scales,
            i64 compares) {
    const Format format = *of;
    const int storage = int(storage_type);
    const i64 lane = threadIdx.x % 32, warp = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const i64 warps = i64(gridDim.x) * blockDim.x / 32;
    double signal = 0.0, noise = 0.0;
    i64 saturated = 0, flushed = 0, clamped = 0, unlike = 0;
    float exponent_min = from_bits(INFINITY_BITS), exponent_max = -exponent_min;
    for (i64 block = warp; block < blocks; block += warps) {
        const i64 row = block / in_row, place = (block - row * in_row) * size;
        const i64 first = row * length + place, rest = length - place, count = rest < size ? rest : size;

        unsigned largest = 0;
        float low = from_bits(INFINITY_BITS), high = -low, midpoint;
        for (i64 i = lane; i < count; i += 32) {
            const float value = element_at(x, first + i, storage);
            const unsigned magnitude = bits_of(value) & ~SIGN;
            largest = magnitude > largest ? magnitude : largest;
            low = fminf(low, value), high = fmaxf(high, value);
        }
        largest = largest_of_warp(largest);
        if (!format.symmetric) low = least_of_warp(low), high = largest_of_warp(high);
        const float g = tensor_scales ? tensor_scales[first / group] : 1.0f;
        float amax = amax_of_block(format, largest, low, high, midpoint);
        if (format.four_over_six) {
            const Candidates candidates = candidates_of_block(format, amax, midpoint, g);
            i64 loss = 0;
            for (i64 i = lane; i < count; i += 32)
                loss += loss_of_second(element_at(x, first + i, storage), candidates, format, 0.0f);
            if (sum_of_warp(loss) < 0) amax *= SECOND;
        }

        const BlockScale exact = scale_of_block(format, amax, midpoint, g);
        const unsigned code = storage == FLOAT32 ? 0 : narrowed(from_bits(largest), storage) & 0x7fffu;
        if (lane == 0 && amax > 0.0f && bits_of(amax) < INFINITY_BITS) {
            if (format.scale == E8M0) {
                const float exponent = exponents ? exponents[code] : float(wanted_exponent(amax, format));
                exponent_min = fminf(exponent_min, exponent), exponent_max = fmaxf(exponent_max, exponent);
                clamped += fabsf(exponent) > float(format.max_scale_exponent);
            } else {
                clamped += beyond_scales(amax, g, format);
            }
        }

        const float scale = scales ? scales[code] : 1.0f;
        const bool scaled = scales || exact.read > 0.0f;  // not of a NaN, nor of a scale that is 0
        for (i64 i = lane; i < count; i += 32) {
            const float value = element_at(x, first + i, storage), became = element_at(y, first + i, storage);
            const float a = scales ? as_stored(value / scale, storage)
                                   : quotient(centered_of(value, exact, format), exact, format);
            saturated += scaled && (a > format.element.largest || a < format.element.lowest);
            flushed += value != 0.0f && became == 0.0f;
            const double wide = value, error = wide - became;
            signal += wide * wide;
            noise += error * error;
            if (compares) {
                const float expected = as_stored(quantized(value, exact, format, 0.0f), storage);
                unlike += became != expected && (became == became || expected == expected);
            }
        }
    }
    const double all[NUMBERS] = {
        sum_of_warp(signal),          sum_of_warp(noise),          double(sum_of_warp(saturated)),
        double(sum_of_warp(flushed)), double(sum_of_warp(clamped)), double(sum_of_warp(unlike)),
        exponent_min,                 exponent_max,  // which the first thread has
    };
    if (lane == 0)
        for (int i = 0; i < NUMBERS; ++i) found[warp * NUMBERS + i] = all[i];
}
