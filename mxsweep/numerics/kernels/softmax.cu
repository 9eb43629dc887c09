// What a softmax over each row of logits needs: its largest logit, the token of that, and log(sum(exp(logit - largest))).
// One reading of global memory.
//
// Compiled at first use by NVRTC (softmax_cuda.py) behind storage.cu, with these in front:
//   STORAGE  FLOAT32, BFLOAT16 or FLOAT16
//   THREADS  of a thread block, which takes a row
//
// A thread goes through every THREADS-th 16 bytes of its row. It keeps a sum of exponentials relative to the largest
// logit that it has come across, which is multiplied anew where that grows; then threads join what they have, always in
// the same order, so that a row's answer depends on the row alone.

constexpr int BYTES = WIDE ? 4 : 2;         // of a logit
constexpr int VECTOR_BYTES = 16;            // read at once
constexpr int VECTOR = VECTOR_BYTES / BYTES;  // logits in these
constexpr int NO_TOKEN = 0x7fffffff;

FUNCTION float logit_at(const char* row, i64 i) {
    if (WIDE) return reinterpret_cast<const float*>(row)[i];
    return widened(reinterpret_cast<const unsigned short*>(row)[i]);
}

// Some logits of a row: the largest, the first token that has it, and the sum of exponentials relative to it. NaN is no
// largest logit, but makes the sum NaN.
struct Share {
    float largest;
    int token;
    double sum;
};

constexpr unsigned MINUS_INFINITY = 0xff800000u;

// What exponentials are relative to: the largest logit, but 0 if that is -Inf, whose difference from itself is NaN.
FUNCTION float origin(float largest) { return largest == from_bits(MINUS_INFINITY) ? 0.0f : largest; }

FUNCTION Share nothing() { return {from_bits(MINUS_INFINITY), NO_TOKEN, 0.0}; }

FUNCTION Share joined(Share a, Share b) {
    const bool b_first = b.largest > a.largest || (b.largest == a.largest && b.token < a.token);
    const float largest = b_first ? b.largest : a.largest, at = origin(largest);
    const double sum = a.sum * expf(a.largest - at) + b.sum * expf(b.largest - at);
    return {largest, b_first ? b.token : a.token, sum};
}

// Adds N logits with neighbouring tokens.
template <int N>
FUNCTION void add(Share& share, const float (&logits)[N], int token) {
    float largest = logits[0];
    int first = 0;
    UNROLL for (int i = 1; i < N; ++i)
        if (logits[i] > largest || largest != largest) largest = logits[i], first = i;
    if (largest > share.largest || share.token == NO_TOKEN) {
        // Where there is no token yet, the sum is 0; of NaN alone the largest stays -Inf.
        const float grown = largest > share.largest ? largest : share.largest;
        share.sum *= expf(share.largest - origin(grown));
        share.largest = grown;
        share.token = token + first;
    }
    float terms[N];
    const float at = origin(share.largest);
    UNROLL for (int i = 0; i < N; ++i) terms[i] = expf(logits[i] - at);
    // In pairs, and one sum a vector in float64, which few GPUs add quickly: the error does not grow with the row.
    UNROLL for (int apart = N / 2; apart; apart /= 2)
        UNROLL for (int i = 0; i < apart; ++i) terms[i] += terms[i + apart];
    share.sum += terms[0];
}

// What a thread finds among the `entries` logits of a row: of those that lie before and behind whole vectors one.
FUNCTION Share share_of_thread(const char* row, int entries, int thread) {
    Share share = nothing();
    const int unaligned = int(u64(row) % VECTOR_BYTES);
    const int before = unaligned ? (VECTOR_BYTES - unaligned) / BYTES : 0;
    const int lead = before < entries ? before : entries;
    const int vectors = (entries - lead) / VECTOR, rest = lead + vectors * VECTOR;
    if (thread < lead) {
        const float logit[1] = {logit_at(row, thread)};
        add(share, logit, thread);
    }
    const uint4* aligned = reinterpret_cast<const uint4*>(row + i64(lead) * BYTES);
#pragma unroll 4
    for (int vector = thread; vector < vectors; vector += THREADS) {
        const uint4 read = aligned[vector];
        const unsigned words[4] = {read.x, read.y, read.z, read.w};
        float logits[VECTOR];
        UNROLL for (int i = 0; i < VECTOR; ++i) {
            const unsigned word = words[WIDE ? i : i / 2];
            if (WIDE)
                logits[i] = from_bits(word);
            else if (STORAGE == BFLOAT16)
                logits[i] = from_bits(i % 2 ? word & 0xffff0000u : word << 16);
            else
                logits[i] = widened((unsigned short)(i % 2 ? word >> 16 : word));
        }
        add(share, logits, lead + vector * VECTOR);
    }
    if (rest + thread < entries) {
        const float logit[1] = {logit_at(row, rest + thread)};
        add(share, logit, rest + thread);
    }
    return share;
}

constexpr int WARP = 32, WARPS = THREADS / WARP;

FUNCTION Share joined_in_warp(Share share, int lanes) {
    UNROLL for (int distance = lanes / 2; distance; distance /= 2) {
        const Share other = {__shfl_xor_sync(ALL, share.largest, distance), __shfl_xor_sync(ALL, share.token, distance),
                             __shfl_xor_sync(ALL, share.sum, distance)};
        share = joined(share, other);
    }
    return share;
}

// Rows begin `stride` bytes apart; largest, tokens and normalizers have one number a row.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_rows(const char* logits, i64 stride, i64 entries, float* largest, i64* tokens, float* normalizers) {
    __shared__ Share shares[WARPS];
    const i64 row = blockIdx.x;
    const int thread = threadIdx.x;
    Share share = joined_in_warp(share_of_thread(logits + row * stride, int(entries), thread), WARP);
    if (thread % WARP == 0) shares[thread / WARP] = share;
    __syncthreads();
    if (thread >= WARP) return;
    share = joined_in_warp(shares[thread % WARPS], WARPS);
    if (thread) return;
    largest[row] = share.largest;
    tokens[row] = share.token;
    normalizers[row] = logf(float(share.sum));
}
