/* Runs every kernel at every level of this machine on numbers that are the same on every machine. Prints a line for each
 * level and dtype with a hash of each kernel's results. In fp32 all lines must be equal, here and on other processors; in
 * bf16 those without avx512. Products are computed for all rows at once and for each row alone: `rows` says whether they
 * are equal. */
#ifdef LINKED /* with a compiled library; otherwise the kernels are compiled with this file */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int64_t i64;
enum { MXFP4 = 2 };
int wb_linear(int level, int threads, int stored, int bf16, const void *x, i64 x_row, const i64 *groups, i64 count,
    const void *w, i64 w_expert, i64 w_row, i64 w_step, const u8 *scales, i64 scale_expert, i64 scale_row, const void
    *bias, i64 bias_expert, i64 n, i64 n_out, void *out, i64 out_row);
int wb_scores(int level, int threads, int bf16, const void *q, i64 q_batch, i64 q_pos, i64 q_head, i64 batch, i64
    queries, i64 heads, i64 d, const void *k, i64 kv, i64 keys, i64 k_batch, i64 k_head, i64 k_key, i64 late, i64
    window, float *s);
void wb_softmax(int level, int threads, float *s, i64 batch, i64 heads, i64 queries, i64 n, i64 first, const float
    *sinks, float *mass);
int wb_mix(int level, int threads, int bf16, float *pattern, i64 batch, i64 heads, i64 queries, i64 keys, const void
    *v, i64 kv, i64 d, i64 v_batch, i64 v_head, i64 v_key, i64 first, void *out);
void wb_rms_norm(int level, int threads, int bf16, const void *x, i64 rows, i64 n, const float *scale, float eps, void
    *out);
void wb_swiglu(int level, int threads, int bf16, const void *x, i64 rows, i64 n, float alpha, float limit, void *out);
void wb_log_softmax(int level, int threads, int bf16, const void *x, i64 rows, i64 n, float *out);
void wb_entropy(int level, int threads, const float *a, const float *b, i64 rows, i64 n, float *out);
void wb_mixture(int level, int threads, int bf16, const void *x, const float *share, i64 rows, i64 count, i64 n, void
    *out);
void wb_rotate(int level, int threads, int bf16, const void *x, i64 rows, i64 count, i64 n, i64 positions, const float
    *cos, const float *sin, void *out);
void wb_screen_copy(int level, int threads, const u16 *w, i64 w_row, i64 rows, i64 n, i64 width, int8_t *q, float *scale,
    float *residual, float *norm);
i64 wb_screen(int level, int threads, const int8_t *q, i64 rows, i64 n, i64 width, const float *scale, const float
    *residual, const float *norm, const u16 *x, double temperature, uint64_t seed, uint64_t position, u16 *lower, u16
    *upper, double *noise, i64 *candidates, i64 most);
int wb_linear_planes(int level, int threads, const u16 *x, i64 x_row, i64 rows, const u8 *blocks, const u8 *table, const i64
    *starts, const u16 *at, const u16 *others, const u16 *bias, i64 n, i64 n_out, u16 *out);
void wb_upper_bytes(int threads, const u16 *w, i64 stride, i64 rows, i64 n, int32_t *counts);
void wb_pack_planes(int threads, const u16 *w, i64 stride, i64 rows, i64 n, const u8 *table, const i64 *starts, u8 *blocks,
    u16 *at, u16 *others);
void wb_unpack_planes(int level, int threads, const u8 *blocks, const u8 *table, const i64 *starts, const u16 *at, const u16
    *others, i64 n, i64 rows, u16 *out);
int wb_runs(int level);
#else
#include "../../../workbench/model/kernels/native.c"
#endif
#include <stdio.h>

static u32 state;
static int differ;
static float next(void) { state = state * 1664525u + 1013904223u; return (float)(int32_t)state * 4.656612873e-10f; }
static u16 rounded(float f) { u32 b; memcpy(&b, &f, 4); return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16); } /* to bf16, ties to even */
static void put(void *p, i64 i, float f, int bf16) { if (bf16) ((u16 *)p)[i] = rounded(f); else ((float *)p)[i] = f; }
static void fill(void *p, i64 n, int bf16) { for (i64 i = 0; i < n; i++) put(p, i, next(), bf16); }
static void bytes(u8 *p, i64 n, int low, int count) { for (i64 i = 0; i < n; i++) next(), p[i] = (u8)(low + (int)(state >> 16) % count); }

static uint64_t sum;
static void add(const void *p, i64 n) { for (i64 i = 0; i < n; i++) sum = (sum ^ ((const u8 *)p)[i]) * 1099511628211ull; }
static void print(const char *name) { printf(" %s=%016llx", name, (unsigned long long)sum); sum = 1469598103934665603ull; }

static void product(int level, int bf16, int stored) {
    static const i64 SHAPES[][4] = {{32, 5, 3, 1}, {128, 128, 70, 3}, {192, 37, 9, 2}, {2880, 33, 7, 1}, {96, 70, 300, 1}, {1600, 65, 61, 2}, {77, 19, 30, 1}};
    for (int s = 0; s < 7; s++) {
        i64 n = SHAPES[s][0], n_out = SHAPES[s][1], rows = SHAPES[s][2], experts = SHAPES[s][3], size = bf16 ? 2 : 4, groups = n / 32;
        if (stored == MXFP4 && n % 32) continue;
        char *x = malloc(rows * n * 4), *w = malloc(experts * n_out * n * 4), *bias = malloc(experts * n_out * 4);
        char *y = calloc(rows * n_out, 4), *one = calloc(n_out, 4);
        u8 *codes = malloc(experts * n_out * groups * 16 + 16), *scales = malloc(experts * n_out * groups + 1);
        state = 7 + s;
        fill(x, rows * n, bf16), fill(w, experts * n_out * n, bf16), fill(bias, experts * n_out, bf16);
        bytes(codes, experts * n_out * groups * 16, 0, 256), bytes(scales, experts * n_out * groups, 117, 7);
        i64 ends[9];
        for (i64 e = 0; e < experts; e++) ends[3 * e] = e, ends[3 * e + 1] = rows * e / experts, ends[3 * e + 2] = rows * (e + 1) / experts;
        const void *of = stored == MXFP4 ? (void *)codes : (void *)w;
        i64 row = stored == MXFP4 ? groups * 16 : n;
        wb_linear(level, 2, stored, bf16, x, n, ends, experts, of, n_out * row, row, 1, scales, n_out * groups, groups, bias, n_out, n, n_out, y, n_out);
        add(y, rows * n_out * size);
        for (i64 e = 0; e < experts; e++)
            for (i64 r = ends[3 * e + 1]; r < ends[3 * e + 2]; r++) {
                i64 alone[3] = {e, 0, 1};
                wb_linear(level, 1, stored, bf16, x + r * n * size, n, alone, 1, of, n_out * row, row, 1, scales, n_out * groups, groups, bias, n_out, n, n_out, one, n_out);
                differ |= memcmp(one, y + r * n_out * size, n_out * size) != 0;
            }
        free(x), free(w), free(bias), free(y), free(one), free(codes), free(scales);
    }
}

/* A bf16 matrix in planes: its products must be those of the matrix itself, and it must unpack to the same bits. */
static void planes(int level) {
    enum { N_OUT = 70, N = 192, ROWS = 7 };
    static u16 w[N_OUT * N], x[ROWS * N], bias[N_OUT], y[ROWS * N_OUT], expected[ROWS * N_OUT], at[N_OUT * N], others[N_OUT * N], again[N_OUT * N];
    static u8 blocks[N_OUT * N / 64 * 96], table[16];
    static int32_t counts[N_OUT][256];
    i64 starts[N_OUT + 1] = {0}, all[3] = {0, 0, ROWS};
    state = 5;
    fill(w, N_OUT * N, 1), fill(x, ROWS * N, 1), fill(bias, N_OUT, 1);
    for (i64 i = 0; i < N_OUT * N; i += 97) w[i] = (u16)(i * 40503u); /* also NaN, infinity and subnormals */
    for (int c = 0; c < 15; c++) table[c] = (u8)((c & 1) << 7 | (0x39 + c / 2));
    wb_upper_bytes(1, w, N, N_OUT, N, &counts[0][0]);
    for (int r = 0; r < N_OUT; r++) {
        i64 coded = 0;
        for (int c = 0; c < 15; c++) coded += counts[r][table[c]];
        starts[r + 1] = starts[r] + N - coded;
    }
    wb_pack_planes(2, w, N, N_OUT, N, table, starts, blocks, at, others);
    wb_unpack_planes(level, 1, blocks, table, starts, at, others, N, N_OUT, again);
    differ |= memcmp(w, again, sizeof w) != 0;
    for (int rows = 1; rows <= ROWS; rows++) {
        all[2] = rows;
        wb_linear_planes(level, 2, x, N, rows, blocks, table, starts, at, others, bias, N, N_OUT, y);
        wb_linear(level, 1, 1, 1, x, N, all, 1, w, 0, N, 1, NULL, 0, 0, bias, 0, N, N_OUT, expected, N_OUT);
        differ |= memcmp(y, expected, sizeof(u16) * (size_t)rows * N_OUT) != 0;
    }
    add(y, sizeof y);
}

static void attention(int level, int bf16) {
    enum { HEADS = 6, KV = 2, QUERIES = 70, KEYS = 700, D = 40, START = 13 };
    static float q[QUERIES * HEADS * D], k[KV * KEYS * D], v[KV * KEYS * D], s[HEADS * QUERIES * KEYS], sinks[HEADS], mass[HEADS * QUERIES], z[QUERIES * HEADS * D];
    state = 3;
    fill(q, QUERIES * HEADS * D, bf16), fill(k, KV * KEYS * D, bf16), fill(v, KV * KEYS * D, bf16), fill(sinks, HEADS, 0);
    for (int window = -1; window < 300; window += 150) {
        wb_scores(level, 1, bf16, q, 0, HEADS * D, D, 1, QUERIES, HEADS, D, k, KV, KEYS, 0, KEYS * D, D, KEYS - QUERIES, window, s);
        add(s, sizeof s), print("scores");
        wb_softmax(level, 2, s, 1, HEADS, QUERIES, KEYS, START, sinks, mass);
        add(s, sizeof s), add(mass, sizeof mass), print("softmax");
        wb_mix(level, 2, bf16, s, 1, HEADS, QUERIES, KEYS, v, KV, D, 0, KEYS * D, D, START, z);
        add(z, QUERIES * HEADS * D * (bf16 ? 2 : 4));
        wb_mix(level, 1, bf16, s, 1, HEADS, 1, KEYS, v, KV, D, 0, KEYS * D, D, START, z); /* the form for few queries */
        add(z, HEADS * D * (bf16 ? 2 : 4)), print("mix");
    }
}

static void rows(int level, int bf16) {
    enum { ROWS = 5, N = 333, C = 4 };
    static float x[ROWS * C * 2 * N], scale[N], y[ROWS * C * 2 * N], p[ROWS * N], share[ROWS * C], angles[N];
    state = 11;
    fill(x, ROWS * C * 2 * N, bf16), fill(scale, N, 0), fill(share, ROWS * C, 0), fill(angles, N, 0);
    i64 size = bf16 ? 2 : 4;
    wb_rms_norm(level, 1, bf16, x, ROWS, N, scale, 1e-5f, y), add(y, ROWS * N * size), print("rms");
    wb_rms_norm(level, 1, bf16, x, ROWS, N, NULL, 0, y), add(y, ROWS * 4), print("norm");
    wb_swiglu(level, 1, bf16, x, ROWS, N, 1.702f, 7, y), add(y, ROWS * N * size), print("swiglu");
    wb_mixture(level, 1, bf16, x, share, ROWS, C, N, y), add(y, ROWS * N * size), print("mixture");
    wb_rotate(level, 1, bf16, x, ROWS, C, N - 1, 1, scale, angles, y), add(y, ROWS * C * (N - 1) * size), print("rotate");
    wb_log_softmax(level, 1, bf16, x, ROWS, N, y), add(y, ROWS * N * 4), print("logp");
    wb_log_softmax(level, 1, bf16, (char *)x + ROWS * N * size, ROWS, N, p);
    wb_entropy(level, 1, y, NULL, ROWS, N, scale), wb_entropy(level, 1, y, p, ROWS, N, scale + ROWS), add(scale, 2 * ROWS * 4), print("entropy");
}

static void screening(int level) { /* bf16 only, with the same bits at every level */
    static const i64 SHAPES[][2] = {{300, 77}, {1100, 320}, {5, 32768}};
    for (int s = 0; s < 3; s++) {
        i64 rows = SHAPES[s][0], n = SHAPES[s][1], width = (n + 63) / 64 * 64;
        u16 *w = malloc(rows * n * 2), *x = malloc(n * 2), *lower = malloc(rows * 2), *upper = malloc(rows * 2);
        int8_t *q = malloc(rows * width);
        float *scale = malloc(rows * 4), *residual = malloc(rows * 4), *norm = malloc(rows * 4);
        double *noise = malloc(rows * 8);
        i64 *candidates = malloc(rows * 8);
        state = 5 + s;
        fill(w, rows * n, 1), fill(x, n, 1);
        if (s == 2) for (i64 k = 0; k < n; k++) x[k] = w[k] = 0x3f80; /* the largest sums in int32 */
        wb_screen_copy(level, 2, w, n, rows, n, width, q, scale, residual, norm);
        add(q, rows * width), add(scale, rows * 4), add(residual, rows * 4), add(norm, rows * 4);
        for (int greedy = 0; greedy < 2; greedy++) {
            i64 count = wb_screen(level, 2, q, rows, n, width, scale, residual, norm, x, greedy ? 0 : .7, 3, 4, lower, upper, noise, candidates, rows);
            add(&count, 8), add(candidates, count * 8), add(lower, rows * 2), add(upper, rows * 2), add(noise, rows * 8);
        }
        free(w), free(x), free(lower), free(upper), free(q), free(scale), free(residual), free(norm), free(noise), free(candidates);
    }
}

int main(void) {
    static const char *NAMES[] = {"portable", "neon", "avx2", "avx512-bf16"};
    sum = 1469598103934665603ull;
    for (int level = 0; level < 4; level++)
        for (int bf16 = 0; bf16 < 2 && wb_runs(level); bf16++) {
            printf("%s %s", NAMES[level], bf16 ? "bfloat16" : "float32");
            product(level, bf16, bf16), print("linear");
            product(level, bf16, MXFP4), print("mxfp4");
            if (bf16) planes(level), print("planes");
            attention(level, bf16), rows(level, bf16);
            screening(level), print("screen");
            printf(" rows=%s\n", differ ? "differ" : "equal");
        }
    return 0;
}
