// What kernels need that quantize along columns, of which a thread holds 16 bytes of each of some rows. Compiled behind
// vectors.cu.
//
// MX_COLUMN_FORMAT  the initializer of the columns' Format

constexpr Format COLUMN_FORMAT = MX_COLUMN_FORMAT;

// Of each element of a vector.
struct ColumnExtremes {
    unsigned magnitudes[4];  // as stored, as many to a word as there are elements
    float low[PER_VECTOR], high[PER_VECTOR];
};

FUNCTION ColumnExtremes joined(const ColumnExtremes& a, const ColumnExtremes& b) {
    ColumnExtremes of = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) of.magnitudes[word] = larger(a.magnitudes[word], b.magnitudes[word]);
    if (COLUMN_FORMAT.symmetric) return of;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        of.low[i] = fminf(a.low[i], b.low[i]);
        of.high[i] = fmaxf(a.high[i], b.high[i]);
    }
    return of;
}

FUNCTION ColumnExtremes of_other_lane(const ColumnExtremes& of, int distance) {
    ColumnExtremes other = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) other.magnitudes[word] = __shfl_xor_sync(ALL, of.magnitudes[word], distance);
    if (COLUMN_FORMAT.symmetric) return other;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        other.low[i] = __shfl_xor_sync(ALL, of.low[i], distance);
        other.high[i] = __shfl_xor_sync(ALL, of.high[i], distance);
    }
    return other;
}

FUNCTION ColumnExtremes extremes_of_one(const unsigned (&words)[4]) {
    ColumnExtremes of = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) of.magnitudes[word] = magnitudes(words[word]);
    if (COLUMN_FORMAT.symmetric) return of;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) of.low[i] = of.high[i] = element_of(words, i);
    return of;
}

template <int N>
FUNCTION ColumnExtremes extremes_of_columns(const unsigned (&words)[N][4]) {
    ColumnExtremes of = extremes_of_one(words[0]);
#pragma unroll
    for (int held = 1; held < N; ++held) of = joined(of, extremes_of_one(words[held]));
    return of;
}

// The float32 bits of the largest magnitude of column i of a vector, given those of its words.
FUNCTION unsigned magnitude_of_column(unsigned first, unsigned second, unsigned third, unsigned fourth, int i) {
    const int n = i / PER_WORD;
    const unsigned word = n < 2 ? (n ? second : first) : (n == 2 ? third : fourth);
    return WIDE ? word : bits_of(widened((unsigned short)(i % 2 ? word >> 16 : word)));
}

// The scales of a vector's columns; `quick` says whether all may be divided by quickly, and then it is so in each. Of the
// lanes that have the same columns, one in ACROSS, each works out some and is told the others'; all of a warp agree on
// `quick`. With a midpoint to each, all work out all.
template <int ACROSS>
FUNCTION void scales_of_columns(BlockScale (&blocks)[PER_VECTOR], bool& quick, const ColumnExtremes& of, float t) {
    constexpr int SAME = COLUMN_FORMAT.symmetric ? 32 / ACROSS : 1, OWN = SAME < PER_VECTOR ? PER_VECTOR / SAME : 1;
    const int lane = threadIdx.x % 32, first = SAME == 1 ? 0 : lane / ACROSS * OWN % PER_VECTOR;
    float amax[OWN], midpoint[OWN];
    BlockScale own[OWN];
    quick = true;
#pragma unroll
    for (int j = 0; j < OWN; ++j) {
        const unsigned bits =
            magnitude_of_column(of.magnitudes[0], of.magnitudes[1], of.magnitudes[2], of.magnitudes[3], first + j);
        amax[j] = amax_of_block(COLUMN_FORMAT, bits, of.low[j], of.high[j], midpoint[j]);
        own[j] = quick_scale_of_block(COLUMN_FORMAT, amax[j], midpoint[j], t);
        quick = quick && own[j].quick;
    }
    if (COLUMN_FORMAT.scale != E8M0) quick = __all_sync(ALL, quick);
    if (!quick) {
#pragma unroll
        for (int j = 0; j < OWN; ++j) own[j] = scale_of_block(COLUMN_FORMAT, amax[j], midpoint[j], t);
    }
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        blocks[i] = own[i % OWN];
        if (SAME == 1) continue;
        const int source = i / OWN * ACROSS + lane % ACROSS;
        blocks[i].by = __shfl_sync(ALL, own[i % OWN].by, source);
        blocks[i].read = multiplies(COLUMN_FORMAT) ? __shfl_sync(ALL, own[i % OWN].read, source) : blocks[i].by;
        blocks[i].reciprocal = __shfl_sync(ALL, own[i % OWN].reciprocal, source);
    }
}

FUNCTION uint4 quantized_columns(const unsigned (&words)[4], const BlockScale (&blocks)[PER_VECTOR], bool quick, u64 key,
                                 Place place) {
    float random[PER_VECTOR] = {}, result[PER_VECTOR];
    if (COLUMN_FORMAT.rounding == STOCHASTIC) draw_vector(random, key, place);
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        const BlockScale block = {blocks[i].by, blocks[i].read, blocks[i].reciprocal, blocks[i].midpoint, quick};
        result[i] = quantized(element_of(words, i), block, COLUMN_FORMAT, random[i]);
    }
    return packed_vector(result);
}

// Keeps what columns want, of which lanes that have the same ones, one in ACROSS, take turns; with a midpoint to each, all
// take all.
template <int ACROSS>
FUNCTION void keep_columns(Range range, const ColumnExtremes& of) {
    constexpr int SAME = COLUMN_FORMAT.symmetric ? 32 / ACROSS : 1;
#pragma unroll
    for (int j = 0; j < PER_VECTOR; j += SAME) {
        const int i = SAME == 1 ? j : (j + int(threadIdx.x % 32) / ACROSS) % PER_VECTOR;
        const unsigned bits =
            magnitude_of_column(of.magnitudes[0], of.magnitudes[1], of.magnitudes[2], of.magnitudes[3], i);
        float midpoint;
        keep(range, amax_of_block(COLUMN_FORMAT, bits, of.low[j], of.high[j], midpoint), COLUMN_FORMAT);
    }
}

// Calls `each` with a function that quantizes a vector of a thread's columns, given its place, under their scales, which
// whole warps find together.
template <int ACROSS, class Each>
FUNCTION void with_scales_of_columns(const ColumnExtremes& of, float t, u64 key, Each each) {
    if (takes_pairs(COLUMN_FORMAT, STORAGE)) {
        PairScale pairs[4];
#pragma unroll
        for (int word = 0; word < 4; ++word) pairs[word] = scale_of_pair(COLUMN_FORMAT, of.magnitudes[word]);
        each([&](const unsigned (&words)[4], Place) {
            return uint4{quantized_pair(words[0], pairs[0], COLUMN_FORMAT), quantized_pair(words[1], pairs[1], COLUMN_FORMAT),
                         quantized_pair(words[2], pairs[2], COLUMN_FORMAT), quantized_pair(words[3], pairs[3], COLUMN_FORMAT)};
        });
        return;
    }
    BlockScale blocks[PER_VECTOR];
    bool quick;
    scales_of_columns<ACROSS>(blocks, quick, of, t);
    // Twice, since a choice inside would be made for each element.
    if (quick)
        each([&](const unsigned (&words)[4], Place place) { return quantized_columns(words, blocks, true, key, place); });
    else
        each([&](const unsigned (&words)[4], Place place) { return quantized_columns(words, blocks, false, key, place); });
}
