/* The thin products of LoRA on processors with AMX: the compiled twin of thin.py, whose docstrings are the contract.

   One of the three sides is a rank, so that little is multiplied for each number that is read: what counts is to read the large matrix once, in
   the order in which it lies, and to start few threads. Factors come as float32 masters; here they are scaled, rounded and laid out as the
   matrix unit wants its right operand: tiles of 16 pairs of rows. */

#include "amx.h"

#ifdef AMX
#define TILE 256 /* dwords */
#define ROWS 32  /* of x, that are worked on at once: two tiles */
#define MOST 8   /* products at once: those of one input, as of q, k and v */

enum { SETS, ADDS, SUMS }; /* y = x F; y += x F; of all products together, onto the y of the first */

/* A factor [inner, outer] of float32: `turned`, it lies as [outer, inner] in memory. */
typedef struct {
    const float *at;
    int64_t inner, outer, stride, turned;
    float scale;
} Factor;

/* 16 numbers of a row as 16 dwords of which the lower half is used, scaled and rounded. */
INTO_CALLER __m512i rounded(const float *from, int64_t n, float scale) {
    __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(upto(n), from), _mm512_set1_ps(scale));
    return _mm512_cvtepu16_epi32(to_bf16(x));
}

/* Numbers i to i + 31 of rows (inner), o to o + 15 of columns (outer), as 16 pairs of rows. */
AMX static void pack(const Factor *f, int64_t i, int64_t o, uint32_t *to) {
    if (f->turned) {
        uint32_t rows[16 * 16];
        for (int64_t c = 0; c < 16; c++) {
            const float *row = f->at + (o + c) * f->stride + i;
            int64_t n = o + c < f->outer ? f->inner - i : 0;
            __m256i low = _mm512_cvtepi32_epi16(rounded(row, n, f->scale)), high = _mm512_cvtepi32_epi16(rounded(row + 16, n - 16, f->scale));
            _mm256_storeu_si256((__m256i *)(rows + c * 16), low);
            _mm256_storeu_si256((__m256i *)(rows + c * 16 + 8), high);
        }
        transpose16(rows, 16, to, 16);
    } else
        for (int64_t p = 0; p < 16; p++) {
            const float *row = f->at + (i + 2 * p) * f->stride + o;
            int64_t n = f->outer - o, rest = f->inner - i - 2 * p;
            __m512i upper = rounded(row, rest > 0 ? n : 0, f->scale), lower = rounded(row + f->stride, rest > 1 ? n : 0, f->scale);
            _mm512_storeu_si512(to + p * 16, _mm512_or_si512(upper, _mm512_slli_epi32(lower, 16)));
        }
}

/* One of the products: x has n rows of `inner` numbers, with `stride` from one to the next. */
typedef struct {
    Factor factor;
    const bf16 *x;
    int64_t x_stride;
    bf16 *y;
    int64_t y_stride;
} Product;

/* The same for ROWS rows of x that can be read in whole steps of 32, and with the factor packed: [outer / 16][inner / 32] tiles. */
typedef struct {
    const bf16 *x;
    int64_t stride, deep;
    const uint32_t *packed;
} Term;

static int64_t whole(int64_t n, int64_t steps) { return (n + steps - 1) / steps * steps; }
static int64_t n_tiles(const Factor *f) { return whole(f->inner, 32) / 32 * (whole(f->outer, 16) / 16); }

/* y (+)= sums, of which the tiles of 16 rows lie one after another; two: there are two tiles side by side. */
INTO_CALLER void put(const float *sums, int64_t n_rows, int64_t n_columns, int adds, bf16 *y, int64_t y_stride) {
    const int64_t two = n_columns > 16;
    const __mmask16 left = upto(n_columns), right = upto(n_columns - 16);
    for (int64_t r = 0; r < n_rows; r++, y += y_stride) {
        const float *sum = sums + r / 16 * 2 * TILE + r % 16 * 16;
        __m512 a = _mm512_loadu_ps(sum), b = two ? _mm512_loadu_ps(sum + TILE) : a;
        if (n_columns >= 32) {
            if (adds) {
                __m512i own = _mm512_loadu_si512(y);
                a = _mm512_add_ps(a, to_float(_mm512_castsi512_si256(own)));
                b = _mm512_add_ps(b, to_float(_mm512_extracti64x4_epi64(own, 1)));
            }
            _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        } else {
            if (adds) {
                a = _mm512_add_ps(a, to_float(_mm256_maskz_loadu_epi16(left, y)));
                b = _mm512_add_ps(b, to_float(_mm256_maskz_loadu_epi16(right, y + 16)));
            }
            _mm256_mask_storeu_epi16(y, left, to_bf16(a));
            if (two) _mm256_mask_storeu_epi16(y + 16, right, to_bf16(b));
        }
    }
}

/* y (+)= the sum of all terms, for n_rows of at most ROWS: two by two tiles at a time. */
AMX static void multiply(const Term *terms, int64_t n_terms, int64_t outer, int64_t n_rows, int adds, bf16 *y, int64_t y_stride) {
    float sums[4 * TILE];
    for (int64_t o = 0; o < outer; o += 32) {
        const int lower = n_rows > 16, two = outer - o > 16;
        ZERO(0);
        ZERO(1);
        ZERO(2);
        ZERO(3);
        for (const Term *t = terms; t < terms + n_terms; t++) {
            const int64_t step = t->deep * TILE;
            const uint32_t *f = t->packed + o / 16 * step;
            for (int64_t i = 0; i < t->deep; i++, f += TILE) {
                LOAD(4, t->x + i * 32, t->stride * 2);
                LOAD(6, f, 64);
                MULTIPLY(0, 4, 6);
                if (two) {
                    LOAD(7, f + step, 64);
                    MULTIPLY(1, 4, 7);
                }
                if (lower) {
                    LOAD(5, t->x + 16 * t->stride + i * 32, t->stride * 2);
                    MULTIPLY(2, 5, 6);
                    if (two) MULTIPLY(3, 5, 7);
                }
            }
        }
        STORE(0, sums, 64);
        STORE(1, sums + TILE, 64);
        STORE(2, sums + 2 * TILE, 64);
        STORE(3, sums + 3 * TILE, 64);
        put(sums, n_rows, outer - o, adds, y + o, y_stride);
    }
}

/* Rows m to m + n_rows - 1, at most ROWS, of all products. padded: room for so many rows of each x. */
AMX static void product_rows(const Product *products, int64_t n_products, int how, int64_t m, int64_t n_rows, const uint32_t *packed, bf16 *padded) {
    Term terms[MOST];
    for (int64_t k = 0; k < n_products; k++) {
        const Product *p = products + k;
        const int64_t inner = whole(p->factor.inner, 32);
        terms[k] = (Term){p->x + m * p->x_stride, p->x_stride, inner / 32, packed};
        if (n_rows < ROWS || inner != p->factor.inner) {
            if (k && p->x == p[-1].x && inner == whole(p[-1].factor.inner, 32)) { /* one x of several products */
                terms[k].x = terms[k - 1].x;
            } else {
                memset(padded, 0, ROWS * inner * 2);
                for (int64_t r = 0; r < n_rows; r++) memcpy(padded + r * inner, terms[k].x + r * p->x_stride, p->factor.inner * 2);
                terms[k].x = padded;
                padded += ROWS * inner;
            }
            terms[k].stride = inner;
        }
        if (how != SUMS) multiply(terms + k, 1, p->factor.outer, n_rows, how == ADDS, p->y + m * p->y_stride, p->y_stride);
        packed += n_tiles(&p->factor) * TILE;
    }
    if (how == SUMS) multiply(terms, n_products, products->factor.outer, n_rows, 1, products->y + m * products->y_stride, products->y_stride);
}

/* n rows of up to MOST products. Returns not 0 where there is no memory. */
int tunesmith_thin_products(int threads, int64_t n, int64_t n_products, const Product *products, int how) {
    int64_t tiles = 0, width = 0;
    for (int64_t k = 0; k < n_products; k++) {
        tiles += n_tiles(&products[k].factor);
        width += whole(products[k].factor.inner, 32);
    }
    uint32_t *scratch = aligned_alloc(64, tiles * TILE * 4);
    bf16 *padded = aligned_alloc(64, threads * ROWS * width * 2);
    if (!scratch || !padded) {
        free(scratch), free(padded);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        uint32_t *packed = scratch;
        for (int64_t k = 0; k < n_products; k++) {
            const Factor *f = &products[k].factor;
            int64_t deep = whole(f->inner, 32) / 32, last = n_tiles(f);
#pragma omp for nowait schedule(static)
            for (int64_t tile = 0; tile < last; tile++) pack(f, tile % deep * 32, tile / deep * 16, packed + tile * TILE);
            packed += last * TILE;
        }
#pragma omp barrier
        set_up();
#pragma omp for schedule(static)
        for (int64_t m = 0; m < n; m += ROWS)
            product_rows(products, n_products, how, m, n - m < ROWS ? n - m : ROWS, scratch, padded + omp_get_thread_num() * ROWS * width);
        tear_down();
    }
    free(scratch), free(padded);
    return 0;
}

/* 32 tokens of up to 16 columns of `low` as 16 rows of 32. */
AMX static void turn(const bf16 *low, int64_t stride, int64_t n_tokens, int64_t n_columns, bf16 *to) {
    uint32_t rows[2][16 * 16], turned[2][16 * 16];
    for (int half = 0; half < 2; half++) {
        for (int64_t t = 0; t < 16; t++) {
            __mmask16 these = half * 16 + t < n_tokens ? upto(n_columns) : 0;
            __m256i row = _mm256_maskz_loadu_epi16(these, low + (half * 16 + t) * stride);
            _mm512_storeu_si512(rows[half] + t * 16, _mm512_zextsi256_si512(row));
        }
        transpose16(rows[half], 16, turned[half], 16); /* row p: columns 2 p and 2 p + 1 of 16 tokens */
    }
    for (int p = 0; p < 8; p++) {
        __m512i first = _mm512_loadu_si512(turned[0] + p * 16), second = _mm512_loadu_si512(turned[1] + p * 16);
        _mm256_storeu_si256((__m256i *)(to + 2 * p * 32), _mm512_cvtepi32_epi16(first));
        _mm256_storeu_si256((__m256i *)(to + 2 * p * 32 + 16), _mm512_cvtepi32_epi16(second));
        _mm256_storeu_si256((__m256i *)(to + (2 * p + 1) * 32), _mm512_cvtepi32_epi16(_mm512_srli_epi32(first, 16)));
        _mm256_storeu_si256((__m256i *)(to + (2 * p + 1) * 32 + 16), _mm512_cvtepi32_epi16(_mm512_srli_epi32(second, 16)));
    }
}

/* sums [rank, width] = scale lowᵀ x over n tokens, or, `turned`, [width, rank]. */
typedef struct {
    int64_t rank, width;
    const bf16 *low;
    int64_t low_stride;
    const bf16 *x;
    int64_t x_stride;
    float scale;
    float *sums;
    int64_t turned;
} Gradient;

static int64_t high_of(const Gradient *g) { return (g->rank + 15) / 16; }
static int64_t wide_of(const Gradient *g) { return (g->width + 15) / 16; }

/* Columns 16 from to 16 end - 1 of x; held: a tile for each 16 of them and 16 of the rank; low: as `turn` lays it out. */
AMX static void gradient_columns(const Gradient *g, int64_t n, const bf16 *low, float *held, int64_t from, int64_t end) {
    const int64_t blocks = (n + 31) / 32, high = high_of(g);
    uint32_t pairs[2 * TILE];
    for (int64_t block = 0; block < blocks; block += 2) /* 64 tokens at a time: half as many sums are stored and loaded again */
        for (int64_t c = from; c < end; c++) {
            const bf16 *x = g->x + block * 32 * g->x_stride + c * 16;
            const int64_t columns = g->width - c * 16;
            int two = block + 1 < blocks;
            interleave(x, g->x_stride, columns, n - block * 32, pairs);
            LOAD(6, pairs, 64);
            if (two) {
                interleave(x + 32 * g->x_stride, g->x_stride, columns, n - (block + 1) * 32, pairs + TILE);
                LOAD(7, pairs + TILE, 64);
            }
            for (int64_t r = 0; r < high; r++) {
                float *sum = held + (c * high + r) * TILE;
                if (block)
                    LOAD(0, sum, 64);
                else
                    ZERO(0);
                LOAD(4, low + (block * high + r) * 512, 64);
                MULTIPLY(0, 4, 6);
                if (two) {
                    LOAD(5, low + ((block + 1) * high + r) * 512, 64);
                    MULTIPLY(0, 5, 7);
                }
                STORE(0, sum, 64);
            }
        }
    const __m512 scale = _mm512_set1_ps(g->scale);
    for (int64_t c = from; c < end; c++)
        for (int64_t r = 0; r < high; r++) {
            float *sum = held + (c * high + r) * TILE;
            int64_t ranks = g->rank - r * 16 < 16 ? g->rank - r * 16 : 16, columns = g->width - c * 16 < 16 ? g->width - c * 16 : 16;
            if (g->turned) transpose16((uint32_t *)sum, 16, (uint32_t *)sum, 16);
            int64_t n_rows = g->turned ? columns : ranks, stride = g->turned ? g->rank : g->width;
            float *to = g->turned ? g->sums + c * 16 * stride + r * 16 : g->sums + r * 16 * stride + c * 16;
            for (int64_t i = 0; i < n_rows; i++)
                _mm512_mask_storeu_ps(to + i * stride, upto(g->turned ? ranks : columns), _mm512_mul_ps(_mm512_loadu_ps(sum + i * 16), scale));
        }
}

/* A thread has columns of its own. Returns not 0 where there is no memory. */
int tunesmith_thin_gradients(int threads, int64_t n, int64_t n_gradients, const Gradient *gradients) {
    const int64_t blocks = (n + 31) / 32;
    int64_t high = 0, tiles = 0;
    for (int64_t k = 0; k < n_gradients; k++) {
        high += high_of(gradients + k);
        tiles += high_of(gradients + k) * wide_of(gradients + k);
    }
    bf16 *turned = aligned_alloc(64, blocks * high * 1024);
    float *held = aligned_alloc(64, tiles * TILE * 4);
    if (!turned || !held) {
        free(turned), free(held);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        bf16 *low = turned;
        for (int64_t k = 0; k < n_gradients; k++) {
            const Gradient *g = gradients + k;
            const int64_t own = high_of(g);
#pragma omp for nowait schedule(static)
            for (int64_t i = 0; i < blocks * own; i++)
                turn(g->low + i / own * 32 * g->low_stride + i % own * 16, g->low_stride, n - i / own * 32, g->rank - i % own * 16, low + i * 512);
            low += blocks * own * 512;
        }
#pragma omp barrier
        set_up();
        low = turned;
        float *sums = held;
        for (int64_t k = 0; k < n_gradients; k++) {
            const Gradient *g = gradients + k;
            const int64_t wide = wide_of(g), each = (wide + threads - 1) / threads;
#pragma omp for nowait schedule(static)
            for (int64_t from = 0; from < wide; from += each) gradient_columns(g, n, low, sums, from, from + each < wide ? from + each : wide);
            low += blocks * high_of(g) * 512;
            sums += high_of(g) * wide * TILE;
        }
        tear_down();
    }
    free(turned), free(held);
    return 0;
}
#else
int tunesmith_thin_products(void) { return 1; }
int tunesmith_thin_gradients(void) { return 1; }
#endif
