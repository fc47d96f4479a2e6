/* Four-bit blocks on a CPU: the compiled twin of blocks_4bit.py, whose docstrings are the contract.

   A weight of n_rows x n_columns is cut along its rows into blocks; each block has one scale, each number a code of four bits.
   Threads share blocks, not rows: one long row is as fast as many short ones. What happens inside a block exists three times: plain C,
   AVX2 and AVX-512, each equal to the torch reference bit for bit. Hence -ffp-contract=off, no approximate reciprocals, and rounding to
   bfloat16 by integers (vcvtneps2bf16 would flush subnormal numbers).

   Numbers from codes: a block has one scale and sixteen levels, and so only sixteen results. They are multiplied and rounded once for
   the block; after that a code is an index into a vector register.
   Codes from numbers: how many of fifteen bounds lie below, by comparing with each, or by halving where a register can be indexed. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#endif

/* Raised with every change of a signature here or in another file of the library; native.py refuses a library of another version (an editable install not rebuilt). */
int tunesmith_version(void) { return 5; }

/* Sixteen levels in the order of their size, with the code of each; bounds[i] lies between level i and i + 1, the last is unused. */
typedef struct {
    float bounds[16];
    int32_t order[16];
} Grid;

/* n numbers of one row, from the start of a block on: a scale for every block_size of them. */
typedef void read_run(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out, int64_t n);

/* One block; returns the largest |x|. */
typedef float write_block(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n);

static inline int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* To nearest, ties to even. The NaN of a product is a quiet one: its upper half is NaN too. */
static inline uint16_t bfloat16_of(float x) {
    uint32_t bits = (uint32_t)bits_of(x);
    if (isnan(x)) return (uint16_t)(bits >> 16);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* What a block is divided by; NaN stays NaN. */
static inline float divisor_of(float absmax) { return absmax < 1e-38f ? 1e-38f : absmax; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* --- plain C ---------------------------------------------------------------------------------------------------------- */

static void read_float32(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out, int64_t n) {
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        float results[16], *to = out;
        for (int i = 0; i < 16; i++) results[i] = levels[i] * *scales;
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 2 <= end; i += 2) {
            to[i] = results[codes[i / 2] >> 4];
            to[i + 1] = results[codes[i / 2] & 15];
        }
        if (i < end) to[i] = results[codes[i / 2] >> 4];
    }
}

static void read_bfloat16(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out, int64_t n) {
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        uint16_t results[16], *to = out;
        for (int i = 0; i < 16; i++) results[i] = bfloat16_of(levels[i] * *scales);
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 2 <= end; i += 2) {
            to[i] = results[codes[i / 2] >> 4];
            to[i + 1] = results[codes[i / 2] & 15];
        }
        if (i < end) to[i] = results[codes[i / 2] >> 4];
    }
}

static inline float weight_at(const void *weight, int64_t i, int bfloat16) {
    return bfloat16 ? float_of((int32_t)((uint32_t)((const uint16_t *)weight)[i] << 16)) : ((const float *)weight)[i];
}

/* Largest |x| of weight[first...n), as an integer: the order is that of the numbers, and NaN is larger than infinity. */
static inline int32_t largest(const void *weight, int bfloat16, int64_t first, int64_t n, int32_t most) {
    for (int64_t i = first; i < n; i++) {
        int32_t size = bits_of(weight_at(weight, i, bfloat16)) & 0x7fffffff;
        most = size > most ? size : most;
    }
    return most;
}

/* The code of one number. Comparisons are "not at least", so that NaN passes every bound as it does in torch.bucketize. */
static inline int code_of(float x, const Grid *grid, float divisor, int ragged) {
    float scaled = ragged ? x / divisor : x * (1.0f / divisor);
    scaled = scaled > 1 ? 1 : scaled < -1 ? -1 : scaled;
    int below = 0;
    for (int i = 0; i < 15; i++) below += !(grid->bounds[i] >= scaled);
    return grid->order[below];
}

/* Codes of weight[first...n); `first` is even. The spare half of a last byte is the code of 0. */
static inline void write_rest(const void *weight, int bfloat16, int64_t first, int64_t n, const Grid *grid, float divisor, int ragged,
                              uint8_t *codes) {
    for (int64_t i = first; i < n; i += 2) {
        int one = code_of(weight_at(weight, i, bfloat16), grid, divisor, ragged);
        int two = code_of(i + 1 < n ? weight_at(weight, i + 1, bfloat16) : 0, grid, divisor, ragged);
        codes[i / 2] = (uint8_t)(one << 4 | two);
    }
}

static inline float write_plain(const void *weight, int bfloat16, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    float absmax = float_of(largest(weight, bfloat16, 0, n, 0));
    write_rest(weight, bfloat16, 0, n, grid, divisor_of(absmax), ragged, codes);
    return absmax;
}

static float write_float32(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_plain(weight, 0, grid, ragged, codes, n);
}

static float write_bfloat16(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_plain(weight, 1, grid, ragged, codes, n);
}

#ifdef X86

/* --- AVX2: whole vectors here, the rest of a block in plain C ----------------------------------------------------------- */

AVX2 static void read_float32_avx2(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out,
                                   int64_t n) {
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        __m256 lower = _mm256_mul_ps(_mm256_loadu_ps(levels), _mm256_set1_ps(*scales));
        __m256 upper = _mm256_mul_ps(_mm256_loadu_ps(levels + 8), _mm256_set1_ps(*scales));
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 8 <= end; i += 8) {
            int32_t four;
            memcpy(&four, codes + i / 2, 4);
            __m256i bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
            __m256i index = _mm256_or_si256(_mm256_srli_epi64(bytes, 4), _mm256_slli_epi64(bytes, 32)); /* the low four bits count */
            __m256 low = _mm256_permutevar8x32_ps(lower, index), high = _mm256_permutevar8x32_ps(upper, index);
            __m256 bit_3 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            _mm256_storeu_ps((float *)out + i, _mm256_blendv_ps(low, high, bit_3));
        }
        if (i < end) read_float32(codes + i / 2, levels, scales, block_size, (float *)out + i, end - i);
    }
}

/* Eight products rounded to bfloat16, each in the low half of 32 bits. */
AVX2 static inline __m256i bfloat16_of_8(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
    __m256i carry = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(top, _mm256_set1_epi32(1)));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, carry), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, top, nan);
}

AVX2 static void read_bfloat16_avx2(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out,
                                    int64_t n) {
    const int in_order = 0xd8; /* undoes the interleaving of halves by a pack */
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        __m256i lower = bfloat16_of_8(_mm256_mul_ps(_mm256_loadu_ps(levels), _mm256_set1_ps(*scales)));
        __m256i upper = bfloat16_of_8(_mm256_mul_ps(_mm256_loadu_ps(levels + 8), _mm256_set1_ps(*scales)));
        __m256i results = _mm256_permute4x64_epi64(_mm256_packus_epi32(lower, upper), in_order);
        /* pshufb looks up bytes: a table of low bytes and one of high bytes, joined afterwards */
        __m256i split = _mm256_packus_epi16(_mm256_and_si256(results, _mm256_set1_epi16(255)), _mm256_srli_epi16(results, 8));
        split = _mm256_permute4x64_epi64(split, in_order);
        __m256i low_table = _mm256_permute2x128_si256(split, split, 0x00), high_table = _mm256_permute2x128_si256(split, split, 0x11);
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 32 <= end; i += 32) {
            __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(codes + i / 2)));
            __m256i index = _mm256_or_si256(_mm256_srli_epi16(words, 4), _mm256_slli_epi16(words, 8));
            index = _mm256_and_si256(index, _mm256_set1_epi8(15));
            __m256i lows = _mm256_shuffle_epi8(low_table, index), highs = _mm256_shuffle_epi8(high_table, index);
            __m256i even = _mm256_unpacklo_epi8(lows, highs), odd = _mm256_unpackhi_epi8(lows, highs); /* of each half, eight */
            _mm256_storeu_si256((__m256i *)((uint16_t *)out + i), _mm256_permute2x128_si256(even, odd, 0x20));
            _mm256_storeu_si256((__m256i *)((uint16_t *)out + i + 16), _mm256_permute2x128_si256(even, odd, 0x31));
        }
        if (i < end) read_bfloat16(codes + i / 2, levels, scales, block_size, (uint16_t *)out + i, end - i);
    }
}

AVX2 static inline __m256 load_8(const void *weight, int64_t i, int bfloat16) {
    if (!bfloat16) return _mm256_loadu_ps((const float *)weight + i);
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)weight + i)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

AVX2 static inline float write_avx2(const void *weight, int bfloat16, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(load_8(weight, i, bfloat16)), no_sign));
    int32_t eight[8], largest_whole = 0;
    _mm256_storeu_si256((__m256i *)eight, most);
    for (int i = 0; i < 8; i++) largest_whole = eight[i] > largest_whole ? eight[i] : largest_whole;
    float absmax = float_of(largest(weight, bfloat16, whole, n, largest_whole)), divisor = divisor_of(absmax);

    const __m256i first_order = _mm256_loadu_si256((const __m256i *)grid->order);
    const __m256i second_order = _mm256_loadu_si256((const __m256i *)(grid->order + 8));
    const __m256i gather = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  /* low byte of each ... */
                                            0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1); /* ... of four numbers */
    for (int64_t i = 0; i < whole; i += 8) {
        __m256 x = load_8(weight, i, bfloat16);
        x = ragged ? _mm256_div_ps(x, _mm256_set1_ps(divisor)) : _mm256_mul_ps(x, _mm256_set1_ps(1.0f / divisor));
        x = _mm256_max_ps(_mm256_set1_ps(-1), _mm256_min_ps(_mm256_set1_ps(1), x)); /* the second operand is what NaN leaves */
        __m256i below = _mm256_setzero_si256();
        for (int bound = 0; bound < 15; bound++) {
            __m256 passed = _mm256_cmp_ps(_mm256_set1_ps(grid->bounds[bound]), x, _CMP_NGE_UQ);
            below = _mm256_sub_epi32(below, _mm256_castps_si256(passed));
        }
        __m256 low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(first_order, below));
        __m256 high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(second_order, below));
        __m256i code = _mm256_castps_si256(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(below, 28))));
        __m256i pairs = _mm256_or_si256(_mm256_slli_epi64(code, 4), _mm256_srli_epi64(code, 32));
        pairs = _mm256_shuffle_epi8(pairs, gather);
        uint16_t left = (uint16_t)_mm256_extract_epi16(pairs, 0), right = (uint16_t)_mm256_extract_epi16(pairs, 8);
        memcpy(codes + i / 2, &left, 2);
        memcpy(codes + i / 2 + 2, &right, 2);
    }
    write_rest(weight, bfloat16, whole, n, grid, divisor, ragged, codes);
    return absmax;
}

AVX2 static float write_float32_avx2(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_avx2(weight, 0, grid, ragged, codes, n);
}

AVX2 static float write_bfloat16_avx2(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_avx2(weight, 1, grid, ragged, codes, n);
}

/* --- AVX-512: masks serve the rest of a block --------------------------------------------------------------------------- */

/* The lowest `count` bits, all of them from 32 on. */
static inline uint32_t mask_of(int64_t count) { return count < 32 ? (1u << count) - 1 : ~0u; }

AVX512 static inline __m512i index_of_16(__m512i bytes) { /* bytes, zero-extended to 64 bits; the low four bits of an index count */
    return _mm512_or_si512(_mm512_srli_epi64(bytes, 4), _mm512_slli_epi64(bytes, 32));
}

AVX512 static void read_float32_avx512(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out,
                                       int64_t n) {
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        __m512 results = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(*scales));
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 16 <= end; i += 16) {
            __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(codes + i / 2)));
            _mm512_storeu_ps((float *)out + i, _mm512_permutexvar_ps(index_of_16(bytes), results));
        }
        if (i < end) {
            __m512i bytes = _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8((__mmask16)mask_of((end - i + 1) / 2), codes + i / 2));
            _mm512_mask_storeu_ps((float *)out + i, (__mmask16)mask_of(end - i), _mm512_permutexvar_ps(index_of_16(bytes), results));
        }
    }
}

AVX512 static inline __m512i index_of_32(__m512i bytes) { /* bytes, zero-extended to 32 bits; the low five bits of an index count */
    return _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
}

AVX512 static void read_bfloat16_avx512(const uint8_t *codes, const float *levels, const float *scales, int64_t block_size, void *out,
                                        int64_t n) {
    for (int64_t start = 0; start < n; start += block_size, scales++) {
        __m512 products = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(*scales));
        __m512i bits = _mm512_castps_si512(products), top = _mm512_srli_epi32(bits, 16);
        __m512i carry = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(top, _mm512_set1_epi32(1)));
        __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, carry), 16);
        __mmask16 nan = _mm512_cmp_ps_mask(products, products, _CMP_UNORD_Q);
        __m256i sixteen = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, top));
        __m512i results = _mm512_broadcast_i64x4(sixteen); /* twice, so that the fifth bit of an index does not matter */
        int64_t i = start, end = smaller(start + block_size, n);
        for (; i + 32 <= end; i += 32) {
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i / 2)));
            _mm512_storeu_si512((uint16_t *)out + i, _mm512_permutexvar_epi16(index_of_32(bytes), results));
        }
        if (i < end) {
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)mask_of((end - i + 1) / 2), codes + i / 2));
            _mm512_mask_storeu_epi16((uint16_t *)out + i, mask_of(end - i), _mm512_permutexvar_epi16(index_of_32(bytes), results));
        }
    }
}

AVX512 static inline __m512 load_16(const void *weight, int64_t i, int64_t n, int bfloat16) {
    __mmask16 numbers = (__mmask16)mask_of(n - i);
    if (!bfloat16) return _mm512_maskz_loadu_ps(numbers, (const float *)weight + i);
    __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(numbers, (const uint16_t *)weight + i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

AVX512 static inline float write_avx512(const void *weight, int bfloat16, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        __m512i size = _mm512_and_si512(_mm512_castps_si512(load_16(weight, i, n, bfloat16)), _mm512_set1_epi32(0x7fffffff));
        most = _mm512_max_epi32(most, size);
    }
    float absmax = float_of(_mm512_reduce_max_epi32(most)), divisor = divisor_of(absmax);

    const __m512 bounds = _mm512_loadu_ps(grid->bounds);
    const __m512i order = _mm512_loadu_si512(grid->order);
    for (int64_t i = 0; i < n; i += 16) {
        __m512 x = load_16(weight, i, n, bfloat16); /* zeros past the end */
        x = ragged ? _mm512_div_ps(x, _mm512_set1_ps(divisor)) : _mm512_mul_ps(x, _mm512_set1_ps(1.0f / divisor));
        x = _mm512_max_ps(_mm512_set1_ps(-1), _mm512_min_ps(_mm512_set1_ps(1), x)); /* the second operand is what NaN leaves */
        __m512i below = _mm512_setzero_si512(); /* bounds known to lie below x: found by halving */
        for (int step = 8; step; step /= 2) {
            __m512 bound = _mm512_permutexvar_ps(_mm512_add_epi32(below, _mm512_set1_epi32(step - 1)), bounds);
            __mmask16 passed = _mm512_cmp_ps_mask(bound, x, _CMP_NGE_UQ);
            below = _mm512_mask_add_epi32(below, passed, below, _mm512_set1_epi32(step));
        }
        __m512i code = _mm512_permutexvar_epi32(below, order);
        __m512i pairs = _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
        _mm512_mask_cvtepi64_storeu_epi8(codes + i / 2, (__mmask8)mask_of((n - i + 1) / 2), pairs);
    }
    return absmax;
}

AVX512 static float write_float32_avx512(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_avx512(weight, 0, grid, ragged, codes, n);
}

AVX512 static float write_bfloat16_avx512(const void *weight, const Grid *grid, int ragged, uint8_t *codes, int64_t n) {
    return write_avx512(weight, 1, grid, ragged, codes, n);
}

#endif

/* --- what Python calls -------------------------------------------------------------------------------------------------- */

typedef struct {
    read_run *read[2]; /* float32, bfloat16 */
    write_block *write[2];
} Path;

static const Path paths[] = {
    {{read_float32, read_bfloat16}, {write_float32, write_bfloat16}},
#ifdef X86
    {{read_float32_avx2, read_bfloat16_avx2}, {write_float32_avx2, write_bfloat16_avx2}},
    {{read_float32_avx512, read_bfloat16_avx512}, {write_float32_avx512, write_bfloat16_avx512}},
#endif
};

/* The best path of this processor: 0 plain, 1 AVX2, 2 AVX-512. */
int tunesmith_best_path(void) {
#ifdef X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

#define GROUP 256 /* scales that share a second-level scale */

/* The part of blocks 0...n_blocks that this thread takes: equal parts, whatever the shape. */
#define FIRST_OF_THREAD(n_blocks) ((n_blocks) * omp_get_thread_num() / omp_get_num_threads())
#define LAST_OF_THREAD(n_blocks) ((n_blocks) * (omp_get_thread_num() + 1) / omp_get_num_threads())

/* scales: one per block; or NULL, and then scale i is table[scale_codes[i]] * groups[i / 256] + offset. */
void tunesmith_dequantize_4bit(int path, int n_threads, int64_t n_rows, int64_t n_columns, int64_t block_size, const uint8_t *codes,
                               const float *levels, const float *scales, const uint8_t *scale_codes, const float *table,
                               const float *groups, float offset, int bfloat16, void *out) {
    read_run *read = paths[path].read[bfloat16];
    int64_t row_bytes = (n_columns + 1) / 2, row_blocks = (n_columns + block_size - 1) / block_size, n_blocks = n_rows * row_blocks;
#pragma omp parallel num_threads(n_threads)
    {
        float group_scales[GROUP];
        int64_t last = LAST_OF_THREAD(n_blocks), next;
        for (int64_t block = FIRST_OF_THREAD(n_blocks); block < last; block = next) { /* runs end with a row, a group or the part */
            int64_t row = block / row_blocks, column = block % row_blocks * block_size;
            next = smaller(last, (row + 1) * row_blocks);
            const float *run_scales = group_scales;
            if (scales) {
                run_scales = scales + block;
            } else {
                next = smaller(next, (block / GROUP + 1) * GROUP);
                for (int64_t i = block; i < next; i++) group_scales[i - block] = table[scale_codes[i]] * groups[block / GROUP] + offset;
            }
            int64_t end = smaller(n_columns, column + (next - block) * block_size);
            read(codes + row * row_bytes + column / 2, levels, run_scales, block_size,
                 (uint8_t *)out + (row * n_columns + column) * (bfloat16 ? 2 : 4), end - column);
        }
    }
}

/* bounds: fifteen, ascending; order: the code of each level, in the order of their size. */
void tunesmith_quantize_4bit(int path, int n_threads, int64_t n_rows, int64_t n_columns, int64_t block_size, const void *weight,
                             int bfloat16, const float *bounds, const uint8_t *order, uint8_t *codes, float *absmax) {
    write_block *write = paths[path].write[bfloat16];
    int64_t row_bytes = (n_columns + 1) / 2, row_blocks = (n_columns + block_size - 1) / block_size, n_blocks = n_rows * row_blocks;
    Grid grid = {.bounds = {0}};
    memcpy(grid.bounds, bounds, 15 * sizeof(float));
    for (int i = 0; i < 16; i++) grid.order[i] = order[i];
#pragma omp parallel num_threads(n_threads)
    {
        int64_t last = LAST_OF_THREAD(n_blocks);
        for (int64_t block = FIRST_OF_THREAD(n_blocks); block < last; block++) {
            int64_t row = block / row_blocks, column = block % row_blocks * block_size, n = smaller(block_size, n_columns - column);
            absmax[block] = write((const uint8_t *)weight + (row * n_columns + column) * (bfloat16 ? 2 : 4), &grid, n < block_size,
                                  codes + row * row_bytes + column / 2, n);
        }
    }
}
