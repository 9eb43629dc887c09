// The kernel that finds what the per-tensor scales of mx_both are made from. Compiled behind both.cu.

// What per-tensor scales are made from: of each row its scale, and of each strip of MX_COLUMN_BLOCK rows the largest
// magnitude, rotated. A thread block for a strip.
extern "C" __global__ void __launch_bounds__(256)
    mx_maxima(const uint4* x, float* row_scales, unsigned* strip_maxima, i64 width, u64 negative) {
    __shared__ unsigned of_rows[8][MX_COLUMN_BLOCK], of_strip[8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint4* strip = x + (i64(blockIdx.x) * MX_COLUMN_BLOCK + lane / MX_ACROSS) * width;
    unsigned rows[HELD] = {}, largest = 0;
#pragma unroll 1
    for (i64 left = warp * MX_ACROSS; left < width; left += warps * MX_ACROSS) {
        const i64 column = left + lane % MX_ACROSS;
        unsigned words[HELD][4];
        read_tile(words, strip + (column < width ? column : width - 1), DOWN * width);
        if (FORMAT.tensor_scale) {
#pragma unroll
            for (int held = 0; held < HELD; ++held) rows[held] = larger(rows[held], largest_magnitudes(words[held]));
        }
        if (!COLUMN_FORMAT.tensor_scale) continue;
        if (ORDER > 1) rotate_columns(words, negative);
#pragma unroll
        for (int held = 0; held < HELD; ++held) largest = larger(largest, largest_magnitudes(words[held]));
    }
#pragma unroll
    for (int held = 0; held < HELD; ++held) {
#pragma unroll
        for (int distance = 1; distance < MX_ACROSS; distance *= 2)
            rows[held] = larger(rows[held], __shfl_xor_sync(ALL, rows[held], distance));
        if (lane % MX_ACROSS == 0) of_rows[warp][held * DOWN + lane / MX_ACROSS] = magnitude_bits(rows[held]);
    }
    largest = largest_of_warp(magnitude_bits(largest));
    if (lane == 0) of_strip[warp] = largest;
    __syncthreads();
    for (int row = threadIdx.x; row < MX_COLUMN_BLOCK; row += blockDim.x) {
        unsigned of_row = 0;
        for (int i = 0; i < warps; ++i) of_row = of_rows[i][row] > of_row ? of_rows[i][row] : of_row;
        if (FORMAT.tensor_scale)
            row_scales[i64(blockIdx.x) * MX_COLUMN_BLOCK + row] = tensor_scale_of(from_bits(of_row), FORMAT);
    }
    if (threadIdx.x || !COLUMN_FORMAT.tensor_scale) return;
    for (int i = 0; i < warps; ++i) largest = of_strip[i] > largest ? of_strip[i] : largest;
    strip_maxima[blockIdx.x] = largest;
}
