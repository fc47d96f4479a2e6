/* What a trunk does between its matrix products, a row at a time: the compiled twin of rows.py, whose docstrings are the contract.

   Numbers are bfloat16 in memory and float32 in registers, rounded once at the end of each operation. Vectors are the compiler's own
   (16 numbers wide on every processor), so one text serves all: this file reads itself once for each kind of processor. Where a compiler makes
   too much of the vectors (gcc 12: three instructions for one), the few operations below are written for the processor. */

#ifndef KIND

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#endif
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed between functions that are one function when compiled */

#define LANES 16
typedef uint16_t bf16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

typedef struct {
    int64_t width;
    float epsilon, offset; /* the weight counts as offset + weight (Gemma: 1) */
} Norm;

#define SILU 0
#define GELU_TANH 1

#define JOINED(name, kind) name##_##kind
#define NAMED(name, kind) JOINED(name, kind)

#define KIND plain
#define TARGET
#define AVX512 0
#define BF16 0
#include "rows.c"
#ifdef X86
#undef KIND
#undef TARGET
#define KIND avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "rows.c"
#undef KIND
#undef TARGET
#undef AVX512
#define KIND avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define AVX512 1
#include "rows.c"
#undef KIND
#undef TARGET
#undef BF16
#define KIND avx512bf16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define BF16 1
#include "rows.c"
#define CHOICES(NAME) {NAME##_plain, NAME##_avx2, NAME##_avx512, NAME##_avx512bf16}
#else
#define CHOICES(NAME) {NAME##_plain}
#endif

/* The row of CHOICES for a path of native.py: AVX-512 is two of them, as not every processor that has it can round to bfloat16. */
static int choice(int path) {
#ifdef X86
    return path == 2 && __builtin_cpu_supports("avx512bf16") ? 3 : path;
#else
    return path;
#endif
}

static float (*const norms[])(const Norm *, int, const void *, const bf16 *, void *, const void *, int, bf16 *) = CHOICES(norm);
static void (*const norms_back[])(const Norm *, int, const bf16 *, const void *, float, const void *, int, const void *, void *, float *) = CHOICES(norm_back);
static void (*const rotations[])(bf16 *, int64_t, int64_t, const void *, const void *, int, int64_t, float) = CHOICES(rotate);
static void (*const gates[])(int, const bf16 *, const bf16 *, bf16 *, int64_t) = CHOICES(gate);
static void (*const gates_back[])(int, bf16 *, const bf16 *, const bf16 *, bf16 *, bf16 *, int64_t) = CHOICES(gate_back);
static void (*const dropouts[])(const bf16 *, const bf16 *, bf16 *, int64_t, uint32_t, uint32_t, float) = CHOICES(dropout);
static float (*const entropies[])(bf16 *, int64_t, int64_t, int, float *) = CHOICES(entropy);

/* Where row `i` begins, of numbers of 4 bytes or 2. */
static const void *row(const void *x, int64_t i, int64_t width, int wide) { return (const char *)x + i * width * (wide ? 4 : 2); }

/* wide: x, sum and weight are float32; wide_weight: weight is. */
void tunesmith_rmsnorm(int path, int threads, int64_t n, int64_t width, float epsilon, float offset, int wide, int wide_weight, const void *x,
                       const bf16 *added, void *sum, const void *weight, bf16 *y, float *inverse) {
    const int way = choice(path);
    const Norm norm = {width, epsilon, offset};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        inverse[i] = norms[way](&norm, wide, row(x, i, width, wide), added ? added + i * width : 0, sum ? (void *)row(sum, i, width, wide) : 0, weight,
                                 wide_weight, y + i * width);
}

/* d_weight: float32 [threads, width] of zeros, or null. wide: x, weight, added and dx are float32; wide_weight: weight is. */
void tunesmith_rmsnorm_back(int path, int threads, int64_t n, int64_t width, float offset, int wide, int wide_weight, const bf16 *dy, const void *x,
                            const float *inverse, const void *weight, const void *added, void *dx, float *d_weight) {
    const int way = choice(path);
    const Norm norm = {width, 0, offset};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        norms_back[way](&norm, wide, dy + i * width, row(x, i, width, wide), inverse[i], weight, wide_weight, added ? row(added, i, width, wide) : 0,
                         (void *)row(dx, i, width, wide), d_weight ? d_weight + omp_get_thread_num() * width : 0);
}

/* x: [n, heads, width] with `stride` from a token to the next; cos and sin [n, turned], of float32 where `wide`. */
void tunesmith_rotary(int path, int threads, int64_t n, int64_t heads, int64_t width, int64_t turned, int64_t stride, bf16 *x, const void *cos,
                      const void *sin, int wide, float direction) {
    const int way = choice(path);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        rotations[way](x + i * stride, heads, width, row(cos, i, turned, wide), row(sin, i, turned, wide), wide, turned, direction);
}

void tunesmith_gate(int path, int threads, int kind, int64_t n, int64_t width, int64_t stride, const bf16 *gate, const bf16 *up, bf16 *y) {
    const int way = choice(path);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) gates[way](kind, gate + i * stride, up + i * stride, y + i * width, width);
}

void tunesmith_gate_back(int path, int threads, int kind, int64_t n, int64_t width, int64_t stride, bf16 *dy, const bf16 *gate, const bf16 *up,
                         bf16 *d_gate, bf16 *d_up) {
    const int way = choice(path);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        gates_back[way](kind, dy + i * width, gate + i * stride, up + i * stride, d_gate + i * width, d_up + i * width, width);
}

/* nll: float64 [n]; returns 0, or 1 if there was no memory. */
int tunesmith_cross_entropy(int path, int threads, int64_t n, int64_t n_words, bf16 *logits, const int64_t *target, int gradient, double *nll) {
    const int way = choice(path);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = malloc((n_words + LANES) * sizeof(float));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++)
            if (scratch) nll[i] = entropies[way](logits + i * n_words, n_words, target[i], gradient, scratch);
        free(scratch);
    }
    return failed;
}

/* y = x times noise, plus `added` (or null). A number is 0 where its hash is below `threshold`, otherwise it is multiplied by `scale`. */
void tunesmith_dropout(int path, int threads, int64_t n, int64_t width, uint64_t seed, uint32_t threshold, float scale, const bf16 *x,
                       const bf16 *added, bf16 *y) {
    const int way = choice(path);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = seed + (uint64_t)(i + 1) * 0x9e3779b97f4a7c15; /* splitmix64 */
        key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9;
        key = (key ^ key >> 27) * 0x94d049bb133111eb;
        dropouts[way](x + i * width, added ? added + i * width : 0, y + i * width, width, (uint32_t)(key ^ key >> 31), threshold, scale);
    }
}

#else /* ifdef KIND: what is compiled for each kind of processor */

#define INTO_CALLER static inline __attribute__((always_inline)) TARGET
#define load NAMED(load, KIND)
#define store NAMED(store, KIND)
#define load_floats NAMED(load_floats, KIND)
#define store_floats NAMED(store_floats, KIND)
#define take NAMED(take, KIND)
#define put NAMED(put, KIND)
#define first NAMED(first, KIND)
#define sum_of NAMED(sum_of, KIND)
#define times_plus NAMED(times_plus, KIND)
#define bounded NAMED(bounded, KIND)
#define exp_of NAMED(exp_of, KIND)
#define sigmoid NAMED(sigmoid, KIND)
#define norm_row NAMED(norm_row, KIND)
#define norm_row_back NAMED(norm_row_back, KIND)
#define rotate_head NAMED(rotate_head, KIND)
#define activation NAMED(activation, KIND)
#define gate_row NAMED(gate_row, KIND)
#define gate_row_back NAMED(gate_row_back, KIND)
#define dropout_row NAMED(dropout_row, KIND)
#define entropy_row NAMED(entropy_row, KIND)

/* The first n of 16 numbers; the others are 0. */
INTO_CALLER Floats load(const bf16 *from, int64_t n) {
#if AVX512
    __mmask16 these = n >= LANES ? 0xffff : (1u << n) - 1;
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(these, from)), 16);
#else
    Halves h = {0};
    if (n >= LANES)
        memcpy(&h, from, sizeof h);
    else
        memcpy(&h, from, n * sizeof(bf16));
    return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

INTO_CALLER void store(bf16 *to, Floats x, int64_t n) {
#if AVX512
    __mmask16 these = n >= LANES ? 0xffff : (1u << n) - 1;
#if BF16
    __m256i h = (__m256i)_mm512_cvtneps_pbh((__m512)x);
#else
    __m512i bits = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    __m256i h = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
#endif
    _mm256_mask_storeu_epi16(to, these, h);
#else
    Words bits = (Words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words is_nan = (Words)((bits & 0x7fffffff) > 0x7f800000);
    Halves h = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), Halves);
    if (n >= LANES)
        memcpy(to, &h, sizeof h);
    else
        memcpy(to, &h, n * sizeof(bf16));
#endif
}

INTO_CALLER Floats load_floats(const float *from, int64_t n) {
    Floats x = {0};
    if (n >= LANES)
        memcpy(&x, from, sizeof x);
    else
        memcpy(&x, from, n * sizeof(float));
    return x;
}

/* Two copies of sizes that are known where it matters: one of any size is a loop over bytes, slower than all the rest of a row. */
INTO_CALLER void store_floats(float *to, Floats x, int64_t n) {
    if (n >= LANES)
        memcpy(to, &x, sizeof x);
    else
        memcpy(to, &x, n * sizeof(float));
}

/* n of 16 numbers from place `at` on, of float32 where `wide`, which is a constant wherever these are called. */
INTO_CALLER Floats take(const void *from, int64_t at, int64_t n, int wide) {
    return wide ? load_floats((const float *)from + at, n) : load((const bf16 *)from + at, n);
}

INTO_CALLER void put(void *to, int64_t at, Floats x, int64_t n, int wide) {
    if (wide)
        store_floats((float *)to + at, x, n);
    else
        store((bf16 *)to + at, x, n);
}

/* x with zeros from the n-th number on. */
INTO_CALLER Floats first(Floats x, int64_t n) {
#if AVX512
    return (Floats)_mm512_maskz_mov_ps(n >= LANES ? 0xffff : (1u << n) - 1, (__m512)x);
#else
    for (int64_t i = n; i < LANES; i++) x[i] = 0;
    return x;
#endif
}

INTO_CALLER float sum_of(Floats x) {
#if AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
#endif
}

/* a b + c, rounded once where the processor can. */
INTO_CALLER Floats times_plus(Floats a, Floats b, Floats c) {
#if AVX512
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

/* NaN stays NaN. */
INTO_CALLER Floats bounded(Floats x, float low, float high) {
#if AVX512 /* of two operands of which one is NaN, the second is the answer */
    return (Floats)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#else
    Words below = (Words)(x < low), above = (Words)(x > high);
    Floats lows = (Floats){0} + low, highs = (Floats){0} + high;
    return (Floats)(((Words)x & ~below & ~above) | ((Words)lows & below) | ((Words)highs & above));
#endif
}

/* exp(x) to two units in the last place; beyond ±87 as at ±87. NaN stays NaN. */
INTO_CALLER Floats exp_of(Floats x) {
    x = bounded(x, -87.0f, 87.0f);
    const Floats magic = (Floats){0} + 12582912.0f; /* 1.5 x 2^23: a sum with it has no fraction */
    const Floats each = {0};
    Floats shifted = times_plus(x, each + 1.44269504f, magic), n = shifted - magic;
    Floats r = times_plus(n, each - 1.42860677e-06f, times_plus(n, each - 0.693145751953125f, x));
    Floats p = times_plus(each + 1.9875691500e-4f, r, each + 1.3981999507e-3f);
    p = times_plus(p, r, each + 8.3334519073e-3f);
    p = times_plus(p, r, each + 4.1665795894e-2f);
    p = times_plus(p, r, each + 1.6666665459e-1f);
    p = times_plus(p, r, each + 5.0000001201e-1f);
    p = times_plus(p, r * r, r + 1.0f);
    Ints power = (((Ints)shifted - 0x4b400000) + 127) << 23;
    return p * (Floats)power;
}

/* Below -87 zero, so that x sigmoid(x) is small for the most negative x, too. */
INTO_CALLER Floats sigmoid(Floats x) {
#if AVX512 /* a reciprocal to 14 bits and a step of Newton: faster than a division, and off by less than 2^-22 */
    __m512 d = (__m512)(1.0f + exp_of(-x)), r = _mm512_rcp14_ps(d);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.0f)));
    return (Floats)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), r);
#else
    Floats s = 1.0f / (1.0f + exp_of(-x));
    return (Floats)((Words)s & ~(Words)(x < -87.0f));
#endif
}

/* --- RMSNorm ------------------------------------------------------------------------------------------------------------------- */

/* x (+ added, written to `sum`) → y; returns 1 / root mean square. x, sum and weight are float32 where `wide`. */
INTO_CALLER float norm_row(const Norm *norm, int wide, const void *x, const bf16 *added, void *sum, const void *weight, int wide_weight, bf16 *y) {
    Floats squares = {0};
    for (int64_t i = 0; i < norm->width; i += LANES) {
        int64_t n = norm->width - i;
        Floats v = take(x, i, n, wide);
        if (added) {
            put(sum, i, v + load(added + i, n), n, wide);
            v = take(sum, i, n, wide);
        }
        squares = times_plus(v, v, squares);
    }
    float inverse = 1.0f / sqrtf(sum_of(squares) / (float)norm->width + norm->epsilon);
    const void *from = added ? sum : x;
    for (int64_t i = 0; i < norm->width; i += LANES) {
        int64_t n = norm->width - i;
        store(y + i, take(from, i, n, wide) * inverse * (take(weight, i, n, wide_weight) + norm->offset), n);
    }
    return inverse;
}

/* dx = inverse (g - x̂ mean(g x̂)) with g = dy weight and x̂ = x inverse, plus `added`; dy x̂ is added to d_weight. x, added and dx are
   float32 where `wide`. */
INTO_CALLER void norm_row_back(const Norm *norm, int wide, const bf16 *dy, const void *x, float inverse, const void *weight, int wide_weight,
                               const void *added, void *dx, float *d_weight) {
    Floats products = {0};
    for (int64_t i = 0; i < norm->width; i += LANES) {
        int64_t n = norm->width - i;
        Floats own = load(dy + i, n) * take(x, i, n, wide);
        products = times_plus(own, take(weight, i, n, wide_weight) + norm->offset, products);
        if (d_weight) store_floats(d_weight + i, load_floats(d_weight + i, n) + own * inverse, n);
    }
    float mean = sum_of(products) * inverse * inverse / (float)norm->width;
    for (int64_t i = 0; i < norm->width; i += LANES) {
        int64_t n = norm->width - i;
        Floats d = (load(dy + i, n) * (take(weight, i, n, wide_weight) + norm->offset) - take(x, i, n, wide) * mean) * inverse;
        if (added) d += take(added, i, n, wide);
        put(dx, i, d, n, wide);
    }
}

/* --- rotary positions ------------------------------------------------------------------------------------------------------------ */

/* The halves (a, b) of the first `turned` numbers of a head become (a cos - b sin, b cos + a sin); with direction -1 back again. */
INTO_CALLER void rotate_head(bf16 *x, const void *cos, const void *sin, int wide, int64_t turned, float direction) {
    int64_t half = turned / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t n = half - i;
        Floats a = load(x + i, n), b = load(x + half + i, n);
        Floats sin_a = take(sin, i, n, wide) * direction, sin_b = take(sin, half + i, n, wide) * direction;
        Floats cos_a = take(cos, i, n, wide), cos_b = take(cos, half + i, n, wide);
        if (direction < 0) { /* the transposed matrix, where the two halves of a table differ */
            Floats t = sin_a;
            sin_a = sin_b, sin_b = t;
        }
        store(x + i, a * cos_a - b * sin_a, n);
        store(x + half + i, b * cos_b + a * sin_b, n);
    }
}

/* --- gated activation ---------------------------------------------------------------------------------------------------------- */

INTO_CALLER void activation(int kind, Floats x, Floats *value, Floats *slope) {
    if (kind == SILU) {
        Floats s = sigmoid(x);
        *value = x * s;
        *slope = s * (1.0f + x * (1.0f - s));
    } else { /* tanh(u) = 2 sigmoid(2 u) - 1 */
        Floats u = 0.7978845608f * (x + 0.044715f * x * x * x), t = 2.0f * sigmoid(2.0f * u) - 1.0f;
        *value = 0.5f * x * (1.0f + t);
        *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * x * x);
    }
}

INTO_CALLER void gate_row(int kind, const bf16 *gate, const bf16 *up, bf16 *y, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t n = width - i;
        Floats value, slope;
        activation(kind, load(gate + i, n), &value, &slope);
        store(y + i, value * load(up + i, n), n);
    }
}

/* dy → activation(gate) up, in its place; gradients of gate and up. */
INTO_CALLER void gate_row_back(int kind, bf16 *dy, const bf16 *gate, const bf16 *up, bf16 *d_gate, bf16 *d_up, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t n = width - i;
        Floats value, slope, d = load(dy + i, n), u = load(up + i, n);
        activation(kind, load(gate + i, n), &value, &slope);
        store(dy + i, value * u, n);
        store(d_gate + i, d * u * slope, n);
        store(d_up + i, d * value, n);
    }
}

/* --- dropout --------------------------------------------------------------------------------------------------------------------- */

INTO_CALLER void dropout_row(const bf16 *x, const bf16 *added, bf16 *y, int64_t width, uint32_t key, uint32_t threshold, float scale) {
    Words place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = 0; i < width; i += LANES, place += LANES) {
        int64_t n = width - i;
        Words hash = (place * 0x9e3779b9) ^ key;
        hash = (hash ^ hash >> 16) * 0x7feb352d;
        hash = (hash ^ hash >> 15) * 0x846ca68b;
        Words stays = (Words)((hash ^ hash >> 16) >= threshold);
        Floats kept = (Floats)((Words)(load(x + i, n) * scale) & stays);
        store(y + i, added ? kept + load(added + i, n) : kept, n);
    }
}

/* --- cross-entropy --------------------------------------------------------------------------------------------------------------- */

/* Logits become softmax - one-hot, if `gradient`; returns -log softmax[target]. `scratch`: V floats. */
INTO_CALLER float entropy_row(bf16 *logits, int64_t n_words, int64_t target, int gradient, float *scratch) {
    Floats most = (Floats){0} - INFINITY, sums = {0};
    int64_t whole = n_words / LANES * LANES;
    float top = -INFINITY, total = 0;
    for (int64_t i = 0; i < whole; i += LANES) {
        Floats x = load(logits + i, LANES);
        Words larger = (Words)(x > most);
        most = (Floats)(((Words)x & larger) | ((Words)most & ~larger));
    }
    for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
    for (int64_t i = whole; i < n_words; i++) {
        float x = load(logits + i, 1)[0];
        top = x > top ? x : top;
    }
    float own = load(logits + target, 1)[0];
    for (int64_t i = 0; i < n_words; i += LANES) {
        int64_t n = n_words - i;
        Floats e = exp_of(load(logits + i, n) - top);
        sums += first(e, n);
        store_floats(scratch + i, e, n);
    }
    total = sum_of(sums);
    if (gradient) {
        float by = 1.0f / total;
        scratch[target] -= total; /* before the one rounding */
        for (int64_t i = 0; i < n_words; i += LANES) store(logits + i, load_floats(scratch + i, n_words - i) * by, n_words - i);
    }
    return top - own + logf(total);
}

TARGET static float NAMED(norm, KIND)(const Norm *o, int wide, const void *x, const bf16 *a, void *s, const void *w, int ww, bf16 *y) {
    if (wide) return a ? norm_row(o, 1, x, a, s, w, 1, y) : norm_row(o, 1, x, 0, 0, w, 1, y);
    if (ww) return a ? norm_row(o, 0, x, a, s, w, 1, y) : norm_row(o, 0, x, 0, 0, w, 1, y);
    return a ? norm_row(o, 0, x, a, s, w, 0, y) : norm_row(o, 0, x, 0, 0, w, 0, y);
}
TARGET static void NAMED(norm_back, KIND)(const Norm *o, int wide, const bf16 *dy, const void *x, float r, const void *w, int ww, const void *a,
                                    void *dx, float *dw) {
    if (wide)
        norm_row_back(o, 1, dy, x, r, w, 1, a, dx, dw);
    else if (ww)
        norm_row_back(o, 0, dy, x, r, w, 1, a, dx, dw);
    else
        norm_row_back(o, 0, dy, x, r, w, 0, a, dx, dw);
}
TARGET static void NAMED(rotate, KIND)(bf16 *x, int64_t heads, int64_t width, const void *c, const void *s, int wide, int64_t t, float d) {
    for (int64_t h = 0; h < heads; h++)
        if (wide)
            rotate_head(x + h * width, c, s, 1, t, d);
        else
            rotate_head(x + h * width, c, s, 0, t, d);
}
TARGET static void NAMED(gate, KIND)(int k, const bf16 *g, const bf16 *u, bf16 *y, int64_t n) {
    if (k == SILU)
        gate_row(SILU, g, u, y, n);
    else
        gate_row(GELU_TANH, g, u, y, n);
}
TARGET static void NAMED(gate_back, KIND)(int k, bf16 *dy, const bf16 *g, const bf16 *u, bf16 *dg, bf16 *du, int64_t n) {
    if (k == SILU)
        gate_row_back(SILU, dy, g, u, dg, du, n);
    else
        gate_row_back(GELU_TANH, dy, g, u, dg, du, n);
}
TARGET static void NAMED(dropout, KIND)(const bf16 *x, const bf16 *added, bf16 *y, int64_t width, uint32_t key, uint32_t threshold, float scale) {
    if (added)
        dropout_row(x, added, y, width, key, threshold, scale);
    else
        dropout_row(x, 0, y, width, key, threshold, scale);
}
TARGET static float NAMED(entropy, KIND)(bf16 *l, int64_t v, int64_t t, int g, float *s) { return entropy_row(l, v, t, g, s); }

#undef INTO_CALLER
#undef load
#undef store
#undef load_floats
#undef store_floats
#undef take
#undef put
#undef first
#undef sum_of
#undef times_plus
#undef bounded
#undef exp_of
#undef sigmoid
#undef norm_row
#undef norm_row_back
#undef rotate_head
#undef activation
#undef gate_row
#undef gate_row_back
#undef dropout_row
#undef entropy_row

#endif
