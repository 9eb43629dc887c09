// softmax.cu on the host: threads take turns, and join what they have as a thread block's do.

#include SOFTMAX_SOURCE

static Share joined_in_tree(Share* shares, int count) {
    for (int distance = count / 2; distance; distance /= 2)
        for (int i = 0; i < distance; ++i) shares[i] = joined(shares[i], shares[i + distance]);
    return shares[0];
}

extern "C" void softmax_rows_on_host(i64 rows, const char* logits, i64 stride, i64 entries, float* largest, i64* tokens,
                                     float* normalizers) {
    for (i64 row = 0; row < rows; ++row) {
        Share warps[THREADS / 32];
        for (int warp = 0; warp < THREADS / 32; ++warp) {
            Share shares[32];
            for (int lane = 0; lane < 32; ++lane)
                shares[lane] = share_of_thread(logits + row * stride, int(entries), warp * 32 + lane);
            warps[warp] = joined_in_tree(shares, 32);
        }
        const Share share = joined_in_tree(warps, THREADS / 32);
        largest[row] = share.largest;
        tokens[row] = share.token;
        normalizers[row] = LOGARITHM(float(share.sum));
    }
}
