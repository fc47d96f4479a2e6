/* One AdamW step over moments in 8 bits: the compiled twin of adamw8bit.py, whose docstrings are the contract.

   A block of 256 values is read, updated and written while it lies in the first-level cache. The loops are plain C without branches;
   the compiler makes vectors of them, once for each kind of processor below. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#endif
#define INTO_CALLER static inline __attribute__((always_inline))

#define BLOCK 256
#define HEADS 3200        /* numbers of one sign that differ in their first 16 bits, from 2^-24 to below 2 */
#define FIRST_HEAD 0x3380 /* the first 16 bits of 2^-24: smaller numbers have the code of zero, or the one after it */

/* What a moment's codes stand for, rising; bounds[i] lies between level i and i + 1; lowest[head] as MomentMap has it. */
typedef struct {
    const float *levels, *bounds;
    const int32_t *lowest;
} Map;

typedef struct {
    float keep, rate, beta1_rest, beta2, beta2_rest, root, epsilon; /* keep: 1 - lr x decay; rate: lr / correction 1; root of correction 2 */
} Step;

/* Codes of n values and their largest size. Bits are looked at in copies: the compiler makes no vectors of a loop that reads one number
   as two types. */
INTO_CALLER float write_moment(const float *x, int64_t n, const Map *map, uint8_t *restrict codes) {
    const float *restrict bounds = map->bounds;
    const int32_t *restrict lowest = map->lowest;
    float part[BLOCK], most;
    int32_t bits[BLOCK], largest = 0;
    memcpy(bits, x, n * sizeof(float));
    for (int64_t i = 0; i < n; i++) { /* as integers: sizes have the order of their bits, and a maximum of integers has no NaN to heed */
        int32_t size = bits[i] & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    memcpy(&most, &largest, sizeof most);
    float inverse = 1.0f / (most < 1e-38f ? 1e-38f : most);
    for (int64_t i = 0; i < n; i++) {
        float y = x[i] * inverse;
        y = y > 1 ? 1 : y;
        part[i] = y < -1 ? -1 : y;
    }
    memcpy(bits, part, n * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        int32_t head = ((bits[i] & 0x7fffffff) >> 16) - FIRST_HEAD;
        head = head < 0 ? 0 : head;
        head = head > HEADS - 1 ? HEADS - 1 : head;
        int32_t code = lowest[head + (bits[i] < 0 ? HEADS : 0)];
        codes[i] = (uint8_t)(code + (part[i] > bounds[code] ? 1 : 0));
    }
    return most;
}

INTO_CALLER void step_block(float *p, const float *g, uint8_t *first_codes, float *first_scale, uint8_t *second_codes, float *second_scale,
                            const Map *first_map, const Map *second_map, const Step *s, int64_t n) {
    float first[BLOCK], second[BLOCK], scale_1 = *first_scale, scale_2 = *second_scale;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        float m = first_map->levels[first_codes[i]] * scale_1, v = second_map->levels[second_codes[i]] * scale_2;
        m += s->beta1_rest * (g[i] - m);
        v = v * s->beta2 + s->beta2_rest * g[i] * g[i];
        first[i] = m, second[i] = v;
        p[i] = p[i] * s->keep - s->rate * m / (sqrtf(v) / s->root + s->epsilon);
    }
    *first_scale = write_moment(first, n, first_map, first_codes);
    *second_scale = write_moment(second, n, second_map, second_codes);
}

#define ARGUMENTS                                                                                                                           \
    float *p, const float *g, uint8_t *first_codes, float *first_scale, uint8_t *second_codes, float *second_scale, const Map *first_map,   \
        const Map *second_map, const Step *s, int64_t n
#define GIVEN p, g, first_codes, first_scale, second_codes, second_scale, first_map, second_map, s, n

static void step_plain(ARGUMENTS) { step_block(GIVEN); }
#ifdef X86
AVX2 static void step_avx2(ARGUMENTS) { step_block(GIVEN); }
AVX512 static void step_avx512(ARGUMENTS) { step_block(GIVEN); }
#endif

static void (*const steps[])(ARGUMENTS) = {
    step_plain,
#ifdef X86
    step_avx2,
    step_avx512,
#endif
};

/* The first-moment map's three tables, then the second's; settings as in Step. */
void tunesmith_adamw8bit(int path, int n_threads, int64_t n, float *p, const float *g, uint8_t *first_codes, float *first_scales,
                         uint8_t *second_codes, float *second_scales, const float *first_levels, const float *first_bounds,
                         const int32_t *first_lowest, const float *second_levels, const float *second_bounds, const int32_t *second_lowest,
                         const float *settings) {
    const Map first_map = {first_levels, first_bounds, first_lowest}, second_map = {second_levels, second_bounds, second_lowest};
    Step s;
    memcpy(&s, settings, sizeof s);
    int64_t n_blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (int64_t block = 0; block < n_blocks; block++) {
        int64_t start = block * BLOCK, size = n - start < BLOCK ? n - start : BLOCK;
        steps[path](p + start, g + start, first_codes + start, first_scales + block, second_codes + start, second_scales + block, &first_map,
                    &second_map, &s, size);
    }
}
