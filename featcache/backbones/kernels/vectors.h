/* Vectors of float as wide as the processor has them, in the extension that GCC and Clang share.

   A map's pixels are float, or with -DBF16 bfloat16 (half the memory to move): read as float, and rounded when
   they are written. Products then take pairs of bfloat16 and add in float. */
#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>

/* WIDE: floats of a vector; COLUMNS: vectors of a block of products (see product.h), which with ROWS rows
   of it fill the registers. */
#if defined(__AVX512F__)
enum { WIDE = 16, COLUMNS = 4, ROWS = 6 };
#elif defined(__AVX__)
enum { WIDE = 8, COLUMNS = 2, ROWS = 6 };
#elif defined(__aarch64__)
enum { WIDE = 4, COLUMNS = 4, ROWS = 6 };
#else
enum { WIDE = 4, COLUMNS = 2, ROWS = 6 };
#endif
enum { PANEL = WIDE * COLUMNS };

#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(WIDE * 4)));
typedef int32_t mask __attribute__((vector_size(WIDE * 4)));
typedef float anywhere __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));

INLINE vec load_float(const float *at) { return *(const anywhere *)at; }
INLINE void store_float(float *at, vec values) { *(anywhere *)at = values; }

INLINE vec chosen(mask which, vec yes, vec no) { return (vec)((which & (mask)yes) | (~which & (mask)no)); }
/* Not-a-number stays one, for who stores features to find it. */
INLINE vec cut_off(vec values) { return (vec)(~(values <= (vec){0}) & (mask)values); }
INLINE vec larger(vec a, vec b) { return chosen((a < b) | (b != b), b, a); }

#ifdef BF16
#ifndef __AVX512BF16__
#error "no instructions for bfloat16"
#endif
#include <immintrin.h>
typedef uint16_t pixel;
enum { TOGETHER = 2 }; /* neighbours that one step of a product takes */
typedef __m512bh operand;
INLINE vec load(const pixel *at) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16);
}
INLINE void store(pixel *at, vec values) {
    _mm256_storeu_si256((__m256i *)at, (__m256i)_mm512_cvtneps_pbh((__m512)values));
}
INLINE operand spread(const pixel *at) {
    int32_t pair;
    __builtin_memcpy(&pair, at, sizeof pair);
    return (operand)_mm512_set1_epi32(pair);
}
INLINE operand take(const pixel *at) { return (operand)_mm512_loadu_si512(at); }
INLINE vec add_product(vec sum, operand a, operand b) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef float pixel;
enum { TOGETHER = 1 };
typedef vec operand;
INLINE vec load(const pixel *at) { return load_float(at); }
INLINE void store(pixel *at, vec values) { store_float(at, values); }
INLINE operand spread(const pixel *at) { return *at - (vec){0}; }
INLINE operand take(const pixel *at) { return load_float(at); }
INLINE vec add_product(vec sum, operand a, operand b) { return sum + a * b; }
#endif

#endif
