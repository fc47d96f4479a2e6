/* One token for each row of a batch through a whole decoder, from its embedding to the most likely next one, on processors with AMX: the compiled
   twin of decode.py, whose docstrings are the contract.

   Sixteen rows of the batch are a group: the columns of a tile, the lanes of a vector. What is computed of them lies features first, [features][16]
   float32, so that norms, positions and activations are vectors of whole groups; only what enters a product is rounded to bfloat16, two features
   side by side ("pairs", [features / 2][16]). Weights are the left operand and are read where they lie, once per step for all rows: reading
   them is the time of a step, the rest must hide behind it.

   One team of threads goes through the step together. What is small (norms, the A of adapters) each thread computes for itself, which is less
   than to wait for another. */

#include "amx.h"

#ifdef AMX
#define GROUP 16
#define SILU 0

typedef struct {
    const bf16 *weight; /* [outputs, inputs] */
    const bf16 *bias;   /* [outputs] or null */
    const bf16 *b;      /* of an adapter, [outputs, rank], or null */
    int64_t rank, low;  /* rank: with zeros up to a multiple of 32; low: where its part of A x begins */
} Projection;

typedef struct { /* the A of all projections of one input, one below the other: [rank, inputs], or null */
    const bf16 *a;
    int64_t rank;
} Thin;

typedef struct {
    Projection query, key, value, out, gate, up, down;
    Thin of_attention, of_out, of_mlp, of_down; /* by their input */
    const bf16 *before_attention, *before_mlp, *query_norm, *key_norm;
} Layer;

typedef struct {
    int64_t n_layers, width, feed_forward, heads, key_heads, head_width, n_words, activation, most_rank;
    float scale, epsilon, offset, unused;
    const Layer *layers;
    const bf16 *last_norm;
    Projection head;
} Decoder;

typedef struct { /* where the tokens before these ones are, and how the newest are turned */
    bf16 *keys, *values;      /* [layers][key heads][places][head width] */
    int64_t n_places, turned; /* turned: numbers of a head that have a position */
    const bf16 *cos, *sin;    /* [positions][turned] */
} Past;

typedef struct { /* of a step, for all threads */
    const Decoder *d;
    const Past *past;
    int64_t n_rows, n_groups;
    const int64_t *first, *position; /* of each row: the place of its first token, and its newest token's number */
    float *x, *cos, *sin;            /* [group][width][16]; [group][turned][16] */
    bf16 *queries;                   /* [row][heads][head width] */
    uint32_t *seen, *inner;          /* pairs: what attention answers, [group][heads * head width / 2][16]; the input of `down` */
    float *logits;                   /* [row][words] or null */
} Step;

typedef struct { /* of one thread */
    uint32_t *normed, *low; /* pairs: [group][width / 2][16], [group][rank / 2][16] */
    float *values, *scores; /* [2][head width][16]; [heads of a key][tokens] */
    bf16 *shares;           /* [4][tokens] */
    float *most;            /* [group][16]: the largest logit so far, and its word */
    int32_t *word;
} Own;

INTO_CALLER __m512i pair(__m512 first, __m512 second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(to_bf16(first)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(second)), 16));
}

INTO_CALLER __m512 number(const bf16 *at) { return _mm512_castsi512_ps(_mm512_set1_epi32((int)*at << 16)); }

/* --- products ---------------------------------------------------------------------------------------------------------------------- */

/* 16 rows of each of two weights times one or two groups, added to tiles 0 and 1 (and 2, 3). `ahead`: how far behind each lies what is read next. */
INTO_CALLER void multiply(const bf16 *weight, const bf16 *other, int64_t inputs, const uint32_t *x, int64_t next_group, int both, int64_t ahead) {
    for (int64_t i = 0; i < inputs; i += 32) {
        LOAD(4, weight + i, inputs * 2); LOAD(5, other + i, inputs * 2); LOAD(6, x + i / 2 * GROUP, 64);
        for (int64_t line = 0; ahead && line < 16; line++) {
            _mm_prefetch((const char *)(weight + ahead + i * 16 + line * 32), _MM_HINT_T1);
            _mm_prefetch((const char *)(other + ahead + i * 16 + line * 32), _MM_HINT_T1);
        }
        MULTIPLY(0, 4, 6); MULTIPLY(1, 5, 6);
        if (both) {
            LOAD(7, x + next_group + i / 2 * GROUP, 64);
            MULTIPLY(2, 4, 7); MULTIPLY(3, 5, 7);
        }
    }
}

INTO_CALLER void add_bias(const Projection *p, int64_t output, float *to) {
    for (int64_t i = 0; p->bias && i < 16; i++) _mm512_storeu_ps(to + i * GROUP, _mm512_add_ps(_mm512_loadu_ps(to + i * GROUP), number(p->bias + output + i)));
}

/* Outputs [16][16] of p from `i` on and of q from `j` on, for the group of x into `to`, and where `both` for the next group into `to_next`.

   Both stand one below the other in `to`. low: A x of all adapters of this input, `low_rank` numbers a row. */
INTO_CALLER void outputs(const Projection *p, int64_t i, const Projection *q, int64_t j, int64_t inputs, const uint32_t *x, const uint32_t *low,
                         int64_t low_rank, int both, float *to, float *to_next) {
    ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    multiply(p->weight + i * inputs, q->weight + j * inputs, inputs, x, inputs / 2 * GROUP, both, (p == q ? 32 : 16) * inputs);
    const uint32_t *low_p = low + p->low / 2 * GROUP, *low_q = low + q->low / 2 * GROUP;
    if (p->b && q->b && low_p == low_q)
        multiply(p->b + i * p->rank, q->b + j * q->rank, p->rank, low_p, low_rank / 2 * GROUP, both, 0);
    else {
        for (int64_t r = 0; p->b && r < p->rank; r += 32) {
            LOAD(4, p->b + i * p->rank + r, p->rank * 2); LOAD(6, low_p + r / 2 * GROUP, 64);
            MULTIPLY(0, 4, 6);
            if (both) { LOAD(7, low_p + (low_rank + r) / 2 * GROUP, 64); MULTIPLY(2, 4, 7); }
        }
        for (int64_t r = 0; q->b && r < q->rank; r += 32) {
            LOAD(5, q->b + j * q->rank + r, q->rank * 2); LOAD(6, low_q + r / 2 * GROUP, 64);
            MULTIPLY(1, 5, 6);
            if (both) { LOAD(7, low_q + (low_rank + r) / 2 * GROUP, 64); MULTIPLY(3, 5, 7); }
        }
    }
    STORE(0, to, 64); STORE(1, to + 16 * GROUP, 64);
    add_bias(p, i, to), add_bias(q, j, to + 16 * GROUP);
    if (both) {
        STORE(2, to_next, 64); STORE(3, to_next + 16 * GROUP, 64);
        add_bias(p, i, to_next), add_bias(q, j, to_next + 16 * GROUP);
    }
}

INTO_CALLER void pairs_of(const float *x, int64_t n, uint32_t *to) {
    for (int64_t i = 0; i < n; i += 2) _mm512_storeu_si512(to + i / 2 * GROUP, pair(_mm512_loadu_ps(x + i * GROUP), _mm512_loadu_ps(x + (i + 1) * GROUP)));
}

/* A x of all adapters of one input. */
AMX static void thin(const Step *s, const Thin *t, int64_t inputs, const uint32_t *x, uint32_t *low) {
    const Projection a = {t->a, 0, 0, 0, 0};
    float sums[2][32 * GROUP];
    for (int64_t r = 0; t->a && r < t->rank; r += 32)
        for (int64_t g = 0; g < s->n_groups; g += 2) {
            int both = g + 1 < s->n_groups;
            outputs(&a, r, &a, r + 16, inputs, x + g * (inputs / 2) * GROUP, low, 0, both, sums[0], sums[1]);
            for (int k = 0; k <= both; k++) pairs_of(sums[k], 32, low + ((g + k) * t->rank + r) / 2 * GROUP);
        }
}

/* --- between them ------------------------------------------------------------------------------------------------------------------ */

/* Of x [n][16]: 1 / root mean square. */
INTO_CALLER __m512 inverse_rms(const float *x, int64_t n, float epsilon) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 2) {
        __m512 a = _mm512_loadu_ps(x + i * GROUP), b = _mm512_loadu_ps(x + (i + 1) * GROUP);
        even = _mm512_fmadd_ps(a, a, even), odd = _mm512_fmadd_ps(b, b, odd);
    }
    __m512 mean = _mm512_div_ps(_mm512_add_ps(even, odd), _mm512_set1_ps((float)n));
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_add_ps(mean, _mm512_set1_ps(epsilon))));
}

INTO_CALLER __m512 normal(__m512 x, __m512 inverse, const bf16 *weight, float offset) {
    return _mm512_mul_ps(_mm512_mul_ps(x, inverse), _mm512_add_ps(number(weight), _mm512_set1_ps(offset)));
}

AMX static void norm(const Step *s, const bf16 *weight, uint32_t *to) {
    const int64_t n = s->d->width;
    const float *x = s->x;
    for (int64_t g = 0; g < s->n_groups; g++, x += n * GROUP, to += n / 2 * GROUP) {
        __m512 inverse = inverse_rms(x, n, s->d->epsilon);
        for (int64_t i = 0; i < n; i += 2) {
            __m512 a = normal(_mm512_loadu_ps(x + i * GROUP), inverse, weight + i, s->d->offset);
            __m512 b = normal(_mm512_loadu_ps(x + (i + 1) * GROUP), inverse, weight + i + 1, s->d->offset);
            _mm512_storeu_si512(to + i / 2 * GROUP, pair(a, b));
        }
    }
}

/* The embedded tokens and the tables of their positions, features first. */
AMX static void take_in(const Step *s, const bf16 *embedded, int64_t group) {
    const int64_t n = s->d->width, turned = s->past->turned;
    for (int64_t lane = 0; lane < GROUP; lane++) {
        int64_t row = group * GROUP + lane;
        if (row >= s->n_rows) continue;
        for (int64_t i = 0; i < n; i++) s->x[(group * n + i) * GROUP + lane] = _mm_cvtss_f32(_mm512_castps512_ps128(number(embedded + row * n + i)));
        for (int64_t i = 0; i < turned; i++) {
            int64_t at = s->position[row] * turned + i, to = (group * turned + i) * GROUP + lane;
            s->cos[to] = _mm_cvtss_f32(_mm512_castps512_ps128(number(s->past->cos + at)));
            s->sin[to] = _mm_cvtss_f32(_mm512_castps512_ps128(number(s->past->sin + at)));
        }
    }
}

/* [n][16] → for each row n bfloat16 numbers, at to[row]. */
INTO_CALLER void rows_of(const float *x, int64_t n, int64_t n_rows, bf16 *const *to) {
    for (int64_t i = 0; i < n; i += 16) {
        float turned[16 * 16];
        transpose16((const uint32_t *)(x + i * GROUP), GROUP, (uint32_t *)turned, 16);
        for (int64_t r = 0; r < n_rows; r++) _mm256_storeu_si256((void *)(to[r] + i), to_bf16(_mm512_loadu_ps(turned + r * 16)));
    }
}

/* One head of queries, keys or values: normed, turned, and put where attention finds it. */
AMX static void one_head(const Step *s, int64_t layer, int64_t unit, const Own *own) {
    const Decoder *d = s->d;
    const Layer *l = d->layers + layer;
    const int64_t width = d->head_width, half = s->past->turned / 2;
    const int is_query = unit < d->heads, is_value = unit >= d->heads + d->key_heads;
    const int64_t head = is_query ? unit : (unit - d->heads) % d->key_heads;
    const Projection *p = is_query ? &l->query : is_value ? &l->value : &l->key;
    const bf16 *weight = is_query ? l->query_norm : l->key_norm;
    for (int64_t g = 0; g < s->n_groups; g++) {
        int both = g % 2 == 0 && g + 1 < s->n_groups;
        float *x = own->values + g % 2 * width * GROUP;
        for (int64_t i = 0; g % 2 == 0 && i < width; i += 32)
            outputs(p, head * width + i, p, head * width + i + 16, d->width, own->normed + g * (d->width / 2) * GROUP,
                    own->low + g * (l->of_attention.rank / 2) * GROUP, l->of_attention.rank, both, x + i * GROUP, x + (width + i) * GROUP);
        if (!is_value && weight) {
            __m512 inverse = inverse_rms(x, width, d->epsilon);
            for (int64_t i = 0; i < width; i++) _mm512_storeu_ps(x + i * GROUP, normal(_mm512_loadu_ps(x + i * GROUP), inverse, weight + i, d->offset));
        }
        const float *cos = s->cos + g * half * 2 * GROUP, *sin = s->sin + g * half * 2 * GROUP;
        for (int64_t i = 0; !is_value && i < half; i++) {
            int64_t j = i + half;
            __m512 a = _mm512_loadu_ps(x + i * GROUP), b = _mm512_loadu_ps(x + j * GROUP);
            __m512 a_cos = _mm512_mul_ps(a, _mm512_loadu_ps(cos + i * GROUP)), b_cos = _mm512_mul_ps(b, _mm512_loadu_ps(cos + j * GROUP));
            _mm512_storeu_ps(x + i * GROUP, _mm512_fnmadd_ps(b, _mm512_loadu_ps(sin + i * GROUP), a_cos));
            _mm512_storeu_ps(x + j * GROUP, _mm512_fmadd_ps(a, _mm512_loadu_ps(sin + j * GROUP), b_cos));
        }
        bf16 *to[GROUP], *kept = is_value ? s->past->values : s->past->keys;
        int64_t n_rows = s->n_rows - g * GROUP < GROUP ? s->n_rows - g * GROUP : GROUP;
        for (int64_t r = 0; r < n_rows; r++) {
            int64_t row = g * GROUP + r, place = (layer * d->key_heads + head) * s->past->n_places + s->first[row] + s->position[row];
            to[r] = is_query ? s->queries + (row * d->heads + head) * width : kept + place * width;
        }
        rows_of(x, width, n_rows, to);
    }
}

/* Scores of 16 tokens, queries and keys 32 numbers at a time: keys are turned in registers once for all heads that share them. */
INTO_CALLER void some_scores(const bf16 *keys, int64_t n, const bf16 *queries, int64_t width, int64_t n_heads, float *scores, int64_t padded) {
    uint32_t turned[16 * 16], last[16 * 16];
    for (int64_t i = 0; i < width; i += 32) {
        if (n < 16) { /* there may be nothing behind the newest */
            for (int64_t t = 0; t < 16; t++) memcpy(last + t * 16, keys + (t < n ? t : 0) * width + i, 64);
            transpose16(last, 16, turned, 16);
        } else {
            transpose16((const uint32_t *)(keys + i), width / 2, turned, 16);
        }
        for (int64_t h = 0; h < n_heads; h++) {
            const int32_t *query = (const int32_t *)(queries + h * width + i);
            __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            if (i) sums[0] = _mm512_loadu_ps(scores + h * padded);
            for (int k = 0; k < 16; k++)
                sums[k % 4] = _mm512_dpbf16_ps(sums[k % 4], (__m512bh)_mm512_loadu_si512(turned + k * 16), (__m512bh)_mm512_set1_epi32(query[k]));
            _mm512_storeu_ps(scores + h * padded, _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
        }
    }
}

/* Scores of n tokens → exp(scale (score - largest)) as bfloat16, with zeros up to 16; returns 1 / their sum. */
INTO_CALLER float softmax(const float *scores, int64_t n, float scale, bf16 *shares) {
    __m512 most = _mm512_set1_ps(scores[0]), sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < n; t += 16) {
        __mmask16 here = n - t >= 16 ? 0xffff : (__mmask16)((1u << (n - t)) - 1);
        most = _mm512_mask_max_ps(most, here, most, _mm512_loadu_ps(scores + t));
    }
    const __m512 by = _mm512_set1_ps(scale), top = _mm512_set1_ps(_mm512_reduce_max_ps(most) * scale);
    for (int64_t t = 0; t < n; t += 16) {
        __mmask16 here = n - t >= 16 ? 0xffff : (__mmask16)((1u << (n - t)) - 1);
        __m512 share = _mm512_maskz_mov_ps(here, exp_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + t), by, top)));
        sum = _mm512_add_ps(sum, share);
        _mm256_storeu_si256((void *)(shares + t), to_bf16(share));
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

/* 32 numbers of what `n_heads` heads see (a constant where this is called): values of two tokens at a time, interleaved for all of them. */
INTO_CALLER void some_values(const bf16 *values, int64_t width, int64_t n, const bf16 *shares, int64_t padded, const int n_heads, const float *inverse,
                             uint32_t *to, int64_t to_stride) {
    const __m512i low_16 = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high_16 = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    __m512 low[4], high[4];
    for (int h = 0; h < n_heads; h++) low[h] = high[h] = _mm512_setzero_ps();
    for (int64_t t = 0; t < n; t += 2, values += 2 * width) {
        __m512i first = _mm512_loadu_si512(values), second = _mm512_loadu_si512(values + (t + 1 < n ? width : 0)); /* the share of what is not there is 0 */
        __m512i lows = _mm512_unpacklo_epi16(first, second), highs = _mm512_unpackhi_epi16(first, second);
        for (int h = 0; h < n_heads; h++) {
            int32_t two;
            memcpy(&two, shares + h * padded + t, 4);
            low[h] = _mm512_dpbf16_ps(low[h], (__m512bh)lows, (__m512bh)_mm512_set1_epi32(two));
            high[h] = _mm512_dpbf16_ps(high[h], (__m512bh)highs, (__m512bh)_mm512_set1_epi32(two));
        }
    }
    for (int h = 0; h < n_heads; h++) {
        const __m512 by = _mm512_set1_ps(inverse[h]);
        bf16 answer[32];
        _mm256_storeu_si256((void *)answer, to_bf16(_mm512_mul_ps(_mm512_permutex2var_ps(low[h], low_16, high[h]), by)));
        _mm256_storeu_si256((void *)(answer + 16), to_bf16(_mm512_mul_ps(_mm512_permutex2var_ps(low[h], high_16, high[h]), by)));
        for (int64_t k = 0; k < 16; k++) memcpy(to + h * to_stride + k * GROUP, answer + 2 * k, 4);
    }
}

/* What the heads that share one head of keys see of one row's past. */
AMX static void attend(const Step *s, int64_t layer, int64_t key_head, int64_t row, const Own *own) {
    const Decoder *d = s->d;
    const int64_t width = d->head_width, n = s->position[row] + 1, padded = up(n, 16), sharing = d->heads / d->key_heads;
    const int64_t start = ((layer * d->key_heads + key_head) * s->past->n_places + s->first[row]) * width, head = key_head * sharing;
    const bf16 *keys = s->past->keys + start, *values = s->past->values + start;
    for (int64_t t = 0; t < n; t += 16) {
        for (int64_t i = 0; i < 16 * width; i += 32) _mm_prefetch((const char *)(values + t * width + i), _MM_HINT_T0); /* they are needed soon */
        some_scores(keys + t * width, n - t, s->queries + (row * d->heads + head) * width, width, sharing, own->scores + t, padded);
    }
    for (int64_t h = 0; h < sharing; h += 4) {
        float inverse[4];
        const int64_t n_heads = sharing - h < 4 ? sharing - h : 4;
        for (int64_t k = 0; k < n_heads; k++) inverse[k] = softmax(own->scores + (h + k) * padded, n, d->scale, own->shares + k * padded);
        uint32_t *to = s->seen + ((row / GROUP) * (d->heads * width / 2) + (head + h) * width / 2) * GROUP + row % GROUP;
        for (int64_t i = 0; i < width; i += 32) {
#define OF(n_heads) some_values(values + i, width, n, own->shares, padded, n_heads, inverse, to + i / 2 * GROUP, width / 2 * GROUP)
            if (n_heads == 1) OF(1);
            else if (n_heads == 2) OF(2);
            else if (n_heads == 3) OF(3);
            else OF(4);
        }
    }
}

/* 32 outputs of a projection back to the width of the trunk, added to it. */
AMX static void add_to_trunk(const Step *s, const Projection *p, const Thin *t, int64_t i, int64_t inputs, const uint32_t *input, const Own *own) {
    float sums[2][32 * GROUP];
    for (int64_t g = 0; g < s->n_groups; g += 2) {
        int both = g + 1 < s->n_groups;
        outputs(p, i, p, i + 16, inputs, input + g * (inputs / 2) * GROUP, own->low + g * (t->rank / 2) * GROUP, t->rank, both, sums[0], sums[1]);
        for (int k = 0; k <= both; k++) {
            float *x = s->x + ((g + k) * s->d->width + i) * GROUP;
            for (int64_t j = 0; j < 32 * GROUP; j += GROUP) _mm512_storeu_ps(x + j, _mm512_add_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(sums[k] + j)));
        }
    }
}

/* 1 / (1 + exp(-x)), exact at both ends. */
INTO_CALLER __m512 sigmoid(__m512 x) {
    __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x))); /* of the negative one: exp_ps is made for these */
    __m512 small = _mm512_div_ps(e, _mm512_add_ps(_mm512_set1_ps(1.0f), e)), large = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    return _mm512_mask_mov_ps(large, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), small);
}

INTO_CALLER __m512 activated(int64_t kind, __m512 x) {
    if (kind == SILU) return _mm512_mul_ps(x, sigmoid(x));
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x); /* 0.5 x (1 + tanh(u)) = x sigmoid(2 u) */
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_set1_ps(1.5957691216f), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x))));
}

/* 16 numbers of the input of `down`. */
AMX static void gated(const Step *s, const Layer *l, int64_t i, const Own *own) {
    const Decoder *d = s->d;
    const int64_t rank = l->of_mlp.rank;
    float sums[2][32 * GROUP];
    for (int64_t g = 0; g < s->n_groups; g += 2) {
        int both = g + 1 < s->n_groups;
        outputs(&l->gate, i, &l->up, i, d->width, own->normed + g * (d->width / 2) * GROUP, own->low + g * (rank / 2) * GROUP, rank, both, sums[0], sums[1]);
        for (int k = 0; k <= both; k++) {
            for (int64_t j = 0; j < 16 * GROUP; j += GROUP)
                _mm512_storeu_ps(sums[k] + j, _mm512_mul_ps(activated(d->activation, _mm512_loadu_ps(sums[k] + j)), _mm512_loadu_ps(sums[k] + 16 * GROUP + j)));
            pairs_of(sums[k], 16, s->inner + ((g + k) * d->feed_forward + i) / 2 * GROUP);
        }
    }
}

/* 32 logits of each row from word `i` on: written, or compared with the largest so far. What is not finite wins and stays. */
AMX static void some_logits(const Step *s, int64_t i, const Own *own) {
    const Decoder *d = s->d;
    float sums[2][32 * GROUP];
    for (int64_t g = 0; g < s->n_groups; g += 2) {
        int both = g + 1 < s->n_groups;
        outputs(&d->head, i, &d->head, i + 16, d->width, own->normed + g * (d->width / 2) * GROUP, own->low, 0, both, sums[0], sums[1]);
        for (int k = 0; k <= both; k++) {
            __m512 most = _mm512_loadu_ps(own->most + (g + k) * GROUP);
            __m512i word = _mm512_loadu_si512(own->word + (g + k) * GROUP);
            for (int64_t j = 0; j < 32; j++) {
                __m512 x = _mm512_loadu_ps(sums[k] + j * GROUP);
                __mmask16 larger = _mm512_cmp_ps_mask(x, most, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(most, most, _CMP_ORD_Q);
                most = _mm512_mask_mov_ps(most, larger, x);
                word = _mm512_mask_mov_epi32(word, larger, _mm512_set1_epi32((int)(i + j)));
            }
            _mm512_storeu_ps(own->most + (g + k) * GROUP, most);
            _mm512_storeu_si512(own->word + (g + k) * GROUP, word);
            for (int64_t half = 0; s->logits && half < 2; half++) {
                float turned[16 * 16];
                transpose16((const uint32_t *)(sums[k] + half * 16 * GROUP), GROUP, (uint32_t *)turned, 16);
                for (int64_t r = 0, row = (g + k) * GROUP; r < GROUP && row < s->n_rows; r++, row++)
                    memcpy(s->logits + row * d->n_words + i + half * 16, turned + r * 16, 64);
            }
        }
    }
}

/* --- the step ---------------------------------------------------------------------------------------------------------------------- */

AMX static int64_t shared_bytes(const Decoder *d, const Past *past, int64_t n_rows, Step *s, char *at) {
    char *begin = at;
    int64_t columns = s->n_groups * GROUP;
    s->x = take(&at, columns * d->width * 4), s->cos = take(&at, columns * past->turned * 4), s->sin = take(&at, columns * past->turned * 4);
    s->queries = take(&at, n_rows * d->heads * d->head_width * 2);
    s->seen = take(&at, columns * d->heads * d->head_width * 2), s->inner = take(&at, columns * d->feed_forward * 2);
    return at - begin;
}

AMX static int64_t own_bytes(const Decoder *d, int64_t n_groups, int64_t longest, Own *own, char *at) {
    char *begin = at;
    int64_t columns = n_groups * GROUP;
    own->normed = take(&at, columns * d->width * 2), own->low = take(&at, columns * d->most_rank * 2);
    own->values = take(&at, 2 * GROUP * d->head_width * 4), own->scores = take(&at, d->heads / d->key_heads * up(longest, 16) * 4);
    own->shares = take(&at, 4 * up(longest, 16) * 2);
    own->most = take(&at, columns * 4), own->word = take(&at, columns * 4);
    return at - begin;
}

/* embedded: [rows, width]; word: int64 [rows]; most: float32 [rows], the word's logit, or what is not finite. 0, or 1 if there was no memory. */
int tunesmith_decode_step(int threads, const Decoder *d, const Past *past, int64_t n_rows, const int64_t *first, const int64_t *position,
                          const bf16 *embedded, float *logits, int64_t *word, float *most) {
    Step s = {d, past, n_rows, (n_rows + GROUP - 1) / GROUP, first, position, 0, 0, 0, 0, 0, 0, logits};
    Own nobody;
    const int64_t columns = s.n_groups * GROUP, attended = d->heads * d->head_width;
    int64_t longest = 0;
    for (int64_t r = 0; r < n_rows; r++) longest = position[r] + 1 > longest ? position[r] + 1 : longest;
    const int64_t bytes = shared_bytes(d, past, n_rows, &s, 0), each = (own_bytes(d, s.n_groups, longest, &nobody, 0) + 63) / 64 * 64;
    char *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + threads * each), *of_threads = memory + (bytes + 63) / 64 * 64;
    if (!memory) return 1;
    memset(memory, 0, bytes); /* columns without a row compute with zeros */
    shared_bytes(d, past, n_rows, &s, memory);
    for (int64_t r = 0; r < n_rows; r++) most[r] = -INFINITY, word[r] = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Own own;
        own_bytes(d, s.n_groups, longest, &own, of_threads + omp_get_thread_num() * each);
        for (int64_t c = 0; c < columns; c++) own.most[c] = -INFINITY, own.word[c] = 0;
        set_up();
#pragma omp for
        for (int64_t g = 0; g < s.n_groups; g++) take_in(&s, embedded, g);
        for (int64_t layer = 0; layer < d->n_layers; layer++) {
            const Layer *l = d->layers + layer;
            norm(&s, l->before_attention, own.normed), thin(&s, &l->of_attention, d->width, own.normed, own.low);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < d->heads + 2 * d->key_heads; unit++) one_head(&s, layer, unit, &own);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < d->key_heads * n_rows; unit++) attend(&s, layer, unit / n_rows, unit % n_rows, &own);
            thin(&s, &l->of_out, attended, s.seen, own.low);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < d->width; i += 32) add_to_trunk(&s, &l->out, &l->of_out, i, attended, s.seen, &own);
            norm(&s, l->before_mlp, own.normed), thin(&s, &l->of_mlp, d->width, own.normed, own.low);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < d->feed_forward; i += 16) gated(&s, l, i, &own);
            thin(&s, &l->of_down, d->feed_forward, s.inner, own.low);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < d->width; i += 32) add_to_trunk(&s, &l->down, &l->of_down, i, d->feed_forward, s.inner, &own);
        }
        norm(&s, d->last_norm, own.normed);
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < (d->n_words + 31) / 32; block++) /* the last one ends with the last word */
            some_logits(&s, block * 32 + 32 <= d->n_words ? block * 32 : d->n_words - 32, &own);
#pragma omp critical
        for (int64_t r = 0; r < n_rows; r++) { /* of equals the first */
            int larger = own.most[r] > most[r] || (own.most[r] == most[r] && own.word[r] < word[r]);
            if (most[r] == most[r] && (larger || own.most[r] != own.most[r])) most[r] = own.most[r], word[r] = own.word[r];
        }
        tear_down();
    }
    free(memory);
    return 0;
}
#else
int tunesmith_decode_step(void) { return 1; }
#endif
