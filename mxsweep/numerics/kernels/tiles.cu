// The kernels that quantize tiles, and blocks of every other kind. Compiled behind columns.cu, of whose columns the format is
// that of vectors.cu. WITH_ and a kernel's name says which is compiled, since all together take some seconds.
//
// MX_KEPT  vectors of a block that a thread keeps in registers between finding the extremes and quantizing
constexpr int KEPT = MX_KEPT;

// A tensor as `outer` matrices of height x width, cut into tiles of `rows` x `columns`; those at the edges are smaller.
struct Tiling {
    i64 outer, height, width, rows, columns;
};
#define TILING_ARGUMENTS i64 outer, i64 height, i64 width, i64 rows, i64 columns
#define TILING {outer, height, width, rows, columns}

// The i-th of the vectors that a thread has of `rows` x `columns`, of which `threads` that lie one after the other take turns.
struct Turns {
    i64 row, column, columns;
    int down, across;  // from one turn to the next

    __device__ __forceinline__ Turns(i64 thread, int threads, i64 columns)
        : row(divided(thread, columns)), column(thread - row * columns), columns(columns), down(int(divided(threads, columns))),
          across(int(threads - down * columns)) {}
    __device__ __forceinline__ void next() {
        row += down;
        column += across;
        if (column >= columns) {
            column -= columns;
            ++row;
        }
    }
};

// What threads that have a tile agree on: a warp by shuffles, a thread block through shared memory, too.
template <int THREADS>
FUNCTION Extremes extremes_of_threads(Extremes of) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
        of = extremes_of_both(of, extremes_of_lane(of, threadIdx.x % 32 ^ distance, FORMAT), FORMAT);
    if (THREADS == 32) return of;
    __shared__ Extremes of_warps[THREADS / 32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = of;
    __syncthreads();
    for (int warp = 0; warp < int(blockDim.x / 32); ++warp) of = extremes_of_both(of, of_warps[warp], FORMAT);
    return of;
}
template <int THREADS>
FUNCTION i64 sum_of_threads(i64 share) {
    share = sum_of_lanes(share, 32);
    if (THREADS == 32) return share;
    __shared__ i64 of_warps[THREADS / 32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = share;
    __syncthreads();
    share = 0;
    for (int warp = 0; warp < int(blockDim.x / 32); ++warp) share += of_warps[warp];
    return share;
}

// Tiles of whole vectors, which `width` and `columns` count, THREADS threads each: KEPT vectors a thread are read once, the
// rest of a larger tile twice.
template <int THREADS>
FUNCTION void vector_tiles(const uint4* x, uint4* y, Tiling tiling, Beside beside) {
    const int thread = threadIdx.x % THREADS, threads = THREADS == 32 ? 32 : blockDim.x;
    const i64 down = (tiling.height + tiling.rows - 1) / tiling.rows;
    const i64 across = (tiling.width + tiling.columns - 1) / tiling.columns;
    const i64 tile = THREADS == 32 ? i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
    if (tile >= tiling.outer * down * across) return;  // whole warps, and thread blocks, leave together
    const i64 above = divided(tile, across), matrix = divided(above, down);
    const i64 top = (above - matrix * down) * tiling.rows, left = (tile - above * across) * tiling.columns;
    const i64 rows = tiling.rows < tiling.height - top ? tiling.rows : tiling.height - top;
    const i64 columns = tiling.columns < tiling.width - left ? tiling.columns : tiling.width - left;
    const i64 corner = (matrix * tiling.height + top) * tiling.width + left;
    const auto at = [&](const Turns& turn) { return corner + turn.row * tiling.width + turn.column; };
    const auto read = [&](unsigned(&words)[4], i64 vector) {
        const uint4 own = x[vector];
        words[0] = without_inf(own.x, FORMAT), words[1] = without_inf(own.y, FORMAT);
        words[2] = without_inf(own.z, FORMAT), words[3] = without_inf(own.w, FORMAT);
    };
    const Turns first(thread, threads, columns);
    const Range range = range_of(beside.ranges);

    unsigned kept[KEPT][4];
    Turns turn = first;
#pragma unroll
    for (int i = 0; i < KEPT; ++i, turn.next()) {
        // Past the end a tile's first vector, which changes no extremes.
        read(kept[i], turn.row < rows ? at(turn) : corner);
    }
    Extremes of = extremes_of_vector(kept[0], FORMAT);
#pragma unroll
    for (int i = 1; i < KEPT; ++i) of = extremes_of_both(of, extremes_of_vector(kept[i], FORMAT), FORMAT);
    for (; turn.row < rows; turn.next()) {
        unsigned words[4];
        read(words, at(turn));
        of = extremes_of_both(of, extremes_of_vector(words, FORMAT), FORMAT);
    }
    of = extremes_of_threads<THREADS>(of);
    keep_block(range, of, FORMAT);

    const float t = tensor_scale_at(beside, corner * PER_VECTOR);
    bool second = false;
    if (FORMAT.four_over_six) {
        i64 loss = 0;
        for (turn = first; turn.row < rows; turn.next()) {
            unsigned words[4];
            read(words, at(turn));
            loss += loss_of_vector(words, of, t, beside, at(turn) * PER_VECTOR);
        }
        second = sum_of_threads<THREADS>(loss) < 0;
    }
    with_scale_of_block(of, FORMAT, t, beside.key, second, [&](auto quantized) {
        const auto write = [&](const unsigned(&words)[4], i64 vector) {
            y[vector] = quantized(words, place_of_vector(beside, vector * PER_VECTOR));
        };
        Turns turn = first;
#pragma unroll
        for (int i = 0; i < KEPT; ++i, turn.next()) {
            if (turn.row < rows) write(kept[i], at(turn));
        }
        for (; turn.row < rows; turn.next()) {
            unsigned words[4];
            read(words, at(turn));
            write(words, at(turn));
        }
    });
}
#ifdef WITH_mx_vector_tiles_by_warp
extern "C" __global__ void __launch_bounds__(256)
    mx_vector_tiles_by_warp(const uint4* x, uint4* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    vector_tiles<32>(x, y, TILING, BESIDE);
}
#endif
#ifdef WITH_mx_vector_tiles
extern "C" __global__ void __launch_bounds__(256)
    mx_vector_tiles(const uint4* x, uint4* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    vector_tiles<256>(x, y, TILING, BESIDE);
}
#endif

#if defined(WITH_mx_long_columns) || defined(WITH_mx_column_extremes) || defined(WITH_mx_columns_by_parts)
// Blocks of `rows` elements of columns, of which `width` counts vectors: a thread block takes ACROSS vectors side by side of
// one of `parts` parts of a block, of which each thread keeps KEPT rows. Where there are more parts than one, a kernel finds
// the extremes of each before, and writes them as elements: of each column the largest magnitude, or the least and the
// largest element. What a format maps Inf to is in them.
constexpr int EXTREMES = FORMAT.symmetric ? 1 : 2;
template <bool FINDS, bool WRITES>
FUNCTION void long_columns(const uint4* x, uint4* y, uint4* extremes, i64 parts, Tiling tiling, Beside beside) {
    constexpr int ACROSS = 8;
    const i64 height = tiling.height, width = tiling.width;
    const i64 down = (height + tiling.rows - 1) / tiling.rows, across = (width + ACROSS - 1) / ACROSS;
    // What was read last to find the extremes is what the L2 cache still holds: begin there.
    const i64 thread_block = FINDS ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const i64 row_of_parts = divided(thread_block, across), above = divided(row_of_parts, parts);
    const i64 part = row_of_parts - above * parts, matrix = divided(above, down), top = (above - matrix * down) * tiling.rows;
    const i64 column = (thread_block - row_of_parts * across) * ACROSS + threadIdx.x % ACROSS;
    const int within = threadIdx.x / ACROSS, step = blockDim.x / ACROSS;
    const bool inside = column < width;  // past the end of a row its last vector is read again, and nothing written
    const i64 bottom = top + tiling.rows < height ? top + tiling.rows : height;
    const i64 length = divided(tiling.rows + parts - 1, parts), start = top + part * length + within;
    const i64 end = top + (part + 1) * length < bottom ? top + (part + 1) * length : bottom;
    const i64 shown = inside ? column : width - 1, corner = matrix * height * width + shown;
    const auto take = [&](unsigned(&words)[4], const uint4& own) {
        words[0] = without_inf(own.x, FORMAT), words[1] = without_inf(own.y, FORMAT);
        words[2] = without_inf(own.z, FORMAT), words[3] = without_inf(own.w, FORMAT);
    };
    const auto read = [&](unsigned(&words)[4], i64 row) { take(words, x[corner + (row < end ? row : top) * width]); };

    const Range range = WRITES ? range_of(beside.ranges) : Range{};
    unsigned kept[KEPT][4];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) read(kept[i], start + i * step);
    ColumnExtremes of;
    if (FINDS) {
        of = extremes_of_columns(kept);
    } else {
        const i64 count = parts * EXTREMES;
        const uint4* found = extremes + above * count * width + shown;
        unsigned words[4];
        take(words, found[(within < count ? within : 0) * width]);
        of = extremes_of_one(words);
        for (i64 i = within + step; i < count; i += step) {
            take(words, found[i * width]);
            of = joined(of, extremes_of_one(words));
        }
    }
#pragma unroll
    for (int distance = ACROSS; distance < 32; distance *= 2) of = joined(of, of_other_lane(of, distance));
    __shared__ ColumnExtremes of_warps[8][ACROSS];
    if (threadIdx.x % 32 < ACROSS) of_warps[threadIdx.x / 32][threadIdx.x % 32] = of;
    __syncthreads();
    for (int warp = 0; warp < int(blockDim.x / 32); ++warp) of = joined(of, of_warps[warp][threadIdx.x % ACROSS]);
    if (!WRITES) {
        if (!inside || within >= EXTREMES) return;
        uint4* found = extremes + (row_of_parts * EXTREMES + within) * width + column;
        if (FORMAT.symmetric) {
            *found = uint4{of.magnitudes[0], of.magnitudes[1], of.magnitudes[2], of.magnitudes[3]};
            return;
        }
        float values[PER_VECTOR];
#pragma unroll
        for (int i = 0; i < PER_VECTOR; ++i) {
            const unsigned bits =
                magnitude_of_column(of.magnitudes[0], of.magnitudes[1], of.magnitudes[2], of.magnitudes[3], i);
            values[i] = bits > INFINITY_BITS ? not_a_number() : within ? of.high[i] : of.low[i];
        }
        *found = packed_vector(values);
        return;
    }
    keep_columns<ACROSS>(range, of);

    const float t = tensor_scale_at(beside, (corner + top * width) * PER_VECTOR);
    with_scales_of_columns<ACROSS>(of, t, beside.key, [&](auto quantized) {
        const auto write = [&](const unsigned(&words)[4], i64 row) {
            const i64 vector = corner + row * width;
            if (inside && row < end) y[vector] = quantized(words, place_of_vector(beside, vector * PER_VECTOR));
        };
#pragma unroll
        for (int i = 0; i < KEPT; ++i) write(kept[i], start + i * step);
    });
}
#endif
#ifdef WITH_mx_long_columns
extern "C" __global__ void __launch_bounds__(256)
    mx_long_columns(const uint4* x, uint4* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    long_columns<true, true>(x, y, nullptr, 1, TILING, BESIDE);
}
#endif
#ifdef WITH_mx_column_extremes
extern "C" __global__ void __launch_bounds__(256)
    mx_column_extremes(const uint4* x, uint4* extremes, i64 parts, TILING_ARGUMENTS) {
    long_columns<true, false>(x, nullptr, extremes, parts, TILING, {});
}
#endif
#ifdef WITH_mx_columns_by_parts
extern "C" __global__ void __launch_bounds__(256)
    mx_columns_by_parts(const uint4* x, uint4* y, uint4* extremes, i64 parts, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    long_columns<false, true>(x, y, extremes, parts, TILING, BESIDE);
}
#endif

#if defined(WITH_mx_tiles_by_warp) || defined(WITH_mx_tiles_by_thread)
// Any block, LANES threads each, an element at a time: they are read twice, the second time mostly from the caches.
template <int LANES>
FUNCTION void tiles(const void* x, void* y, Tiling tiling, Beside beside) {
    const i64 down = (tiling.height + tiling.rows - 1) / tiling.rows;
    const i64 across = (tiling.width + tiling.columns - 1) / tiling.columns;
    const i64 tile = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    if (tile >= tiling.outer * down * across) return;  // whole groups of LANES leave together
    const i64 top = tile / across % down * tiling.rows, left = tile % across * tiling.columns;
    const i64 rows = tiling.rows < tiling.height - top ? tiling.rows : tiling.height - top;
    const i64 columns = tiling.columns < tiling.width - left ? tiling.columns : tiling.width - left;
    const i64 corner = (tile / across / down * tiling.height + top) * tiling.width + left;
    // An element's place in the tile, advanced by LANES without dividing.
    const i64 first_row = threadIdx.x % LANES / columns, first_column = threadIdx.x % LANES % columns;
    const auto advance = [columns](i64& row, i64& column) {
        for (column += LANES; column >= columns; column -= columns) ++row;
    };

    unsigned largest = 0;
    float low = from_bits(INFINITY_BITS), high = -low;
#pragma unroll 1
    for (i64 row = first_row, column = first_column; row < rows; advance(row, column)) {
        const float value = read_at(x, corner + row * tiling.width + column);
        const unsigned magnitude = bits_of(value) & ~SIGN;
        largest = magnitude > largest ? magnitude : largest;
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) {
        const unsigned other = __shfl_xor_sync(ALL, largest, distance);
        largest = other > largest ? other : largest;
        low = fminf(low, __shfl_xor_sync(ALL, low, distance));
        high = fmaxf(high, __shfl_xor_sync(ALL, high, distance));
    }
    float midpoint;
    float amax = amax_of_block(FORMAT, largest, low, high, midpoint);
    keep(range_of(beside.ranges), amax, FORMAT);
    const float g = tensor_scale_at(beside, corner);
    if (FORMAT.four_over_six) {
        const Candidates candidates = candidates_of_block(FORMAT, amax, midpoint, g);
        i64 loss = 0;
#pragma unroll 1
        for (i64 row = first_row, column = first_column; row < rows; advance(row, column)) {
            const i64 i = corner + row * tiling.width + column;
            loss += loss_of_second(read_at(x, i), candidates, FORMAT, random_at(beside, i));
        }
        if (sum_of_lanes(loss, LANES) < 0) amax *= SECOND;
    }
    const BlockScale block = scale_of_block(FORMAT, amax, midpoint, g);
#pragma unroll 1
    for (i64 row = first_row, column = first_column; row < rows; advance(row, column)) {
        const i64 i = corner + row * tiling.width + column;
        write_at(y, i, quantized(read_at(x, i), block, FORMAT, random_at(beside, i)));
    }
}

// A warp for a block whose elements lie side by side; a thread for one whose neighbours belong to other blocks.
extern "C" __global__ void __launch_bounds__(256)
    mx_tiles_by_warp(const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    tiles<32>(x, y, TILING, BESIDE);
}
extern "C" __global__ void __launch_bounds__(256)
    mx_tiles_by_thread(const void* x, void* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    tiles<1>(x, y, TILING, BESIDE);
}
#endif
