// The butterfly (a, b) -> (a + b, a - b), of which products with Sylvester's matrices are made. Compiled behind bits.cu.

FUNCTION void butterfly(float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
}

// The butterfly of two lanes of a warp at a distance that is a power of two: returns the lower one its a, the other its b.
FUNCTION float butterfly_of_lanes(float value, int distance) {
    const float sign = threadIdx.x & distance ? -1.0f : 1.0f;
    return fmaf(sign, value, __shfl_xor_sync(ALL, value, distance));
}
