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
    const Range range = range_of(beside.ranges);
    const uint4 read = inside ? x[vector] : uint4{0, 0, 0, 0};
    const float g = inside ? tensor_scale_at(beside, first) : 1.0f;
    const unsigned words[4] = {without_inf(read.x, FORMAT), without_inf(read.y, FORMAT), without_inf(read.z, FORMAT),
                               without_inf(read.w, FORMAT)};

    const Extremes of = extremes_of_row(extremes_of_vector(words, FORMAT), FORMAT);
    bool second = false;
    if (FORMAT.four_over_six) second = sum_of_lanes(loss_of_vector(words, of, g, beside, first), MX_LANES) < 0;
    if (!inside) return;
    const Place place = place_of_vector(beside, first);
    y[vector] = quantized_vector(words, of, FORMAT, g, beside.key, place, second);
    keep_block(range, of, FORMAT);
}

// The largest of a thread block's values; right in its first warp.
FUNCTION unsigned largest_of_thread_block(unsigned value) {
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
