// Kernels of which a warp has several blocks at a time: short blocks of rows of any length, and small tiles. Compiled
// behind tiles.cu, whose macros they use.
//
// Of short blocks, MX_SHARE threads, a power of two, have one of MX_BLOCK elements, in turns a unit of MX_UNIT bytes each: 16,
// which go from memory to registers and back, or 4 or 2 where rows or blocks are no whole 16 bytes.

#ifdef WITH_mx_short_blocks
constexpr int SHARE = MX_SHARE, UNIT = MX_UNIT;
constexpr int OF_UNIT = WIDE ? UNIT / 4 : UNIT / 2;                        // elements
constexpr int HAS = (MX_BLOCK + OF_UNIT * SHARE - 1) / (OF_UNIT * SHARE);  // units of a thread
static_assert(HAS * UNIT <= KEPT * 16 && (SHARE & (SHARE - 1)) == 0);

// A unit of 4 or 2 bytes.
FUNCTION unsigned unit_at(const uint4* x, int i) {
    return UNIT == 4 ? reinterpret_cast<const unsigned*>(x)[i] : reinterpret_cast<const unsigned short*>(x)[i];
}
FUNCTION void write_unit(uint4* y, int i, unsigned unit) {
    if (UNIT == 4)
        reinterpret_cast<unsigned*>(y)[i] = unit;
    else
        reinterpret_cast<unsigned short*>(y)[i] = (unsigned short)unit;
}

// The part of a tensor that a thread block has. It may begin and end between two vectors; those that it lies in are held in
// shared memory.
struct Span {
    i64 first;       // of these vectors
    int begin, end;  // in units from there on
};
FUNCTION void read_span(uint4* held, const uint4* x, Span span, i64 units) {
    constexpr int PER = 16 / UNIT;
    const i64 vectors = units / PER - span.first;  // that lie in the tensor as a whole
    uint4 read[KEPT + 1];
#pragma unroll
    for (int turn = 0; turn <= KEPT; ++turn) {
        const int i = threadIdx.x + turn * blockDim.x;
        if (i * PER < span.end && i < vectors) read[turn] = x[span.first + i];
    }
#pragma unroll
    for (int turn = 0; turn <= KEPT; ++turn) {
        const int i = threadIdx.x + turn * blockDim.x;
        if (i * PER < span.end && i < vectors) held[i] = read[turn];
    }
    const int rest = int(vectors) * PER + threadIdx.x;
    if (vectors * PER < span.end && rest < span.end) write_unit(held, rest, unit_at(x + span.first, rest));
}
FUNCTION void write_span(uint4* y, const uint4* held, Span span) {
    constexpr int PER = 16 / UNIT;
    uint4* to = y + span.first;
#pragma unroll
    for (int turn = 0; turn <= KEPT; ++turn) {
        const int i = threadIdx.x + turn * blockDim.x;
        if (i * PER >= span.begin && (i + 1) * PER <= span.end) to[i] = held[i];
    }
    // Of the 16 bytes in which it begins, and of those in which it ends, what lies within it.
    const int head = (span.begin + PER - 1) / PER * PER, tail = span.end / PER * PER;
    const int first = span.begin + threadIdx.x, last = tail + threadIdx.x;
    if (first < head && first < span.end) write_unit(to, first, unit_at(held, first));
    if (last >= head && last < span.end) write_unit(to, last, unit_at(held, last));
}

// Blocks of `rows` rows of `width` elements, `across` to a row, by which is divided by a product and a shift; the last of a row
// may be shorter. They lie in memory one after the other.
extern "C" __global__ void __launch_bounds__(256)
    mx_short_blocks(const uint4* x, uint4* y, i64 rows, i64 width, i64 across, u64 multiplier, i64 shift, BESIDE_ARGUMENTS) {
    const Beside beside = BESIDE;
    const unsigned blocks = blockDim.x / SHARE, first = blockIdx.x * blocks, count = unsigned(rows * across);
    const auto row_of = [&](unsigned block) { return unsigned(u64(block) * unsigned(multiplier) >> shift); };
    const auto start_of = [&](unsigned block, unsigned row) {
        return row * width + i64(block - row * unsigned(across)) * MX_BLOCK;
    };
    // Threads without a block have the first one's place, and write nothing. Nor do they read it from shared memory, where another
    // warp may already have written what it became.
    const bool has = first + threadIdx.x / SHARE < count;
    const unsigned block = has ? first + threadIdx.x / SHARE : first, row = row_of(block);
    const i64 start = start_of(block, row), left = (row + 1) * width - start;
    const int length = left < MX_BLOCK ? int(left) : MX_BLOCK, units = (length + OF_UNIT - 1) / OF_UNIT;
    // Past the end a thread has its block's first unit again, which changes no extremes.
    const auto unit = [&](int turn) { return int(threadIdx.x % SHARE) + turn * SHARE; };
    const auto is_inside = [&](int turn) { return has && unit(turn) < units; };

    const Range range = range_of(beside.ranges);
    __shared__ uint4 held[UNIT == 16 ? 1 : 256 * KEPT + 1];
    Span span;
    int place = 0;
    if (UNIT < 16) {
        const unsigned after = first + blocks < count ? first + blocks : count;
        const i64 from = start_of(first, row_of(first)), to = start_of(after, row_of(after));
        span.first = from / PER_VECTOR;
        const i64 base = span.first * PER_VECTOR;
        span.begin = int(from - base) / OF_UNIT, span.end = int(to - base) / OF_UNIT;
        place = int(start - base) / OF_UNIT;
        read_span(held, x, span, rows * width / OF_UNIT);
        __syncthreads();
    }
    unsigned words[KEPT][4] = {};
    if (UNIT == 16) {
#pragma unroll
        for (int turn = 0; turn < KEPT; ++turn) {
            const uint4 read = x[start / PER_VECTOR + (unit(turn) < units ? unit(turn) : 0)];
            words[turn][0] = read.x, words[turn][1] = read.y, words[turn][2] = read.z, words[turn][3] = read.w;
        }
    } else if (has) {
        const unsigned own = unit_at(held, place + (unit(0) < units ? unit(0) : 0));
#pragma unroll
        for (int turn = 0; turn < KEPT * 16 / UNIT; ++turn) {
            const int byte = turn * UNIT;
            const unsigned read =
                turn == 0 || turn >= HAS ? own : unit_at(held, place + (unit(turn) < units ? unit(turn) : 0));
            words[byte / 16][byte % 16 / 4] |= read << byte % 4 * 8;
        }
    }
    Extremes of;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
#pragma unroll
        for (int word = 0; word < 4; ++word) words[i][word] = without_inf(words[i][word], FORMAT);
        const Extremes own = extremes_of_vector(words[i], FORMAT);
        of = i ? extremes_of_both(of, own, FORMAT) : own;
    }
#pragma unroll
    for (int distance = 1; distance < SHARE; distance *= 2)
        of = extremes_of_both(of, extremes_of_lane(of, threadIdx.x % 32 ^ distance, FORMAT), FORMAT);
    if (has) keep_block(range, of, FORMAT);

    const float t = tensor_scale_at(beside, start);
    const auto first_of = [&](int turn) { return start + unit(turn) * PER_VECTOR; };
    bool second = false;
    if (FORMAT.four_over_six && UNIT == 16) {
        i64 loss = 0;
#pragma unroll
        for (int turn = 0; turn < KEPT; ++turn) {
            if (is_inside(turn)) loss += loss_of_vector(words[turn], of, t, beside, first_of(turn));
        }
        second = sum_of_lanes(loss, SHARE) < 0;
    }
    with_scale_of_block(of, FORMAT, t, beside.key, second, [&](auto quantized) {
#pragma unroll
        for (int i = 0; i < KEPT; ++i) {
            if (UNIT == 16) {
                const Place at = place_of_vector(beside, first_of(i));
                if (is_inside(i)) y[start / PER_VECTOR + unit(i)] = quantized(words[i], at);
                continue;
            }
            const uint4 written = quantized(words[i], {0, 0});
            const unsigned results[4] = {written.x, written.y, written.z, written.w};
#pragma unroll
            for (int byte = 0; byte < 16; byte += UNIT) {
                const int turn = (i * 16 + byte) / UNIT;
                if (turn < HAS && is_inside(turn))
                    write_unit(held, place + unit(turn), results[byte / 4] >> byte % 4 * 8);
            }
        }
    });
    if (UNIT == 16) return;
    __syncthreads();
    write_span(y, held, span);
}
#endif

#ifdef WITH_mx_small_tiles
// Calls a function with each distance between lanes of a tile.
template <int ACROSS, class Exchange>
FUNCTION void each_distance(Exchange exchange) {
#pragma unroll
    for (int distance = 1; distance < MX_LANES; distance *= 2) exchange(distance);
#pragma unroll
    for (int distance = ACROSS; distance < 32; distance *= 2) exchange(distance);
}

// Tiles of whole vectors, which `width` and `columns` count: MX_LANES to a row, a power of two. A warp has ACROSS vectors side
// by side, of which KEPT below another are a lane's: all of some tiles.
extern "C" __global__ void __launch_bounds__(256)
    mx_small_tiles(const uint4* x, uint4* y, TILING_ARGUMENTS, BESIDE_ARGUMENTS) {
    constexpr int ACROSS = MX_LANES > 8 ? MX_LANES : 8, DOWN = 32 / ACROSS;
    const Beside beside = BESIDE;
    const i64 down = divided(height + rows - 1, rows), across = (width + ACROSS - 1) / ACROSS;
    const i64 warp = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, above = divided(warp, across);
    const i64 matrix = divided(above, down), top = (above - matrix * down) * rows;
    if (matrix >= outer) return;  // whole warps leave together
    const int lane = threadIdx.x % 32, beneath = lane / ACROSS;
    const int end = int(rows < height - top ? rows : height - top);
    // Past the end of a row a lane reads what its tile begins with, or where that is past the end, too, the row's last vector.
    const i64 column = (warp - above * across) * ACROSS + lane % ACROSS, left = column - lane % MX_LANES;
    const bool inside = column < width;
    const i64 corner = (matrix * height + top) * width + (inside ? column : left < width ? left : width - 1);
    const auto at = [&](int i) { return beneath + i * DOWN; };
    const auto has = [&](int i) { return inside && at(i) < end; };
    const Range range = range_of(beside.ranges);
    unsigned words[KEPT][4];
    uint4 read[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) read[i] = x[corner + (at(i) < end ? at(i) : 0) * width];
    Extremes of;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        words[i][0] = without_inf(read[i].x, FORMAT), words[i][1] = without_inf(read[i].y, FORMAT);
        words[i][2] = without_inf(read[i].z, FORMAT), words[i][3] = without_inf(read[i].w, FORMAT);
        const Extremes own = extremes_of_vector(words[i], FORMAT);
        of = i ? extremes_of_both(of, own, FORMAT) : own;
    }
    each_distance<ACROSS>([&](int distance) {
        of = extremes_of_both(of, extremes_of_lane(of, lane ^ distance, FORMAT), FORMAT);
    });
    if (KEEPS && inside) keep_block(range, of, FORMAT);
    const float t = tensor_scale_at(beside, corner * PER_VECTOR);
    bool second = false;
    if (FORMAT.four_over_six) {
        i64 loss = 0;
#pragma unroll 1
        for (int i = 0; i < KEPT; ++i) {
            if (has(i)) loss += loss_of_vector(words[i], of, t, beside, (corner + at(i) * width) * PER_VECTOR);
        }
        each_distance<ACROSS>([&](int distance) { loss += __shfl_xor_sync(ALL, loss, distance); });
        second = loss < 0;
    }
    with_scale_of_block(of, FORMAT, t, beside.key, second, [&](auto quantized) {
#pragma unroll
        for (int i = 0; i < KEPT; ++i) {
            const i64 vector = corner + at(i) * width;
            if (has(i)) y[vector] = quantized(words[i], place_of_vector(beside, vector * PER_VECTOR));
        }
    });
}
#endif
