// What all other files begin with: how functions are declared, words of 64 bits, the bits of a float32, and what tensors are
// stored as.
#ifdef __CUDACC__
#define FUNCTION __device__ __forceinline__
#else
#define FUNCTION static inline
#endif
#define UNROLL _Pragma("unroll")

typedef unsigned long long u64;
typedef long long i64;
constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

enum Storage { FLOAT32, BFLOAT16, FLOAT16 };

FUNCTION unsigned bits_of(float value) { return __builtin_bit_cast(unsigned, value); }
FUNCTION float from_bits(unsigned bits) { return __builtin_bit_cast(float, bits); }
