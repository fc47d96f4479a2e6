/* The gradient of a weight, dyᵀ x, on processors with AMX: the compiled twin of weight_gradient.py, whose docstrings are the contract.

   The sum runs over tokens, and the matrix unit wants it to run along the rows of its left operand and in pairs of rows of its right one.
   dy is therefore transposed, and x interleaved by pairs of tokens, tile by tile into memory that is read in a straight line afterwards: x once, for
   all outputs; dy for some outputs at a time, so that what is read over and over stays in the second-level cache. Sums stay in float32. */

#include "amx.h"

#ifdef AMX
#define PANEL 32      /* outputs or inputs that are worked on at a time: two tiles */
#define TILE 256      /* dwords of a tile */
#define MOST_PANELS 4 /* of outputs in the cache at once */
#define TOKENS 2048   /* that are packed at a time */

/* 16 columns of 32 tokens → 16 rows, one for each column: a left operand. */
INTO_CALLER void transpose(const bf16 *from, int64_t stride, int64_t n, int64_t left, uint32_t *to) {
    uint32_t pairs[TILE] __attribute__((aligned(64)));
    interleave(from, stride, n, left, pairs);
    transpose16(pairs, 16, to, 16);
}

/* 32 tokens of `count` panels of columns, of which n are there: two tiles each, `size` dwords from a panel to the next. Whole rows are read, as
   memory likes it. */
#define PACK(NAME, TILE_OF)                                                                                                                  \
    AMX static void NAME(const bf16 *from, int64_t stride, int64_t n, int64_t left, int64_t count, int64_t size, uint32_t *to) {            \
        for (int64_t p = 0; p < count; p++, from += PANEL, n -= PANEL, to += size) {                                                        \
            TILE_OF(from, stride, n, left, to);                                                                                             \
            if (n > 16)                                                                                                                     \
                TILE_OF(from + 16, stride, n - 16, left, to + TILE);                                                                        \
            else                                                                                                                            \
                memset(to + TILE, 0, TILE * sizeof *to);                                                                                    \
        }                                                                                                                                   \
    }
PACK(pack_right, interleave)
PACK(pack_left, transpose)

/* [32, 32] sums over `steps` times 32 tokens into `to`, added to what is there if `add`. */
AMX static void sums(const uint32_t *left, const uint32_t *right, int64_t steps, float *to, int64_t stride, int add) {
    if (add) {
        LOAD(0, to, stride * 4); LOAD(1, to + 16, stride * 4);
        LOAD(2, to + 16 * stride, stride * 4); LOAD(3, to + 16 * stride + 16, stride * 4);
    } else {
        ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    }
    for (int64_t s = 0; s < steps; s++, left += 2 * TILE, right += 2 * TILE) {
        LOAD(4, left, 64); LOAD(6, right, 64); LOAD(7, right + TILE, 64); LOAD(5, left + TILE, 64);
        MULTIPLY(0, 4, 6); MULTIPLY(1, 4, 7); MULTIPLY(2, 5, 6); MULTIPLY(3, 5, 7);
    }
    STORE(0, to, stride * 4); STORE(1, to + 16, stride * 4);
    STORE(2, to + 16 * stride, stride * 4); STORE(3, to + 16 * stride + 16, stride * 4);
}

static int64_t panels(int64_t n) { return (n + PANEL - 1) / PANEL; }

/* A block of outputs, `first` and `count` panels, over tokens that are packed in `right`; `left`: room for the block. */
AMX static void block(const bf16 *dy, int64_t dy_stride, int64_t n_outputs, int64_t first, int64_t count, const uint32_t *right, int64_t n_inputs,
                      int64_t n_tokens, uint32_t *left, float *to, int add) {
    const int64_t steps = panels(n_tokens), size = steps * 2 * TILE;
    float edge[PANEL * PANEL] __attribute__((aligned(64)));
    set_up();
    for (int64_t s = 0; s < steps; s++) {
        if (s + 1 < steps)
            for (int64_t t = (s + 1) * 32; t < n_tokens && t < (s + 2) * 32; t++) /* rows are far apart: no processor guesses the next */
                for (int64_t c = 0; c < count * PANEL; c += 32) _mm_prefetch((const char *)(dy + t * dy_stride + first * PANEL + c), _MM_HINT_T0);
        pack_left(dy + s * 32 * dy_stride + first * PANEL, dy_stride, n_outputs - first * PANEL, n_tokens - s * 32, count, size, left + s * 2 * TILE);
    }
    for (int64_t k = 0; k < panels(n_inputs); k++)
        for (int64_t p = 0; p < count; p++) {
            const int64_t n = (first + p) * PANEL, rows = n_outputs - n, columns = n_inputs - k * PANEL;
            float *at = to + n * n_inputs + k * PANEL;
            if (rows >= PANEL && columns >= PANEL) {
                sums(left + p * size, right + k * size, steps, at, n_inputs, add);
                continue;
            }
            sums(left + p * size, right + k * size, steps, edge, PANEL, 0);
            for (int64_t i = 0; i < rows && i < PANEL; i++)
                for (int64_t j = 0; j < columns && j < PANEL; j++) at[i * n_inputs + j] = edge[i * PANEL + j] + (add ? at[i * n_inputs + j] : 0);
        }
    tear_down();
}

/* to: float32 [outputs, inputs], which is added to if `add`. Returns 0, or 1 if there was no memory. */
int tunesmith_weight_gradient(int threads, int64_t n_tokens, int64_t n_outputs, int64_t n_inputs, const bf16 *dy, int64_t dy_stride, const bf16 *x,
                              int64_t x_stride, float *to, int add) {
    const int64_t most = n_tokens < TOKENS ? n_tokens : TOKENS, size = panels(most) * 2 * TILE; /* of a panel */
    const int64_t each = (panels(n_outputs) + MOST_PANELS * threads - 1) / (MOST_PANELS * threads), n_blocks = each * threads;
    const int64_t per_block = (panels(n_outputs) + n_blocks - 1) / n_blocks;
    uint32_t *right = aligned_alloc(64, panels(n_inputs) * size * sizeof *right), *left = aligned_alloc(64, threads * per_block * size * sizeof *left);
    if (!right || !left) {
        free(right), free(left);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    for (int64_t t = 0; t < n_tokens; t += most) {
        const int64_t n = n_tokens - t < most ? n_tokens - t : most, part = panels(n) * 2 * TILE;
#pragma omp for schedule(static)
        for (int64_t s = 0; s < panels(n); s++)
            pack_right(x + (t + s * 32) * x_stride, x_stride, n_inputs, n - s * 32, panels(n_inputs), part, right + s * 2 * TILE);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t first = b * per_block, rest = panels(n_outputs) - first, count = rest < per_block ? rest : per_block;
            if (count > 0)
                block(dy + t * dy_stride, dy_stride, n_outputs, first, count, right, n_inputs, n, left + omp_get_thread_num() * per_block * size, to,
                      add || t > 0);
        }
    }
    free(right), free(left);
    return 0;
}

#else
int tunesmith_weight_gradient(int threads, int64_t n_tokens, int64_t n_outputs, int64_t n_inputs, const uint16_t *dy, int64_t dy_stride, const uint16_t *x,
                              int64_t x_stride, float *to, int add) {
    (void)threads, (void)n_tokens, (void)n_outputs, (void)n_inputs, (void)dy, (void)dy_stride, (void)x, (void)x_stride, (void)to, (void)add;
    return 1;
}
#endif
