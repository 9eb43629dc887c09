// What a model takes several operations of PyTorch for, in one kernel each, with the bits of these operations: an RMS norm,
// SiLU(gate) up, and a rotary embedding. Where an operation writes a 16-bit number, the kernel rounds to one.
//
// Compiled at first use by NVRTC (elementwise_cuda.py) behind storage.cu, with these in front:
//   STORAGE  BFLOAT16 or FLOAT16
//   THREADS  of a thread block
//   HELD     vectors of a row that a thread of `rms_norm` keeps in registers; 0 where it reads them again
//
// Rows lie one behind the other, from 16-byte steps on, and are whole vectors.

constexpr int VECTOR = 8;  // elements in the 16 bytes that a thread reads at once
constexpr int ROW_THREADS = 16;  // that share a row of `rms_norm`

FUNCTION float element(const uint4& vector, int i) {
    const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
    return widened((unsigned short)(words[i / 2] >> (i % 2 ? 16 : 0)));
}

FUNCTION float rounded(float value) { return widened((unsigned short)(packed(value, 0.0f) & 0xffffu)); }

FUNCTION uint4 vector_of(const float (&values)[VECTOR]) {
    return uint4{packed(values[0], values[1]), packed(values[2], values[3]), packed(values[4], values[5]),
                 packed(values[6], values[7])};
}

FUNCTION void add_squares(float (&sums)[VECTOR], const uint4& vector) {
    UNROLL for (int i = 0; i < VECTOR; ++i) sums[i] += element(vector, i) * element(vector, i);
}

// The sum over a row in the order in which torch's `mean` adds up a row of float32 (Reduce.cuh), by the 32 lanes of a warp.
// A lane has four sums of its own, which it joins in turn. Below 128 elements these are over l, l + 32, l + 64 and l + 96;
// from 128 on it reads four neighbours at once, and sum k is over the elements 4 l + k + 128 j. Then lanes join with those
// 16, 8, 4, 2 and 1 further on. Here thread t comes with the sums over the elements 8 t + i + 128 j.
FUNCTION float total_of_row(const float (&sums)[VECTOR], bool neighbours) {
    float lanes[VECTOR];
    if (neighbours) {  // lanes 2 t and 2 t + 1
        UNROLL for (int lane = 0; lane < 2; ++lane)
            lanes[lane] = sums[4 * lane] + sums[4 * lane + 1] + sums[4 * lane + 2] + sums[4 * lane + 3];
        UNROLL for (int distance = 8; distance; distance /= 2)
            UNROLL for (int lane = 0; lane < 2; ++lane) lanes[lane] += __shfl_down_sync(ALL, lanes[lane], distance, ROW_THREADS);
        lanes[0] += lanes[1];
    } else {  // a part of lanes 8 t + i modulo 32
        UNROLL for (int i = 0; i < VECTOR; ++i) {
            lanes[i] = sums[i];
            UNROLL for (int k = 1; k < 4; ++k) lanes[i] += __shfl_down_sync(ALL, sums[i], 4 * k, ROW_THREADS);
        }
        UNROLL for (int distance = 2; distance; distance /= 2)
            UNROLL for (int i = 0; i < VECTOR; ++i) lanes[i] += __shfl_down_sync(ALL, lanes[i], distance, ROW_THREADS);
        UNROLL for (int distance = 4; distance; distance /= 2)
            UNROLL for (int i = 0; i < distance; ++i) lanes[i] += lanes[i + distance];
    }
    return __shfl_sync(ALL, lanes[0], 0, ROW_THREADS);
}

// weight rounded(x / sqrt(mean(x^2) + epsilon)). The mean is the sum times `factor`; both are also a kernel's answer, `means`,
// where that is not null. The bits of factor and epsilon are in the lower half.
extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm(const uint4* x, const uint4* weight, uint4* y, float* means, i64 rows, i64 channels, i64 factor, i64 epsilon) {
    const i64 asked = (i64(blockIdx.x) * THREADS + threadIdx.x) / ROW_THREADS;
    const i64 row = asked < rows ? asked : rows - 1;  // all threads of a warp exchange sums
    const int first = threadIdx.x % ROW_THREADS, vectors = int(channels) / VECTOR;
    const uint4* from = x + row * vectors;
    float sums[VECTOR] = {};
    uint4 held[HELD ? HELD : 1];
    if (HELD) {
        UNROLL for (int j = 0; j < HELD; ++j)
            if (first + j * ROW_THREADS < vectors) held[j] = from[first + j * ROW_THREADS];
        UNROLL for (int j = 0; j < HELD; ++j)
            if (first + j * ROW_THREADS < vectors) add_squares(sums, held[j]);
    } else {
        for (int at = first; at < vectors; at += ROW_THREADS) add_squares(sums, from[at]);
    }
    const float mean = total_of_row(sums, channels >= 128) * from_bits(unsigned(factor));
    const float inverse = rsqrtf(mean + from_bits(unsigned(epsilon)));
    if (asked >= rows) return;
    if (means && first == 0) means[row] = mean;
    const auto write = [&](int at, const uint4& vector) {
        const uint4 gains = weight[at];
        float values[VECTOR];
        UNROLL for (int i = 0; i < VECTOR; ++i) values[i] = element(gains, i) * rounded(element(vector, i) * inverse);
        y[row * vectors + at] = vector_of(values);
    };
    if (HELD) {
        UNROLL for (int j = 0; j < HELD; ++j)
            if (first + j * ROW_THREADS < vectors) write(first + j * ROW_THREADS, held[j]);
    } else {
        for (int at = first; at < vectors; at += ROW_THREADS) write(at, from[at]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
silu_times(const uint4* gate, const uint4* up, uint4* y, i64 vectors) {
    const i64 at = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= vectors) return;
    const uint4 gates = gate[at], ups = up[at];
    float values[VECTOR];
    UNROLL for (int i = 0; i < VECTOR; ++i) {
        const float x = element(gates, i);
        values[i] = rounded(x / (1.0f + expf(-x))) * element(ups, i);
    }
    y[at] = vector_of(values);
}

// x cos + (-x2, x1) sin, of x = (x1, x2) with tokens before heads in memory: (B, T, H, 2 x `half` vectors). Angles are
// (T, 2 half) for all of a batch, or (B, T, 2 half) where they are `of_each`. A thread takes a vector of each half.
extern "C" __global__ void __launch_bounds__(THREADS)
rotary(const uint4* x, const uint4* cosines, const uint4* sines, uint4* y, i64 vectors, i64 half, i64 heads, i64 tokens,
       i64 of_each) {
    const i64 number = i64(blockIdx.x) * THREADS + threadIdx.x;  // of the vector among those of all first halves
    if (number >= vectors) return;
    const unsigned head = unsigned(number) / unsigned(half), within = unsigned(number) % unsigned(half);
    const unsigned token = head / unsigned(heads);
    const i64 at = 2 * half * head + within, angle = 2 * half * (of_each ? token : token % unsigned(tokens)) + within;
    const uint4 x1 = x[at], x2 = x[at + half];
    const uint4 cos1 = cosines[angle], cos2 = cosines[angle + half], sin1 = sines[angle], sin2 = sines[angle + half];
    float y1[VECTOR], y2[VECTOR];
    UNROLL for (int i = 0; i < VECTOR; ++i) {
        y1[i] = rounded(element(x1, i) * element(cos1, i)) + rounded(-element(x2, i) * element(sin1, i));
        y2[i] = rounded(element(x2, i) * element(cos2, i)) + rounded(element(x1, i) * element(sin2, i));
    }
    y[at] = vector_of(y1);
    y[at + half] = vector_of(y2);
}
