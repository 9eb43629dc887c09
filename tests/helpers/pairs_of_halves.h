// What a GPU does with the two 16-bit halves of a word.

static inline unsigned __vmaxu2(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffffu) > (b & 0xffffu) ? a : b, high = (a >> 16) > (b >> 16) ? a : b;
    return (low & 0xffffu) | (high & 0xffff0000u);
}
static inline unsigned __vminu2(unsigned a, unsigned b) { return a ^ b ^ __vmaxu2(a, b); }
