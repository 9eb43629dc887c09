// The kernels that quantize a tensor to one format. Compiled behind vectors.cu, whose macros they use.

// Blocks that cut a contiguous tensor evenly into runs of MX_LANES * PER_VECTOR elements: one thread for 16 bytes, the
// block's maximum by shuffles, nothing read twice. `vectors` counts the 16-byte pieces.
extern "C" __global__ void __launch_bounds__(256) mx_rows(const uint4* x, uint4* y, i64 vectors, BESIDE_ARGUMENTS) {
    const Beside beside = BESIDE;
    // After the pass for a per-tensor scale the end of x is what the L2 cache still holds: begin there.
    const unsigned thread_block = FORMAT.tensor_scale ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const i64 vector = i64(thread_block) * blockDim.x + threadIdx.x;
    const bool inside = vector < vectors;
    const i64 first = vector * PER_VECTOR;
    const uint4 read = inside ? x[vector] : uint4{0, 0, 0, 0};
    const float g = inside ? tensor_scale_at(beside, first) : 1.0f;
    const unsigned words[4] = {without_inf(read.x, FORMAT), without_inf(read.y, FORMAT), without_inf(read.z, FORMAT),
                               without_inf(read.w, FORMAT)};

    const Extremes of = extremes_of_row(extremes_of_vector(words, FORMAT), FORMAT);
    const bool second = FORMAT.four_over_six && second_is_better(words, of, g, beside, first);  // which all lanes find
    if (!inside) return;
    const Place place = place_of_vector(beside, first);
    y[vector] = quantized_vector(words, of, FORMAT, g, beside.key, place, second);
}

// A tensor as `outer` matrices of height x width, cut into tiles of `rows` x `columns`; those at the edges are smaller.
struct Tiling {
    i64 outer, height, width, rows, columns;
};
#define TILING_ARGUMENTS i64 outer, i64 height, i64 width, i64 rows, i64 columns
#define TILING {outer, height, width, rows, columns}

// Any block, LANES threads each: its elements are read twice, the second time mostly from the caches.
template <int LANES>
MX_FUNCTION void tiles(const void* x, void* y, Tiling tiling, Beside beside) {
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

// The largest of a thread block's values; right in its first warp.
MX_FUNCTION unsigned largest_of_thread_block(unsigned value) {
    __shared__ unsigned of_warp[32];
    value = largest_of_warp(value);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x >= 32) return value;
    value = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0;
    return largest_of_warp(value);
}

// The per-tensor scale g of each `group` elements of x, which `thread_blocks` of them read, together from the group's
// beginning to its end, so that its end is what the L2 cache holds afterwards. `work` holds for each group the largest
// magnitude so far and how many are done; both are zero before and, thanks to the last one, after.
extern "C" __global__ void __launch_bounds__(256)
    mx_tensor_scales(const void* x, float* scales, unsigned* work, i64 group, i64 thread_blocks) {
    const i64 index = i64(blockIdx.x) / thread_blocks;
    const i64 first = i64(blockIdx.x) % thread_blocks * blockDim.x + threadIdx.x, step = thread_blocks * blockDim.x;
    unsigned largest = 0;
    if (group % PER_VECTOR == 0) {
        const uint4* vectors = static_cast<const uint4*>(x) + index * (group / PER_VECTOR);
        unsigned word = 0;
#pragma unroll 4
        for (i64 i = first; i < group / PER_VECTOR; i += step) {
            const uint4 read = vectors[i];
            word = larger(word, larger(larger(magnitudes(read.x), magnitudes(read.y)),
                                       larger(magnitudes(read.z), magnitudes(read.w))));
        }
        largest = magnitude_bits(without_inf(word, FORMAT));
    } else {
        for (i64 i = first; i < group; i += step) {
            const unsigned magnitude = bits_of(read_at(x, index * group + i)) & ~SIGN;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    largest = largest_of_thread_block(largest);
    if (threadIdx.x) return;
    if (thread_blocks > 1) {
        atomicMax(&work[2 * index], largest);
        __threadfence();
        if (atomicAdd(&work[2 * index + 1], 1u) + 1 < thread_blocks) return;
        largest = atomicExch(&work[2 * index], 0u);
        work[2 * index + 1] = 0;
    }
    scales[index] = tensor_scale_of(from_bits(largest), FORMAT);
}
