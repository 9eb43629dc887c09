// Fake quantization of the rows of a tensor on a CPU, in one reading from memory and one writing. Compiled behind mx.cu,
// whose arithmetic it is, by the machine's C++ compiler (cpu_build.py), once for all formats and dtypes.
//
// What an element costs is decided by `elements_of`, a loop that a compiler makes vectors of: one for each rounding of the
// formats that are usual. All others go through one loop in which the format is read for each element.

// Native arithmetic, which is defined by logarithms in the tensor's own dtype (definition.py): native_tables.py has torch compute
// them for whatever may be asked, and what follows is looked up here.
struct Native {
    // float32. An exponent e - 149 begins at `least[e]`, a float's bits, and not at its power of two; `scales[e]` is what
    // blocks have whose maximum is of that exponent. A quotient of the magnitude `lifted` is rounded as if above its tie.
    const unsigned* least;
    const float* scales;
    unsigned lifted;
    // bfloat16 and float16, by the code of the largest magnitude: the exponent that it wants, and the scale; and by the code
    // of a quotient the code that it becomes.
    const float* exponents;
    const float* scales_of_codes;
    const unsigned short* rounded;
};

// What is to be done, the same in all threads. The fields are those of cpu_rows.py's `_Job`.
struct Job {
    const void* x;  // contiguous, of `rows` times `length` elements
    void* y;
    i64 rows, length, block;
    const float* tensor_scales;  // of each row; null where the format has none, and where the maximum is taken here
    i64 under_one;  // rows that share a per-tensor scale, made from their maximum; 0 where none is taken
    const Format* format;
    const Native* native;  // null for exact arithmetic
    i64 storage;
    // Of stochastic rounding: the key, the elements of an example, the number of the first, and whether numbers count.
    unsigned long long key;
    i64 example, first_example, numbers_examples;
    i64 together;  // rows that a thread takes at once, a multiple of `under_one`
    i64 next;      // the first row that no thread has taken
};

// The least and the largest exponent that e8m0 scales wanted; a block that wants none counts as one that wants 0.
// In exact arithmetic, `fraction` is the largest of kept_of's.
struct Exponents {
    float low, high, fraction;
};

constexpr int CHUNK = 512;  // elements that are float32 meanwhile, where the tensor is not

static inline float element(const Job& job, i64 i) {
    const int storage = int(job.storage);
    return storage == FLOAT32 ? static_cast<const float*>(job.x)[i]
                              : widened(static_cast<const unsigned short*>(job.x)[i], storage);
}

// The bits, as a float32, of the largest magnitude of `count` elements; a NaN's are above an Inf's.
static unsigned largest_of(const float* x, i64 count) {
    unsigned largest = 0;
    for (i64 i = 0; i < count; ++i) {
        const unsigned magnitude = bits_of(x[i]) & ~SIGN;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}
static unsigned largest_code(const unsigned short* x, i64 count) {
    unsigned short largest = 0;
    for (i64 i = 0; i < count; ++i) {
        const unsigned short magnitude = x[i] & 0x7fffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

// `randoms`: of each element, for stochastic rounding alone.
typedef void (*Elements)(const float* x, float* y, i64 count, BlockScale block, const Format& format, unsigned lifted,
                         const float* randoms);

static inline float lifted_above_tie(float a, unsigned lifted) {
    return from_bits(bits_of(a) + ((bits_of(a) & ~SIGN) == lifted ? 2u : 0u));
}

// Elements of a symmetric format whose grid is the same on both sides of zero. `PRODUCT`: multiplied by `reciprocal`, as by
// that of a power of two, and not divided.
template <int ROUNDING, bool PRODUCT, bool NATIVE>
static void usual(const float* __restrict x, float* __restrict y, i64 count, BlockScale block, const Format& of,
                  unsigned lifted, const float* __restrict randoms) {
    Format format = of;
    format.rounding = ROUNDING;
    format.element.lowest = -format.element.largest;
    if (ROUNDING == EVEN && format.element.mantissa_bits == 0) __builtin_unreachable();
    for (i64 i = 0; i < count; ++i) {
        const float a = PRODUCT ? x[i] * block.reciprocal : x[i] / block.by;
        const float random = ROUNDING == STOCHASTIC ? randoms[i] : 0.0f;
        y[i] = read_back(NATIVE ? lifted_above_tie(a, lifted) : a, x[i], block, format, random);
    }
}

template <bool NATIVE>
static void unusual(const float* x, float* y, i64 count, BlockScale block, const Format& of, unsigned lifted,
                    const float* randoms) {
    const Format format = of;
    for (i64 i = 0; i < count; ++i)
        y[i] = NATIVE ? read_back(lifted_above_tie(x[i] * block.reciprocal, lifted), x[i], block, format, 0.0f)
                      : quantized(x[i], block, format, randoms ? randoms[i] : 0.0f);
}

template <bool PRODUCT>
static Elements usual_of(const Format& format) {
    switch (format.rounding) {
        case NEAREST: return usual<NEAREST, PRODUCT, false>;
        case EVEN: return usual<EVEN, PRODUCT, false>;
        case FLOOR: return usual<FLOOR, PRODUCT, false>;
        case STOCHASTIC: return usual<STOCHASTIC, PRODUCT, false>;
        default: return usual<TIES_TO_ZERO, PRODUCT, false>;
    }
}

static Elements elements_of(const Format& format, bool native) {
    const bool is_usual = format.symmetric && format.prescale == 1.0f && format.element.lowest >= -format.element.largest &&
                          !(format.rounding == EVEN && format.element.mantissa_bits == 0);
    if (native && is_usual) return format.rounding == EVEN ? usual<EVEN, true, true> : usual<NEAREST, true, true>;
    if (!is_usual) return native ? unusual<true> : unusual<false>;
    return format.scale == E8M0 || multiplies(format) ? usual_of<true>(format) : usual_of<false>(format);
}

static void count_in(Exponents& wanted, float exponent, float fraction = 0.0f) {
    wanted.low = exponent < wanted.low ? exponent : wanted.low;
    wanted.high = exponent > wanted.high ? exponent : wanted.high;
    wanted.fraction = fraction > wanted.fraction ? fraction : wanted.fraction;
}

// The scale of a block in native arithmetic of float32.
static BlockScale native_scale(unsigned largest, const Format& format, const Native& native, Exponents& wanted) {
    const float nan = not_a_number();
    if (largest >= INFINITY_BITS) return count_in(wanted, 0.0f), BlockScale{nan, nan, nan, 0.0f, false};
    const unsigned power = largest >= IMPLICIT_ONE ? (largest >> MANTISSA_BITS) + 22 : 31 - __builtin_clz(largest | 1);
    const unsigned e = power + (largest >= native.least[power + 1]);
    count_in(wanted, largest ? float(int(e) - 149 - format.max_exponent) : 0.0f);
    const float scale = native.scales[e];
    return {scale, scale, 1.0f / scale, 0.0f, false};
}

// What the scale of a block, the elements from `first` on, is made from in exact arithmetic: its largest magnitude, or what
// puts that at the second scale.
static float exact_amax(const Job& job, i64 first, i64 count, unsigned largest, float g, float& midpoint) {
    const Format& format = *job.format;
    float low = 0.0f, high = 0.0f;
    if (!format.symmetric && largest < INFINITY_BITS) {
        low = high = element(job, first);
        for (i64 i = first; i < first + count; ++i) {
            const float value = element(job, i);
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
    }
    float amax = amax_of_block(format, largest, low, high, midpoint);
    if (format.four_over_six) {
        const Candidates candidates = candidates_of_block(format, amax, midpoint, g);
        i64 loss = 0;
        for (i64 i = first; i < first + count; ++i) loss += loss_of_second(element(job, i), candidates, format, 0.0f);
        if (loss < 0) amax *= SECOND;
    }
    return amax;
}

// The scale of a block in exact arithmetic.
static BlockScale exact_scale(const Format& format, float amax, float midpoint, float g, Exponents& wanted) {
    if (format.scale == E8M0) {
        const Kept kept = kept_of(amax, format);
        count_in(wanted, float(kept.exponent), float(kept.fraction));
    }
    BlockScale block = scale_of_block(format, amax, midpoint, g);
    if (format.scale != E8M0 && multiplies(format)) block.reciprocal = block.by;  // what `usual` multiplies by
    return block;
}

// The bits, as a float32, of the largest magnitude of the elements from `first` on.
static unsigned largest_from(const Job& job, i64 first, i64 count) {
    const int storage = int(job.storage);
    if (storage == FLOAT32) return largest_of(static_cast<const float*>(job.x) + first, count);
    return bits_of(widened((unsigned short)largest_code(static_cast<const unsigned short*>(job.x) + first, count), storage));
}

// The random numbers of elements that follow each other.
struct Randoms {
    const Job& job;
    i64 place;  // of the next element in the tensor

    void fill(float* randoms, i64 count) {
        for (i64 i = 0; i < count;) {
            const i64 example = place / job.example, within = place % job.example;
            const Bits bits = random_bits(job.key, within / 8, job.numbers_examples ? job.first_example + example : 0);
            const i64 eight = within / 8 * 8 + 8, end = (eight < job.example ? eight : job.example) - within;
            for (i64 k = 0; k < end && i < count; ++k, ++i, ++place) randoms[i] = random_of(bits, int((within + k) % 8));
        }
    }
};

static void quantize_block(const Job& job, Elements elements, i64 first, i64 count, float g, Exponents& wanted) {
    const int storage = int(job.storage);
    const unsigned short* codes = static_cast<const unsigned short*>(job.x) + first;
    const float* floats = static_cast<const float*>(job.x) + first;
    const unsigned largest = largest_from(job, first, count);
    BlockScale block;
    if (job.native) {
        block = native_scale(largest, *job.format, *job.native, wanted);
    } else {
        float midpoint;
        const float amax = exact_amax(job, first, count, largest, g, midpoint);
        block = exact_scale(*job.format, amax, midpoint, g, wanted);
    }
    const unsigned lifted = job.native ? job.native->lifted : 0u;
    const bool draws = job.format->rounding == STOCHASTIC;
    if (storage == FLOAT32 && !draws) {
        elements(floats, static_cast<float*>(job.y) + first, count, block, *job.format, lifted, nullptr);
        return;
    }
    Randoms randoms = {job, first};
    float values[CHUNK], rounded[CHUNK], drawn[CHUNK];
    for (i64 done = 0; done < count; done += CHUNK) {
        const i64 here = count - done < CHUNK ? count - done : CHUNK;
        if (draws) randoms.fill(drawn, here);
        if (storage == FLOAT32) {
            elements(floats + done, static_cast<float*>(job.y) + first + done, here, block, *job.format, lifted, drawn);
            continue;
        }
        unsigned short* results = static_cast<unsigned short*>(job.y) + first + done;
        for (i64 i = 0; i < here; ++i) values[i] = widened(codes[done + i], storage);
        elements(values, rounded, here, block, *job.format, lifted, draws ? drawn : nullptr);
        for (i64 i = 0; i < here; ++i) results[i] = narrowed(rounded[i], storage);
    }
}

// A block in native arithmetic of bfloat16 or float16.
static void look_up_block(const Job& job, i64 first, i64 count, Exponents& wanted) {
    const int storage = int(job.storage);
    const unsigned short* codes = static_cast<const unsigned short*>(job.x) + first;
    unsigned short* results = static_cast<unsigned short*>(job.y) + first;
    const unsigned largest = largest_code(codes, count);
    const bool finite = bits_of(widened((unsigned short)largest, storage)) < INFINITY_BITS;
    // In float16 zeros want an exponent, minus infinity: see wanted_exponents.py.
    count_in(wanted, finite && (largest || storage == FLOAT16) ? job.native->exponents[largest] : 0.0f);
    const float scale = job.native->scales_of_codes[largest];
    for (i64 i = 0; i < count; ++i) {
        const unsigned short quotient = narrowed(widened(codes[i], storage) / scale, storage);
        results[i] = narrowed(widened(job.native->rounded[quotient], storage) * scale, storage);
    }
}

// The per-tensor scale of row i: given, or made from the maximum of its rows, of which it is the first. `g` is the one before.
static float tensor_scale_at(const Job& job, i64 i, float g) {
    if (job.tensor_scales) return job.tensor_scales[i];
    if (!job.under_one || i % job.under_one) return g;
    return tensor_scale_of(from_bits(largest_from(job, i * job.length, job.under_one * job.length)), *job.format);
}

// Give each block of the rows that are left, and its per-tensor scale, to `work`, with the number of what was taken at once.
template <typename Work>
static void each_block(Job* shared, const Work& work) {
    const Job& job = *shared;
    for (;;) {
        const i64 row = __atomic_fetch_add(&shared->next, job.together, __ATOMIC_RELAXED);
        if (row >= job.rows) return;
        const i64 end = row + job.together < job.rows ? row + job.together : job.rows;
        float g = 1.0f;
        for (i64 i = row; i < end; ++i) {
            g = tensor_scale_at(job, i, g);
            for (i64 column = 0; column < job.length; column += job.block) {
                const i64 count = job.block < job.length - column ? job.block : job.length - column;
                work(i * job.length + column, count, g, row / job.together);
            }
        }
    }
}

// Whether this thread makes zeros of subnormals (torch.set_flush_denormal), for which nothing here is made.
extern "C" int mx_flushes() {
    volatile float least = from_bits(1), normal = from_bits(IMPLICIT_ONE), half = 0.5f;
    return least * 1.0f == 0.0f || normal * half == 0.0f;
}

extern "C" i64 mx_format_size() { return sizeof(Format); }

// Quantize rows until all are taken; with several threads, each calls this. Returns whether the thread could.
extern "C" int mx_quantize_rows(Job* shared, Exponents* wanted) {
    if (mx_flushes()) return 0;
    const Job& job = *shared;
    const bool looks_up = job.native && job.storage != FLOAT32;
    const Elements elements = elements_of(*job.format, job.native != nullptr);
    each_block(shared, [&](i64 first, i64 count, float g, i64) {
        if (looks_up)
            look_up_block(job, first, count, *wanted);
        else
            quantize_block(job, elements, first, count, g, *wanted);
    });
    return 1;
}

extern "C" const char* mx_compiler() {
#ifdef __clang__
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}
