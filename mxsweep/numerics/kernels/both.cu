// The kernel that quantizes a matrix along its rows and along its columns in one reading. Compiled behind vectors.cu,
// whose format is that of the rows.
//
// MX_COLUMN_FORMAT  the initializer of the columns' Format
// MX_COLUMN_BLOCK   how many elements of a column are a block
// MX_WITH_ROWS      0 where only the columns are wanted
// MX_RESIDENT       thread blocks that are to fit on a multiprocessor at a time
// MX_ACROSS         lanes of a warp that lie side by side along a row, at least MX_LANES; the others lie below them
// MX_LOG_ROTATION   log2 of the order of the Hadamard matrix by which columns are multiplied first; 0 for none
//
// A warp takes MX_ACROSS vectors by MX_COLUMN_BLOCK rows, each lane HELD vectors one below the other, all of them in
// registers: blocks of a row are shared by neighbouring lanes, those of a column by the HELD vectors of each lane below
// another. Nothing is exchanged but by shuffles. Where a format has a per-tensor scale, that of the rows a token's and that
// of the columns a sequence's, another kernel finds the maxima before: the second reading is mostly from the L2 cache.

constexpr Format COLUMN_FORMAT = MX_COLUMN_FORMAT;
constexpr int DOWN = 32 / MX_ACROSS, HELD = MX_COLUMN_BLOCK / DOWN;
constexpr int ORDER = 1 << MX_LOG_ROTATION;
constexpr bool DRAWS = (MX_WITH_ROWS && FORMAT.rounding == STOCHASTIC) || COLUMN_FORMAT.rounding == STOCHASTIC;
static_assert(MX_ACROSS >= MX_LANES && DOWN * HELD == MX_COLUMN_BLOCK && MX_COLUMN_BLOCK % ORDER == 0);

// Reads a lane's vectors, the first of which is at `from`.
MX_FUNCTION void read_tile(unsigned (&words)[HELD][4], const uint4* from, i64 step) {
    uint4 read[HELD];
#pragma unroll
    for (int held = 0; held < HELD; ++held, from += step) read[held] = *from;
#pragma unroll
    for (int held = 0; held < HELD; ++held) {
        const unsigned own[4] = {read[held].x, read[held].y, read[held].z, read[held].w};
#pragma unroll
        for (int word = 0; word < 4; ++word) words[held][word] = without_inf(own[word], COLUMN_FORMAT);
    }
}

// Multiplies the columns by signs, of which the bits of `negative` say where they are -1, and by Sylvester's matrix:
// hadamard.cu's butterflies, in its order, those over the low bits of the row's number between lanes.
MX_FUNCTION void rotate_columns(unsigned (&words)[HELD][4], u64 negative) {
    const unsigned lane = threadIdx.x % 32;
    unsigned flips[HELD];
#pragma unroll
    for (int held = 0; held < HELD; ++held)
        flips[held] = unsigned(negative >> ((held * DOWN + lane / MX_ACROSS) % ORDER)) << 31;
    const float scale = MX_ROTATION_SCALE;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        float value[PER_WORD][HELD];
#pragma unroll
        for (int part = 0; part < PER_WORD; ++part) {
            float(&of)[HELD] = value[part];
#pragma unroll
            for (int held = 0; held < HELD; ++held) {
                const float element = element_of(words[held], word * PER_WORD + part);
                of[held] = scale * from_bits(bits_of(element) ^ flips[held]);
            }
#pragma unroll
            for (int distance = 1; distance < ORDER; distance *= 2) {
                if (distance < DOWN) {
                    const float sign = lane / MX_ACROSS & distance ? -1.0f : 1.0f;
#pragma unroll
                    for (int held = 0; held < HELD; ++held)
                        of[held] = fmaf(sign, of[held], __shfl_xor_sync(ALL, of[held], distance * MX_ACROSS));
                    continue;
                }
#pragma unroll
                for (int held = 0; held < HELD; ++held) {
                    const int other = held + distance / DOWN;
                    if (held & (distance / DOWN)) continue;
                    const float a = of[held], b = of[other];
                    of[held] = a + b;
                    of[other] = a - b;
                }
            }
        }
#pragma unroll
        for (int held = 0; held < HELD; ++held)
            words[held][word] = WIDE ? bits_of(value[0][held]) : packed(value[0][held], value[PER_WORD - 1][held]);
    }
}

MX_FUNCTION unsigned largest_magnitudes(const unsigned (&words)[4]) {
    return larger(larger(magnitudes(words[0]), magnitudes(words[1])), larger(magnitudes(words[2]), magnitudes(words[3])));
}

// Of each element of a vector.
struct ColumnExtremes {
    unsigned magnitudes[4];  // as stored, as many to a word as there are elements
    float low[PER_VECTOR], high[PER_VECTOR];
};

MX_FUNCTION ColumnExtremes extremes_of_columns(const unsigned (&words)[HELD][4]) {
    ColumnExtremes of = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        unsigned largest = magnitudes(words[0][word]);
#pragma unroll
        for (int held = 1; held < HELD; ++held) largest = larger(largest, magnitudes(words[held][word]));
#pragma unroll
        for (int distance = MX_ACROSS; distance < 32; distance *= 2)
            largest = larger(largest, __shfl_xor_sync(ALL, largest, distance));
        of.magnitudes[word] = largest;
    }
    if (COLUMN_FORMAT.symmetric) return of;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        float low = element_of(words[0], i), high = low;
#pragma unroll
        for (int held = 1; held < HELD; ++held) {
            low = fminf(low, element_of(words[held], i));
            high = fmaxf(high, element_of(words[held], i));
        }
#pragma unroll
        for (int distance = MX_ACROSS; distance < 32; distance *= 2) {
            low = fminf(low, __shfl_xor_sync(ALL, low, distance));
            high = fmaxf(high, __shfl_xor_sync(ALL, high, distance));
        }
        of.low[i] = low;
        of.high[i] = high;
    }
    return of;
}

// The scales of a vector's columns; `quick` says whether all may be divided by quickly, and then it is so in each.
MX_FUNCTION void scales_of_columns(BlockScale (&blocks)[PER_VECTOR], bool& quick, const ColumnExtremes& of, float t) {
    float amax[PER_VECTOR], midpoint[PER_VECTOR];
    quick = true;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        const unsigned word = of.magnitudes[i / PER_WORD];
        const unsigned bits = WIDE ? word : bits_of(widened((unsigned short)(i % 2 ? word >> 16 : word)));
        amax[i] = amax_of_block(COLUMN_FORMAT, bits, of.low[i], of.high[i], midpoint[i]);
        blocks[i] = quick_scale_of_block(COLUMN_FORMAT, amax[i], midpoint[i], t);
        quick = quick && blocks[i].quick;
    }
    if (quick) return;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) blocks[i] = scale_of_block(COLUMN_FORMAT, amax[i], midpoint[i], t);
}

MX_FUNCTION uint4 quantized_columns(const unsigned (&words)[4], const BlockScale (&blocks)[PER_VECTOR], bool quick, u64 key,
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

// The per-tensor scale of the columns of a sequence, that is of `strips` strips, of which `strip` is one.
MX_FUNCTION float scale_of_sequence(const unsigned* strip_maxima, i64 strip, i64 strips) {
    const unsigned* of = strip_maxima + divided(strip, strips) * strips;
    unsigned largest = 0;
    for (i64 i = threadIdx.x % 32; i < strips; i += 32) largest = of[i] > largest ? of[i] : largest;
    return tensor_scale_of(from_bits(largest_of_warp(largest)), COLUMN_FORMAT);
}

// `rows` is a multiple of MX_COLUMN_BLOCK, `width` counts vectors; of stochastic rounding, `example` elements are a multiple
// of those of a tile's rows, so that a tile lies within one example.
extern "C" __global__ void __launch_bounds__(256, MX_RESIDENT)
    mx_both(const uint4* x, uint4* by_row, uint4* by_column, i64 rows, i64 width, u64 row_key, u64 column_key, i64 example,
            i64 first_example, const float* row_scales, const unsigned* strip_maxima, i64 strips, u64 negative) {
    const i64 tile = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / 32, across = (width + MX_ACROSS - 1) / MX_ACROSS;
    const i64 below = divided(tile, across);
    if (below * MX_COLUMN_BLOCK >= rows) return;  // whole warps leave together
    const int lane = threadIdx.x % 32;
    const i64 column = (tile - below * across) * MX_ACROSS + lane % MX_ACROSS;
    // Lanes past the end of a row read its last vector again, and write nothing.
    const bool inside = column < width;
    const i64 row = below * MX_COLUMN_BLOCK + lane / MX_ACROSS, step = DOWN * width;
    const i64 first = row * width + (inside ? column : width - 1);

    unsigned words[HELD][4];
    read_tile(words, x + first, step);
    Place place = {0, 0};
    if (DRAWS) place = place_of({nullptr, 1, 0, example, first_example}, first * PER_VECTOR);
    const u64 apart = u64(step) * PER_VECTOR;

    if (MX_WITH_ROWS) {
        uint4* to = by_row + first;
#pragma unroll
        for (int held = 0; held < HELD; ++held, to += step) {
            const Extremes of = extremes_of_row(extremes_of_vector(words[held], FORMAT), FORMAT);
            const Place here = {place.example, place.i + held * apart};
            const float t = FORMAT.tensor_scale ? row_scales[row + held * DOWN] : 1.0f;
            const uint4 written = quantized_vector(words[held], of, FORMAT, t, row_key, here);
            if (inside) *to = written;
        }
    }
    if (ORDER > 1) rotate_columns(words, negative);
    const ColumnExtremes of = extremes_of_columns(words);
    uint4* to = by_column + first;
    if (takes_pairs(COLUMN_FORMAT, STORAGE)) {
        PairScale pairs[4];
#pragma unroll
        for (int word = 0; word < 4; ++word) pairs[word] = scale_of_pair(COLUMN_FORMAT, of.magnitudes[word]);
#pragma unroll
        for (int held = 0; held < HELD; ++held, to += step) {
            const uint4 written = {quantized_pair(words[held][0], pairs[0], COLUMN_FORMAT),
                                   quantized_pair(words[held][1], pairs[1], COLUMN_FORMAT),
                                   quantized_pair(words[held][2], pairs[2], COLUMN_FORMAT),
                                   quantized_pair(words[held][3], pairs[3], COLUMN_FORMAT)};
            if (inside) *to = written;
        }
        return;
    }
    BlockScale blocks[PER_VECTOR];
    bool quick;
    scales_of_columns(blocks, quick, of, COLUMN_FORMAT.tensor_scale ? scale_of_sequence(strip_maxima, below, strips) : 1.0f);
    // Two loops, since a choice inside one would be made for each element.
    if (quick) {
#pragma unroll
        for (int held = 0; held < HELD; ++held, to += step) {
            const Place here = {place.example, place.i + held * apart};
            const uint4 written = quantized_columns(words[held], blocks, true, column_key, here);
            if (inside) *to = written;
        }
    } else {
#pragma unroll
        for (int held = 0; held < HELD; ++held, to += step) {
            const Place here = {place.example, place.i + held * apart};
            const uint4 written = quantized_columns(words[held], blocks, false, column_key, here);
            if (inside) *to = written;
        }
    }
}
