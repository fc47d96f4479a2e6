/* Causal attention within documents that stand side by side, forward and backward, on processors with AMX: the compiled twin of causal_attention.py,
   whose docstrings are the contract.

   A task is one document and one head of keys with the heads of queries that share it; or several documents that continue the same one, one
   after another: the keys and values that they see of it are copied once, and lie before each one's own as if they were its first. Gradients
   of those add up in the task, in float, and over tasks in the order of the row, so that threads do not change a bit.

   What the matrix unit reads is copied into three forms before: rows (its left operand), pairs of neighbouring columns side by side ("across": the right operand of A Bᵀ), and pairs of neighbouring
   rows interleaved ("down": the right operand of A B). Scores of 32 queries or 32 keys lie in the second-level cache, never in memory.

   Backward works on transposed scores (a row for each key): the sums of the softmax then lie along the lanes, and both left operands are there
   as they are computed. Source: Dao et al. 2022 (arXiv 2205.14135), whose recomputation and row sums these are. */

#include "amx.h"

#ifdef AMX
#define BLOCK 32 /* queries or keys that are worked on at a time: two tiles */
#define TOGETHER 8 /* documents that continue the same one, in a task: fewer copy it more often, more leave threads without work */

typedef struct {
    int64_t n_heads, n_key_heads, width, padded; /* padded: width up to a multiple of 32 */
    int64_t window;                              /* keys that a query sees, itself among them; 0: all before it */
    float scale;
} Shape;

typedef struct {
    bf16 *at;
    int64_t stride; /* from a token to the next */
} Rows;

/* Documents that are worked on one after another: [first, end), which all continue `parent`, or are one that continues none (-1). */
typedef struct {
    int64_t first, end, parent;
    int64_t sums; /* where in `Call.sums` its gradients of a shared document's keys and values go; -1: it has none */
} Unit;

typedef struct {
    const int32_t *starts;
    int64_t n_tokens;
    Rows q, k, v, out, d_out, dq, dk, dv;
    float *lse;
    float *sums; /* per unit and head of keys: dk, dv [tokens of the shared document, padded] */
} Call;

/* n tokens of one head as rows [n_padded, padded]; what is beyond is zero. */
INTO_CALLER void copy_rows(const bf16 *from, int64_t stride, int64_t n, int64_t n_padded, const Shape *s, bf16 *to) {
    for (int64_t t = 0; t < n_padded; t++, to += s->padded) {
        int64_t filled = t < n ? s->width : 0;
        memcpy(to, from + t * stride, filled * sizeof(bf16));
        memset(to + filled, 0, (s->padded - filled) * sizeof(bf16));
    }
}

/* Rows [n, padded] → for every 16 tokens [padded / 2][16] pairs of neighbouring columns. */
INTO_CALLER void pack_across(const bf16 *rows, int64_t n, int64_t padded, uint32_t *to) {
    for (int64_t t = 0; t < n; t += 16)
        for (int64_t p = 0; p < padded / 2; p += 16)
            transpose16((const uint32_t *)(rows + t * padded) + p, padded / 2, to + t * (padded / 2) + p * 16, 16);
}

/* Rows [n, padded] → [n / 2][padded] pairs of neighbouring rows. */
INTO_CALLER void pack_down(const bf16 *rows, int64_t n, int64_t padded, uint32_t *to) {
    for (int64_t t = 0; t < n; t += 2)
        for (int64_t d = 0; d < padded; d += 16) {
            __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(rows + t * padded + d)));
            __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(rows + (t + 1) * padded + d)));
            _mm512_storeu_si512(to + t / 2 * padded + d, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
}

/* [32, 32] of A Bᵀ into `to`: A two rows of tiles [32, padded], B packed across, 32 tokens. */
INTO_CALLER void product_across(const bf16 *a, const uint32_t *b, int64_t padded, float *to, int64_t to_stride) {
    ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    for (int64_t d = 0; d < padded; d += 32) {
        LOAD(4, a + d, padded * 2); LOAD(5, a + 16 * padded + d, padded * 2);
        LOAD(6, b + d / 2 * 16, 64); LOAD(7, b + (padded / 2) * 16 + d / 2 * 16, 64);
        MULTIPLY(0, 4, 6); MULTIPLY(1, 4, 7); MULTIPLY(2, 5, 6); MULTIPLY(3, 5, 7);
    }
    STORE(0, to, to_stride * 4); STORE(1, to + 16, to_stride * 4);
    STORE(2, to + 16 * to_stride, to_stride * 4); STORE(3, to + 16 * to_stride + 16, to_stride * 4);
}

/* [32, 32] of A B, added to `to` or instead of it: A [32, n] with its stride, B packed down, 32 columns from `b` on. */
INTO_CALLER void product_down(const bf16 *a, int64_t a_stride, const uint32_t *b, int64_t n, int64_t padded, float *to, int64_t to_stride, int add) {
    if (add) {
        LOAD(0, to, to_stride * 4); LOAD(1, to + 16, to_stride * 4);
        LOAD(2, to + 16 * to_stride, to_stride * 4); LOAD(3, to + 16 * to_stride + 16, to_stride * 4);
    } else {
        ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    }
    for (int64_t t = 0; t < n; t += 32, b += 16 * padded) {
        LOAD(4, a + t, a_stride * 2); LOAD(5, a + 16 * a_stride + t, a_stride * 2);
        LOAD(6, b, padded * 4); LOAD(7, b + 16, padded * 4);
        MULTIPLY(0, 4, 6); MULTIPLY(1, 4, 7); MULTIPLY(2, 5, 6); MULTIPLY(3, 5, 7);
    }
    STORE(0, to, to_stride * 4); STORE(1, to + 16, to_stride * 4);
    STORE(2, to + 16 * to_stride, to_stride * 4); STORE(3, to + 16 * to_stride + 16, to_stride * 4);
}

/* Of each of 32 queries from `first` on, before which all see `before` keys more: shares of the keys from `low` on as bf16 [32, n_keys], not
   yet divided by their sum; 1 / sum; lse. */
INTO_CALLER void softmax_rows(const float *scores, int64_t n_keys, int64_t first, int64_t before, int64_t low, int64_t length, const Shape *s,
                              bf16 *shares, float *inverse, float *lse) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 scale = _mm512_set1_ps(s->scale), lowest = _mm512_set1_ps(-INFINITY);
    for (int64_t r = 0; r < BLOCK; r++, scores += n_keys, shares += n_keys) {
        int64_t query = first + r, past = before + query + 1; /* the first key that it does not see */
        int64_t begin = s->window && past > s->window ? past - s->window - low : 0, end = past - low;
        if (query >= length) {
            memset(shares, 0, n_keys * sizeof(bf16));
            continue;
        }
        const __m512i begins = _mm512_set1_epi32((int)begin), ends = _mm512_set1_epi32((int)end);
        __m512 most = lowest;
        for (int64_t j = begin & ~15; j < end; j += 16) {
            __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)j));
            __mmask16 sees = _mm512_cmpge_epi32_mask(at, begins) & _mm512_cmplt_epi32_mask(at, ends);
            most = _mm512_mask_max_ps(most, sees, most, _mm512_loadu_ps(scores + j));
        }
        float top = _mm512_reduce_max_ps(most) * s->scale;
        const __m512 tops = _mm512_set1_ps(top);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t j = 0; j < n_keys; j += 16) {
            __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)j));
            __mmask16 sees = _mm512_cmpge_epi32_mask(at, begins) & _mm512_cmplt_epi32_mask(at, ends);
            __m512 share = _mm512_setzero_ps();
            if (sees) share = _mm512_maskz_mov_ps(sees, exp_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j), scale, tops)));
            sum = _mm512_add_ps(sum, share);
            _mm256_storeu_si256((void *)(shares + j), to_bf16(share));
        }
        float total = _mm512_reduce_add_ps(sum);
        inverse[r] = 1.0f / total;
        lse[query] = top + logf(total);
    }
}

/* One head of queries of a document that sees `before` keys of another one first; keys and values of both packed. */
INTO_CALLER void forward_head(Rows q, const uint32_t *keys, const uint32_t *values, int64_t before, int64_t length, const Shape *s, Rows out,
                              float *lse, bf16 *queries, float *scores, bf16 *shares) {
    const int64_t padded = s->padded, n_all = up(before + length, BLOCK);
    float inverse[BLOCK], part[BLOCK * BLOCK];
    for (int64_t first = 0; first < length; first += BLOCK) {
        int64_t n = length - first < BLOCK ? length - first : BLOCK;
        int64_t past = before + first + 1, low = s->window && past > s->window ? (past - s->window) & ~(int64_t)31 : 0;
        int64_t end = up(before + first + BLOCK, BLOCK), n_keys = (end < n_all ? end : n_all) - low;
        copy_rows(q.at + first * q.stride, q.stride, n, BLOCK, s, queries);
        for (int64_t j = 0; j < n_keys; j += BLOCK) product_across(queries, keys + (low + j) * (padded / 2), padded, scores + j, n_keys);
        softmax_rows(scores, n_keys, first, before, low, length, s, shares, inverse, lse);
        for (int64_t d = 0; d < padded; d += 32) {
            product_down(shares, n_keys, values + low / 2 * padded + d, n_keys, padded, part, BLOCK, 0);
            for (int64_t r = 0; r < n; r++) {
                bf16 *to = out.at + (first + r) * out.stride + d;
                const __m512 by = _mm512_set1_ps(inverse[r]);
                for (int64_t c = 0; c < 32 && d + c < s->width; c += 16) {
                    int64_t left = s->width - d - c;
                    __mmask16 here = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
                    _mm256_mask_storeu_epi16(to + c, here, to_bf16(_mm512_mul_ps(_mm512_loadu_ps(part + r * BLOCK + c), by)));
                }
            }
        }
    }
}

/* Gradients of one head of queries: dq is written; dk and dv of all keys, those of the document before first, are added to.

   keys_transposed   [padded, `stride`] */
INTO_CALLER void backward_head(Rows q, const bf16 *key_rows, const bf16 *value_rows, const bf16 *keys_transposed, int64_t stride, int64_t before,
                               int64_t length, const Shape *s, Rows out, Rows d_out, const float *lse, Rows dq, float *dk, float *dv, bf16 *rows,
                               uint32_t *q_across, uint32_t *q_down, uint32_t *do_across, uint32_t *do_down, float *dq_transposed,
                               float *sums, float *lses, float *scores, float *d_scores, bf16 *shares, bf16 *d_shares, uint32_t *d_pairs) {
    const int64_t padded = s->padded, n_padded = up(length, BLOCK), width = s->width;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 scale = _mm512_set1_ps(s->scale);
    copy_rows(q.at, q.stride, length, n_padded, s, rows);
    pack_across(rows, n_padded, padded, q_across), pack_down(rows, n_padded, padded, q_down);
    copy_rows(d_out.at, d_out.stride, length, n_padded, s, rows);
    pack_across(rows, n_padded, padded, do_across), pack_down(rows, n_padded, padded, do_down);
    for (int64_t t = 0; t < n_padded; t++) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t d = 0; t < length && d < width; d += 16) {
            __mmask16 here = width - d >= 16 ? 0xffff : (__mmask16)((1u << (width - d)) - 1);
            __m512 y = to_float(_mm256_maskz_loadu_epi16(here, out.at + t * out.stride + d));
            sum = _mm512_fmadd_ps(y, to_float(_mm256_loadu_si256((const void *)(rows + t * padded + d))), sum);
        }
        sums[t] = _mm512_reduce_add_ps(sum);
        lses[t] = t < length ? lse[t] : 0;
    }
    memset(dq_transposed, 0, n_padded * padded * sizeof(float));
    for (int64_t key = 0; key < up(before + length, BLOCK); key += BLOCK) { /* queries from `from` on see these keys, up to `end` by a window */
        int64_t from = key > before ? (key - before) & ~(int64_t)31 : 0, last = key - before + BLOCK - 1 + s->window;
        int64_t end = s->window && last < n_padded ? up(last > 0 ? last : 0, BLOCK) : n_padded, n = end - from;
        if (n <= 0) continue;
        for (int64_t i = 0; i < n; i += BLOCK) {
            product_across(key_rows + key * padded, q_across + (from + i) * (padded / 2), padded, scores + i, n);
            product_across(value_rows + key * padded, do_across + (from + i) * (padded / 2), padded, d_scores + i, n);
        }
        for (int64_t r = 0; r < BLOCK; r += 2) {
            for (int64_t i = 0; i < n; i += 16) {
                __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(from + i)));
                __m512 lse_16 = _mm512_loadu_ps(lses + from + i), sum_16 = _mm512_loadu_ps(sums + from + i);
                __m256i pair[2];
                for (int64_t two = 0; two < 2; two++) {
                    int64_t own = key + r + two - before, past = s->window && own + s->window < length ? own + s->window : length;
                    __mmask16 sees = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32((int)own)) & _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((int)past));
                    __m512 share = _mm512_setzero_ps(), d_share = _mm512_setzero_ps();
                    if (sees) {
                        share = _mm512_maskz_mov_ps(sees, exp_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + (r + two) * n + i), scale, lse_16)));
                        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(d_scores + (r + two) * n + i), sum_16);
                        d_share = _mm512_maskz_mul_ps(sees, _mm512_mul_ps(share, d), scale);
                    }
                    _mm256_storeu_si256((void *)(shares + (r + two) * n + i), to_bf16(share));
                    pair[two] = to_bf16(d_share);
                    _mm256_storeu_si256((void *)(d_shares + (r + two) * n + i), pair[two]);
                }
                __m512i first = _mm512_cvtepu16_epi32(pair[0]), second = _mm512_slli_epi32(_mm512_cvtepu16_epi32(pair[1]), 16);
                _mm512_storeu_si512(d_pairs + r / 2 * n + i, _mm512_or_si512(first, second));
            }
        }
        for (int64_t d = 0; d < padded; d += 32) {
            product_down(shares, n, do_down + from / 2 * padded + d, n, padded, dv + key * padded + d, padded, 1);
            product_down(d_shares, n, q_down + from / 2 * padded + d, n, padded, dk + key * padded + d, padded, 1);
        }
        for (int64_t d = 0; d < padded; d += 32)
            for (int64_t i = 0; i < n; i += 32)
                product_down(keys_transposed + d * stride + key, stride, d_pairs + i, 32, n, dq_transposed + d * n_padded + from + i, n_padded, 1);
    }
    for (int64_t t = 0; t < n_padded; t += 16)
        for (int64_t d = 0; d < width; d += 16) {
            uint32_t turned[256];
            transpose16((const uint32_t *)dq_transposed + d * n_padded + t, n_padded, turned, 16);
            __mmask16 here = width - d >= 16 ? 0xffff : (__mmask16)((1u << (width - d)) - 1);
            for (int64_t i = 0; i < 16 && t + i < length; i++)
                _mm256_mask_storeu_epi16(dq.at + (t + i) * dq.stride + d, here, to_bf16(_mm512_loadu_ps((const float *)turned + i * 16)));
        }
}

INTO_CALLER Rows head_of(Rows x, int64_t token, int64_t head, const Shape *s) {
    Rows here = {x.at + token * x.stride + head * s->width, x.stride};
    return here;
}

INTO_CALLER int64_t length_of(const int32_t *starts, int64_t document) { return document < 0 ? 0 : starts[document + 1] - starts[document]; }

INTO_CALLER int64_t longest_of(const Unit *u, const int32_t *starts) {
    int64_t longest = 0;
    for (int64_t i = u->first; i < u->end; i++) longest = length_of(starts, i) > longest ? length_of(starts, i) : longest;
    return longest;
}

/* Keys and values of a document's one head, as `copy_rows` copies them. */
INTO_CALLER void copy_keys(const Call *c, int64_t document, int64_t length, int64_t n_padded, int64_t group, const Shape *s, bf16 *keys, bf16 *values) {
    int64_t start = c->starts[document];
    copy_rows(head_of(c->k, start, group, s).at, c->k.stride, length, n_padded, s, keys);
    copy_rows(head_of(c->v, start, group, s).at, c->v.stride, length, n_padded, s, values);
}

AMX static void forward_task(const Shape *s, const Call *c, const Unit *u, int64_t group, char *scratch) {
    const int64_t padded = s->padded, share = s->n_heads / s->n_key_heads, before = length_of(c->starts, u->parent);
    const int64_t most = up(before + longest_of(u, c->starts), BLOCK);
    bf16 *key_rows = take(&scratch, most * padded * 2), *value_rows = take(&scratch, most * padded * 2);
    bf16 *queries = take(&scratch, BLOCK * padded * 2), *shares = take(&scratch, BLOCK * most * 2);
    uint32_t *keys = take(&scratch, most * padded * 2), *values = take(&scratch, most * padded * 2);
    float *scores = take(&scratch, BLOCK * most * 4);
    if (before) copy_keys(c, u->parent, before, before, group, s, key_rows, value_rows);
    for (int64_t i = u->first; i < u->end; i++) {
        int64_t start = c->starts[i], length = length_of(c->starts, i), n = up(before + length, BLOCK);
        int64_t from = i > u->first ? before & ~(int64_t)31 : 0; /* what lies before it is packed already */
        copy_keys(c, i, length, n - before, group, s, key_rows + before * padded, value_rows + before * padded);
        pack_across(key_rows + from * padded, n - from, padded, keys + from * (padded / 2));
        pack_down(value_rows + from * padded, n - from, padded, values + from / 2 * padded);
        for (int64_t h = group * share; h < (group + 1) * share; h++)
            forward_head(head_of(c->q, start, h, s), keys, values, before, length, s, head_of(c->out, start, h, s), c->lse + h * c->n_tokens + start,
                         queries, scores, shares);
    }
}

/* Rows [n, padded] → [padded, stride], from the token `from` on, a multiple of 16. */
INTO_CALLER void transpose_rows(const bf16 *rows, int64_t from, int64_t n, int64_t padded, bf16 *to, int64_t stride) {
    for (int64_t t = from; t < n; t += 16)
        for (int64_t d = 0; d < padded; d += 32) { /* pairs of columns are turned, then parted */
            uint32_t pairs[256];
            transpose16((const uint32_t *)(rows + t * padded + d), padded / 2, pairs, 16);
            for (int64_t p = 0; p < 16; p++) {
                __m512i both = _mm512_loadu_si512(pairs + p * 16);
                _mm256_storeu_si256((void *)(to + (d + 2 * p) * stride + t), _mm512_cvtepi32_epi16(both));
                _mm256_storeu_si256((void *)(to + (d + 2 * p + 1) * stride + t), _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
            }
        }
}

/* n rows of floats [n, padded] as bf16 rows of one head. */
INTO_CALLER void write_rows(const float *from, int64_t n, const Shape *s, Rows to) {
    for (int64_t t = 0; t < n; t++)
        for (int64_t d = 0; d < s->width; d += 16) {
            _mm256_mask_storeu_epi16(to.at + t * to.stride + d, upto(s->width - d), to_bf16(_mm512_loadu_ps(from + t * s->padded + d)));
        }
}

AMX static void backward_task(const Shape *s, const Call *c, const Unit *u, int64_t group, char *scratch) {
    const int64_t padded = s->padded, share = s->n_heads / s->n_key_heads, before = length_of(c->starts, u->parent);
    const int64_t longest = longest_of(u, c->starts), n_queries = up(longest, BLOCK), most = up(before + longest, BLOCK), bytes = n_queries * padded * 2;
    bf16 *rows = take(&scratch, bytes), *key_rows = take(&scratch, most * padded * 2), *value_rows = take(&scratch, most * padded * 2);
    bf16 *turned = take(&scratch, most * padded * 2);
    uint32_t *q_across = take(&scratch, bytes), *q_down = take(&scratch, bytes), *do_across = take(&scratch, bytes), *do_down = take(&scratch, bytes);
    float *dq_turned = take(&scratch, 2 * bytes), *dk_sum = take(&scratch, most * padded * 4), *dv_sum = take(&scratch, most * padded * 4);
    float *sums = take(&scratch, n_queries * 4), *lses = take(&scratch, n_queries * 4);
    float *scores = take(&scratch, BLOCK * n_queries * 4), *d_scores = take(&scratch, BLOCK * n_queries * 4);
    bf16 *shares = take(&scratch, BLOCK * n_queries * 2), *d_shares = take(&scratch, BLOCK * n_queries * 2);
    uint32_t *d_pairs = take(&scratch, BLOCK * n_queries * 2);
    if (before) copy_keys(c, u->parent, before, before, group, s, key_rows, value_rows);
    memset(dk_sum, 0, most * padded * sizeof(float)), memset(dv_sum, 0, most * padded * sizeof(float));
    for (int64_t i = u->first; i < u->end; i++) {
        int64_t start = c->starts[i], length = length_of(c->starts, i), n = up(before + length, BLOCK);
        copy_keys(c, i, length, n - before, group, s, key_rows + before * padded, value_rows + before * padded);
        transpose_rows(key_rows, i > u->first ? before & ~(int64_t)31 : 0, n, padded, turned, most);
        for (int64_t h = group * share; h < (group + 1) * share; h++)
            backward_head(head_of(c->q, start, h, s), key_rows, value_rows, turned, most, before, length, s, head_of(c->out, start, h, s),
                          head_of(c->d_out, start, h, s), c->lse + h * c->n_tokens + start, head_of(c->dq, start, h, s), dk_sum, dv_sum, rows, q_across,
                          q_down, do_across, do_down, dq_turned, sums, lses, scores, d_scores, shares, d_shares, d_pairs);
        if (u->sums >= 0 && u->parent < 0) break; /* others continue this document: written when theirs are added */
        float *dk_own = dk_sum + before * padded, *dv_own = dv_sum + before * padded;
        write_rows(dk_own, length, s, head_of(c->dk, start, group, s)), write_rows(dv_own, length, s, head_of(c->dv, start, group, s));
        memset(dk_own, 0, (n - before) * padded * sizeof(float)), memset(dv_own, 0, (n - before) * padded * sizeof(float));
    }
    if (u->sums >= 0) {
        int64_t n = u->parent < 0 ? longest : before;
        float *to = c->sums + (u->sums * s->n_key_heads + 2 * n * group) * padded;
        memcpy(to, dk_sum, n * padded * sizeof(float)), memcpy(to + n * padded, dv_sum, n * padded * sizeof(float));
    }
}

/* Gradients of the keys and values of a shared document, which the unit `own` is: its own and those of all that continue it, in their order. */
AMX static void add_up(const Shape *s, const Call *c, const Unit *units, int64_t n_units, int64_t own, int64_t group) {
    int64_t document = units[own].first, n = length_of(c->starts, document), size = 2 * n * s->padded;
    float *sum = c->sums + (units[own].sums * s->n_key_heads + 2 * n * group) * s->padded;
    for (int64_t i = own + 1; i < n_units; i++) {
        if (units[i].parent != document) continue;
        const float *more = c->sums + (units[i].sums * s->n_key_heads + 2 * n * group) * s->padded;
        for (int64_t j = 0; j < size; j += 16) _mm512_storeu_ps(sum + j, _mm512_add_ps(_mm512_loadu_ps(sum + j), _mm512_loadu_ps(more + j)));
    }
    write_rows(sum, n, s, head_of(c->dk, c->starts[document], group, s));
    write_rows(sum + n * s->padded, n, s, head_of(c->dv, c->starts[document], group, s));
}

static int64_t rounded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

static int64_t scratch_bytes(const Shape *s, int64_t n_queries, int64_t n_keys) {
    return n_queries * (s->padded * 2 * 7 + BLOCK * 16 + 8) + n_keys * (s->padded * 2 * 7 + BLOCK * 6) + BLOCK * s->padded * 2 + 32 * 128;
}

/* 1 if this processor has what the functions below use and the system lets this process use it. */
int tunesmith_has_amx(void) {
    __builtin_cpu_init();
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    int tile = (d >> 24) & 1, bf = (d >> 22) & 1;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    int converts = (a >> 5) & 1;
    if (!tile || !bf || !converts || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

/* The documents as units; returns how many there are, -1 if one continues what is not before it or continues another itself. n_sums: tokens whose gradients of keys and values wait to be added. */
static int64_t units_of(const int32_t *starts, const int32_t *parents, int64_t n_documents, Unit *units, int64_t *n_sums) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_documents; i++) {
        int64_t parent = parents ? parents[i] : -1;
        if (parent >= i || (parent >= 0 && parents[parent] >= 0)) return -1;
        if (parent >= 0 && n && units[n - 1].parent == parent && units[n - 1].end - units[n - 1].first < TOGETHER) {
            units[n - 1].end = i + 1;
            continue;
        }
        Unit unit = {i, i + 1, parent, -1};
        units[n++] = unit;
        if (parent < 0) continue;
        for (int64_t k = 0; k < 2; k++) { /* room for its sums, and once for those of the document that it continues */
            Unit *u = &units[n - 1];
            if (k)
                for (u = units; u->parent >= 0 || u->first != parent;) u++;
            if (u->sums < 0) u->sums = *n_sums, *n_sums += 2 * (starts[parent + 1] - starts[parent]);
        }
    }
    return n;
}

static int run(int backward, int threads, const Shape *s, const int32_t *parents, int64_t n_documents, Call *c) {
    Unit *units = malloc((n_documents + 1) * sizeof(Unit));
    if (!units) return 1;
    int64_t n_sums = 0, n_units = units_of(c->starts, parents, n_documents, units, &n_sums), longest = 0, most = 0;
    if (n_units < 0) {
        free(units);
        return 2;
    }
    for (int64_t i = 0; i < n_documents; i++) {
        int64_t length = c->starts[i + 1] - c->starts[i], parent = parents ? parents[i] : -1;
        int64_t all = length + (parent < 0 ? 0 : c->starts[parent + 1] - c->starts[parent]);
        longest = length > longest ? length : longest, most = all > most ? all : most;
    }
    if (backward && n_sums) c->sums = malloc(n_sums * s->n_key_heads * s->padded * sizeof(float));
    const int begins = !(backward && n_sums) || c->sums;
    int failed = !begins;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        char *scratch = begins ? aligned_alloc(64, (scratch_bytes(s, rounded(longest), rounded(most)) + 63) / 64 * 64) : 0;
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        } else {
            set_up();
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < n_units * s->n_key_heads; task++) {
            if (!scratch) continue;
            if (backward)
                backward_task(s, c, units + task / s->n_key_heads, task % s->n_key_heads, scratch);
            else
                forward_task(s, c, units + task / s->n_key_heads, task % s->n_key_heads, scratch);
        }
        if (backward && n_sums) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < n_units * s->n_key_heads; task++) {
                const Unit *u = units + task / s->n_key_heads;
                if (scratch && u->sums >= 0 && u->parent < 0) add_up(s, c, units, n_units, u - units, task % s->n_key_heads);
            }
        }
        if (scratch) tear_down();
        free(scratch);
    }
    free(c->sums), free(units);
    return failed;
}

static Shape shape_of(int64_t n_heads, int64_t n_key_heads, int64_t width, int64_t window, float scale) {
    Shape s = {n_heads, n_key_heads, width, (width + 31) / 32 * 32, window, scale};
    return s;
}

int tunesmith_attention_forward(int threads, const int32_t *starts, const int32_t *parents, int64_t n_documents, int64_t n_heads,
                                int64_t n_key_heads, int64_t width, int64_t window, float scale, bf16 *q, int64_t q_stride, bf16 *k,
                                int64_t k_stride, bf16 *v, int64_t v_stride, bf16 *out, int64_t out_stride, float *lse) {
    Shape s = shape_of(n_heads, n_key_heads, width, window, scale);
    Call c = {.starts = starts, .n_tokens = starts[n_documents], .q = {q, q_stride}, .k = {k, k_stride}, .v = {v, v_stride},
              .out = {out, out_stride}, .lse = lse};
    return run(0, threads, &s, parents, n_documents, &c);
}

int tunesmith_attention_backward(int threads, const int32_t *starts, const int32_t *parents, int64_t n_documents, int64_t n_heads,
                                 int64_t n_key_heads, int64_t width, int64_t window, float scale, bf16 *q, int64_t q_stride, bf16 *k,
                                 int64_t k_stride, bf16 *v, int64_t v_stride, bf16 *out, int64_t out_stride, bf16 *d_out, int64_t d_out_stride,
                                 float *lse, bf16 *dq, int64_t dq_stride, bf16 *dk, int64_t dk_stride, bf16 *dv, int64_t dv_stride) {
    Shape s = shape_of(n_heads, n_key_heads, width, window, scale);
    Call c = {.starts = starts, .n_tokens = starts[n_documents], .q = {q, q_stride}, .k = {k, k_stride}, .v = {v, v_stride},
              .out = {out, out_stride}, .d_out = {d_out, d_out_stride}, .dq = {dq, dq_stride}, .dk = {dk, dk_stride}, .dv = {dv, dv_stride}, .lse = lse};
    return run(1, threads, &s, parents, n_documents, &c);
}
#else
int tunesmith_has_amx(void) { return 0; }
int tunesmith_attention_forward(void) { return 1; }
int tunesmith_attention_backward(void) { return 1; }
#endif
