/* The matrix unit of x86 processors (AMX) and what is done around it in vectors: shared by the kernels that need it, which are empty without.

   A tile is 16 rows of 64 bytes. MULTIPLY adds A B to `sum`: A as 16 rows of 32 bfloat16 numbers, B as 16 rows of 16 pairs, a pair being two
   numbers that lie below each other in B; `sum` is 16 x 16 float32. */

#ifndef TUNESMITH_AMX_H
#define TUNESMITH_AMX_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && (__GNUC__ >= 11 || defined(__clang__))
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INTO_CALLER static inline __attribute__((always_inline)) AMX

typedef uint16_t bf16;

/* As assembly, since gcc's own intrinsics do not say that a tile is loaded from memory, and stores may be moved behind them. */
#define LOAD(tile, from, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, to, stride) __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define MULTIPLY(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)

INTO_CALLER void configure(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(c)); /* gcc's intrinsic says that 8 of the 64 bytes are read */
}

/* exp(x) for x <= 0 to a unit in the last place or two; far below: 0. */
INTO_CALLER __m512 exp_ps(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-06f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

INTO_CALLER __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
INTO_CALLER __m512 to_float(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* 16 x 16 dwords: row i of `to` is column i of `from`. */
INTO_CALLER void transpose16(const uint32_t *from, int64_t from_stride, uint32_t *to, int64_t to_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* a[i + 4 j]: columns i, i + 4, ... of rows 4 j to 4 j + 3 */
        __m512i low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), high = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88), high2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
        b[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        b[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        b[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, b[i]);
}

/* Of 16 lanes those that n numbers fill. */
INTO_CALLER __mmask16 upto(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 32 rows (of which `left` are there) of 16 columns (n) as 16 rows of pairs: a right operand whose sum runs over the rows. */
INTO_CALLER void interleave(const bf16 *from, int64_t stride, int64_t n, int64_t left, uint32_t *to) {
    const __mmask16 columns = upto(n);
    for (int64_t p = 0; p < 16; p++, from += 2 * stride) {
        __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(2 * p < left ? columns : 0, from));
        __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(2 * p + 1 < left ? columns : 0, from + stride));
        _mm512_storeu_si512(to + p * 16, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
}

/* Of a thread, before and after its products: OpenMP's own functions are not compiled for AMX, and may call these. */
AMX __attribute__((unused)) static void set_up(void) { configure(); }
AMX __attribute__((unused)) static void tear_down(void) { __asm__ volatile("tilerelease"); }

INTO_CALLER int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Bytes from one piece of scratch to the next lie on cache lines. */
INTO_CALLER void *take(char **at, int64_t bytes) {
    void *here = *at;
    *at += up(bytes, 64) + 64; /* and not all at the same place of a cache set */
    return here;
}

#endif
#endif
