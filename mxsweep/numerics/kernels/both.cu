// The kernel that quantizes a matrix along its rows and along its columns in one reading. Compiled behind vectors.cu,
// whose format is that of the rows.
//
// MX_COLUMN_FORMAT  the initializer of the columns' Format
// MX_COLUMN_BLOCK   how many elements of a column are a block
// MX_WITH_ROWS      0 where only the columns are wanted
// MX_RESIDENT       thread blocks that are to fit on a multiprocessor at a time
// MX_ACROSS         lanes of a warp that lie side by side along a row, at least MX_LANES; the others lie below them
//
// A warp takes MX_ACROSS vectors by MX_COLUMN_BLOCK rows, each lane HELD vectors one below the other, all of them in
// registers: blocks of a row are shared by neighbouring lanes, those of a column by the HELD vectors of each lane below
// another. Nothing is exchanged but by shuffles.

constexpr Format COLUMN_FORMAT = MX_COLUMN_FORMAT;
constexpr int DOWN = 32 / MX_ACROSS, HELD = MX_COLUMN_BLOCK / DOWN;
constexpr bool DRAWS = (MX_WITH_ROWS && FORMAT.rounding == STOCHASTIC) || COLUMN_FORMAT.rounding == STOCHASTIC;
static_assert(MX_ACROSS >= MX_LANES && DOWN * HELD == MX_COLUMN_BLOCK);

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
MX_FUNCTION void scales_of_columns(BlockScale (&blocks)[PER_VECTOR], bool& quick, const ColumnExtremes& of) {
    float amax[PER_VECTOR], midpoint[PER_VECTOR];
    quick = true;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) {
        const unsigned word = of.magnitudes[i / PER_WORD];
        const unsigned bits = WIDE ? word : bits_of(widened((unsigned short)(i % 2 ? word >> 16 : word)));
        amax[i] = amax_of_block(COLUMN_FORMAT, bits, of.low[i], of.high[i], midpoint[i]);
        blocks[i] = quick_scale_of_block(COLUMN_FORMAT, amax[i], midpoint[i], 1.0f);
        quick = quick && blocks[i].quick;
    }
    if (quick) return;
#pragma unroll
    for (int i = 0; i < PER_VECTOR; ++i) blocks[i] = scale_of_block(COLUMN_FORMAT, amax[i], midpoint[i], 1.0f);
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

// `rows` is a multiple of MX_COLUMN_BLOCK, `width` counts vectors; of stochastic rounding, `example` elements are a multiple
// of those of a tile's rows, so that a tile lies within one example.
extern "C" __global__ void __launch_bounds__(256, MX_RESIDENT)
    mx_both(const uint4* x, uint4* by_row, uint4* by_column, i64 rows, i64 width, u64 row_key, u64 column_key, i64 example,
            i64 first_example) {
    const i64 tile = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / 32, across = (width + MX_ACROSS - 1) / MX_ACROSS;
    const i64 below = divided(tile, across);
    if (below * MX_COLUMN_BLOCK >= rows) return;  // whole warps leave together
    const int lane = threadIdx.x % 32;
    const i64 column = (tile - below * across) * MX_ACROSS + lane % MX_ACROSS;
    const bool inside = column < width;
    const i64 first = (below * MX_COLUMN_BLOCK + lane / MX_ACROSS) * width + column, step = DOWN * width;

    unsigned words[HELD][4];
#pragma unroll
    for (int held = 0; held < HELD; ++held) {
        const uint4 read = inside ? x[first + held * step] : uint4{0, 0, 0, 0};
        const unsigned own[4] = {read.x, read.y, read.z, read.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) words[held][word] = without_inf(own[word], COLUMN_FORMAT);
    }
    Place place = {0, 0};
    if (DRAWS) place = place_of({nullptr, 1, 0, example, first_example}, first * PER_VECTOR);
    const u64 apart = u64(step) * PER_VECTOR;

    if (MX_WITH_ROWS) {
#pragma unroll
        for (int held = 0; held < HELD; ++held) {
            const Extremes of = extremes_of_row(extremes_of_vector(words[held], FORMAT), FORMAT);
            const Place here = {place.example, place.i + held * apart};
            const uint4 written = quantized_vector(words[held], of, FORMAT, 1.0f, row_key, here);
            if (inside) by_row[first + held * step] = written;
        }
    }
    BlockScale blocks[PER_VECTOR];
    bool quick;
    scales_of_columns(blocks, quick, extremes_of_columns(words));
    // Two loops, since a choice inside one would be made for each element.
    if (quick) {
#pragma unroll
        for (int held = 0; held < HELD; ++held) {
            const Place here = {place.example, place.i + held * apart};
            const uint4 written = quantized_columns(words[held], blocks, true, column_key, here);
            if (inside) by_column[first + held * step] = written;
        }
    } else {
#pragma unroll
        for (int held = 0; held < HELD; ++held) {
            const Place here = {place.example, place.i + held * apart};
            const uint4 written = quantized_columns(words[held], blocks, false, column_key, here);
            if (inside) by_column[first + held * step] = written;
        }
    }
}
