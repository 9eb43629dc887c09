// How float32 lies in memory, for a GPU's kernels: what is read is widened, what is written narrowed. Compiled behind bits.cu.
// STORAGE, a macro in front, is what the kernels write, or read where they write something else.

constexpr bool WIDE = STORAGE == FLOAT32;

template <int OF = STORAGE>
FUNCTION float widened(unsigned short code) {
    if (OF == BFLOAT16) return from_bits(unsigned(code) << 16);
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(code));
    return value;
#else
    return float(__builtin_bit_cast(_Float16, code));
#endif
}

// Rounded to nearest even; a NaN as the instruction in `packed` writes it.
FUNCTION unsigned short narrowed(float value) {
    if (STORAGE == BFLOAT16) {
        const unsigned bits = bits_of(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
#ifdef __CUDA_ARCH__
    unsigned short code;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(value));
    return code;
#else
    return __builtin_bit_cast(unsigned short, _Float16(value));
#endif
}

FUNCTION unsigned packed(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    if (STORAGE == BFLOAT16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return narrowed(low) | (unsigned(narrowed(high)) << 16);
#endif
}
