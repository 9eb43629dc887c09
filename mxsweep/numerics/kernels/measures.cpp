// What quantizing did to the rows of a tensor, in one reading of both. Compiled behind rows.cpp, whose blocks and scales
// these are.

constexpr int LANES = 8;  // sums of their own, so that a compiler can make vectors of them

// What quantizing did to some rows, as block_totals.py has it. Counts are exact up to 2^53. The fields are the columns
// that cpu_rows.py's `measure_rows` reads.
struct Measures {
    double signal[LANES], noise[LANES];
    double saturated, flushed, clamped, unlike, exponent_min, exponent_max;
};

static inline void add_squares(const float* x, const float* y, int lanes, Measures& found) {
    for (int lane = 0; lane < lanes; ++lane) {
        const double value = x[lane], error = value - y[lane];
        found.signal[lane] += value * value;
        found.noise[lane] += error * error;
    }
}

// Add to `found` what became of elements, and count those of which the quotient is beyond the grid. `PRODUCT` as for `usual`;
// `scaled`: whether elements are divided by anything.
template <bool PRODUCT>
static void measure_elements(const float* __restrict x, const float* __restrict y, i64 count, BlockScale block,
                             const Format& format, bool scaled, Measures& found) {
    const float largest = scaled ? format.element.largest : from_bits(INFINITY_BITS);
    const float lowest = scaled ? format.element.lowest : -from_bits(INFINITY_BITS);
    const float midpoint = format.symmetric ? 0.0f : block.midpoint, prescale = format.prescale;
    int saturated = 0, flushed = 0;
    for (i64 i = 0; i < count; ++i) {
        const float centered = (x[i] - midpoint) * prescale;
        const float a = PRODUCT ? centered * block.reciprocal : centered / block.by;
        saturated += (a > largest) | (a < lowest);
        flushed += (x[i] != 0.0f) & (y[i] == 0.0f);
    }
    i64 i = 0;
    for (; i + LANES <= count; i += LANES) add_squares(x + i, y + i, LANES, found);
    add_squares(x + i, y + i, int(count - i), found);
    found.saturated += saturated;
    found.flushed += flushed;
}

// Add to `found` what became of a block; in native arithmetic of float32 alone. `exact`: what computes a symmetric block's
// elements in exact arithmetic, to be compared; null for none.
static void measure_block(const Job& job, Elements exact, i64 first, i64 count, float g, Measures& found) {
    const Format& format = *job.format;
    const int storage = int(job.storage);
    const unsigned largest = largest_from(job, first, count);
    float midpoint, amax = exact_amax(job, first, count, largest, g, midpoint);
    Exponents wanted = {from_bits(INFINITY_BITS), -from_bits(INFINITY_BITS), 0.0f}, not_asked = wanted;
    const BlockScale own = exact_scale(format, amax, midpoint, g, job.native ? not_asked : wanted);
    const BlockScale block = job.native ? native_scale(largest, format, *job.native, wanted) : own;
    if (amax > 0.0f && bits_of(amax) < INFINITY_BITS) {
        if (format.scale == E8M0) {
            found.exponent_min = wanted.low < found.exponent_min ? wanted.low : found.exponent_min;
            found.exponent_max = wanted.high > found.exponent_max ? wanted.high : found.exponent_max;
            found.clamped += fabsf(wanted.low) > float(format.max_scale_exponent);
        } else {
            found.clamped += beyond_scales(amax, g, format);
        }
    }
    const bool scaled = block.read > 0.0f;  // not of a NaN, nor of a scale that is 0
    const bool product = job.native || format.scale == E8M0 || multiplies(format);
    float xs[CHUNK], ys[CHUNK];
    for (i64 done = 0; done < count; done += CHUNK) {
        const i64 here = count - done < CHUNK ? count - done : CHUNK, at = first + done;
        const float* x = static_cast<const float*>(job.x) + at;
        const float* y = static_cast<const float*>(job.y) + at;
        if (storage != FLOAT32) {
            for (i64 i = 0; i < here; ++i) {
                xs[i] = widened(static_cast<const unsigned short*>(job.x)[at + i], storage);
                ys[i] = widened(static_cast<const unsigned short*>(job.y)[at + i], storage);
            }
            x = xs, y = ys;
        }
        (product ? measure_elements<true> : measure_elements<false>)(x, y, here, block, format, scaled, found);
        if (exact) {  // asked for of float32 alone, so that `xs` is free
            exact(x, xs, here, own, format, 0u, nullptr);
            int unlike = 0;
            for (i64 i = 0; i < here; ++i) unlike += (y[i] != xs[i]) & ((y[i] == y[i]) | (xs[i] == xs[i]));
            found.unlike += unlike;
        }
    }
}

extern "C" i64 mx_measures_size() { return sizeof(Measures); }

// Measure rows until all are taken, as `mx_quantize_rows` quantizes them: `y` is what they became. What is `found` of the
// rows taken at once stands in a place of its own, so that sums do not depend on who took them. `compares`: whether elements
// that exact arithmetic would have given another value are counted, of native arithmetic.
extern "C" int mx_measure_rows(Job* shared, Measures* found, int compares) {
    if (mx_flushes()) return 0;
    const Elements exact = compares ? elements_of(*shared->format, false) : nullptr;
    each_block(shared, [&](i64 first, i64 count, float g, i64 taken) {
        measure_block(*shared, exact, first, count, g, found[taken]);
    });
    return 1;
}
