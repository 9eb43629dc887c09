// The kernel that quantizes a matrix along its rows and along its columns in one reading. Compiled behind columns.cu and
// butterflies.cu; the format of vectors.cu is that of the rows.
//
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

constexpr int DOWN = 32 / MX_ACROSS, HELD = MX_COLUMN_BLOCK / DOWN;
constexpr int ORDER = 1 << MX_LOG_ROTATION;
constexpr bool DRAWS = (MX_WITH_ROWS && FORMAT.rounding == STOCHASTIC) || COLUMN_FORMAT.rounding == STOCHASTIC;
static_assert(MX_ACROSS >= MX_LANES && DOWN * HELD == MX_COLUMN_BLOCK && MX_COLUMN_BLOCK % ORDER == 0);

// Reads a lane's vectors, the first of which is at `from`.
FUNCTION void read_tile(unsigned (&words)[HELD][4], const uint4* from, i64 step) {
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
FUNCTION void rotate_columns(unsigned (&words)[HELD][4], u64 negative) {
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
#pragma unroll
                    for (int held = 0; held < HELD; ++held)
                        of[held] = butterfly_of_lanes(of[held], distance * MX_ACROSS);
                    continue;
                }
#pragma unroll
                for (int held = 0; held < HELD; ++held)
                    if (!(held & (distance / DOWN))) butterfly(of[held], of[held + distance / DOWN]);
            }
        }
#pragma unroll
        for (int held = 0; held < HELD; ++held)
            words[held][word] = WIDE ? bits_of(value[0][held]) : packed(value[0][held], value[PER_WORD - 1][held]);
    }
}

FUNCTION unsigned largest_magnitudes(const unsigned (&words)[4]) {
    return larger(larger(magnitudes(words[0]), magnitudes(words[1])), larger(magnitudes(words[2]), magnitudes(words[3])));
}

// Those of the columns of a tile, which lanes below another hold.
FUNCTION ColumnExtremes extremes_of_tile(const unsigned (&words)[HELD][4]) {
    ColumnExtremes of = extremes_of_columns(words);
#pragma unroll
    for (int distance = MX_ACROSS; distance < 32; distance *= 2) of = joined(of, of_other_lane(of, distance));
    return of;
}

// The per-tensor scale of the columns of a sequence, that is of `strips` strips, of which `strip` is one.
FUNCTION float scale_of_sequence(const unsigned* strip_maxima, i64 strip, i64 strips) {
    const unsigned* of = strip_maxima + divided(strip, strips) * strips;
    unsigned largest = 0;
    for (i64 i = threadIdx.x % 32; i < strips; i += 32) largest = of[i] > largest ? of[i] : largest;
    return tensor_scale_of(from_bits(largest_of_warp(largest)), COLUMN_FORMAT);
}

// A row is `width` vectors, and `across` tiles, by which is divided by a product and a shift; `rows` is a multiple of
// MX_COLUMN_BLOCK. Of stochastic rounding, `example` elements are a multiple of those of a tile's rows, so that a tile
// lies within one example. Where only the columns are wanted, `strips` elements share one of the `row_scales`.
extern "C" __global__ void __launch_bounds__(256, MX_RESIDENT)
    mx_both(const uint4* x, uint4* by_row, uint4* by_column, i64 rows, i64 width, u64 row_key, u64 column_key, i64 example,
            i64 first_example, const float* row_scales, const unsigned* strip_maxima, i64 strips, u64 negative, i64 across,
            u64 multiplier, i64 shift RANGES_ARGUMENT) {
    const unsigned tile = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const unsigned below = unsigned(u64(tile) * unsigned(multiplier) >> shift);  // tile / across
    if (i64(below) * MX_COLUMN_BLOCK >= rows) return;  // whole warps leave together
    const int lane = threadIdx.x % 32;
    const i64 column = i64(tile - below * unsigned(across)) * MX_ACROSS + lane % MX_ACROSS;
    // Lanes past the end of a row read its last vector again, and write nothing.
    const bool inside = column < width;
    const i64 row = i64(below) * MX_COLUMN_BLOCK + lane / MX_ACROSS, step = DOWN * width;
    const i64 first = row * width + (inside ? column : width - 1);

    const Range range = range_of(RANGES);
    unsigned words[HELD][4];
    read_tile(words, x + first, step);
    Place place = {0, 0};
    if (DRAWS) place = place_of({nullptr, 1, 0, example, first_example, nullptr}, first * PER_VECTOR);
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
            if (KEEPS && inside) keep_block(range, of, FORMAT);
        }
    }
    if (ORDER > 1) rotate_columns(words, negative);
    float t = 1.0f;
    if (COLUMN_FORMAT.tensor_scale)
        t = MX_WITH_ROWS ? scale_of_sequence(strip_maxima, below, strips) : row_scales[divided(first * PER_VECTOR, strips)];
    const ColumnExtremes of = extremes_of_tile(words);
    keep_columns<MX_ACROSS>(range, of);
    with_scales_of_columns<MX_ACROSS>(of, t, column_key, [&](auto quantized) {
        uint4* to = by_column + first;
#pragma unroll
        for (int held = 0; held < HELD; ++held, to += step) {
            const uint4 written = quantized(words[held], Place{place.example, place.i + held * apart});
            if (inside) *to = written;
        }
    });
}
