// GPTQ's rounding of a group of columns (gptq.py, `_round_group`). Compiled behind mx.cu and vectors.cu, whose arithmetic
// and macros it uses.
//
// A thread takes one row of the weight and goes through its columns; rows do not depend on each other. Matrices are
// transposed, [column][row], so that neighbouring threads read neighbouring numbers.

constexpr int MOST_COLUMNS = 128;

// For columns j = 0, 1, ...: q_j = round(values_j - sum over i < j of ratios_ji change_i), change_j = q_j - before_j.
// `rows` apart are the columns of all but `ratios`, whose rows are `stride` apart. bys, reads: what elements are divided by,
// or multiplied by, and read back with. midpoints: null for symmetric formats.
extern "C" __global__ void __launch_bounds__(64)
gptq_columns(const float* values, const float* before, const float* ratios, i64 stride, const float* bys,
             const float* reads, const float* midpoints, float* q, float* changes, i64 rows, i64 columns) {
    const i64 row = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float change[MOST_COLUMNS];
    for (int j = 0; j < int(columns); ++j) {
        float moved = 0.0f;
        for (int i = 0; i < j; ++i) moved = fmaf(ratios[j * stride + i], change[i], moved);
        const i64 at = j * rows + row;
        const float by = bys[at];
        // Only a power of two is multiplied by its reciprocal, and that is exact.
        const BlockScale block = {by, reads[at], 1.0f / by, midpoints ? midpoints[at] : 0.0f, false};
        const float chosen = quantized(values[at] - moved, block, FORMAT, 0.0f);
        change[j] = chosen - before[at];
        q[at] = chosen;
        changes[at] = change[j];
    }
}
