/* The arithmetic that takes the time, for the processor at hand: products with weights that stay in MXFP4, and what a
 * decoded token needs of attention. Called through ctypes by native.py, which checks every shape; nothing is checked
 * here. reference.py, experts.py and attention.py say in torch what these must equal.
 *
 * An MXFP4 row is a run of groups: 16 bytes of codes (byte i: element 2i low, 2i + 1 high) and one scale byte s; an
 * element is FP4[code] * 2^(s - 127). Every FP4 number is a bf16 whose two bytes come out of two 16-entry tables.
 *
 * Two forms. "few": one row of weights is one sequential stream, read once, decoded in registers, applied to up to
 * four tokens. "many": 32 rows are decoded into a panel that stays in the cache, then met by all tokens in register
 * tiles. Within a form the operations on one token never depend on how many others there are.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define T2 __attribute__((target("avx2,fma")))
#if (defined(__clang__) && __clang_major__ >= 11) || (!defined(__clang__) && __GNUC__ >= 10)
#define HAS512
#ifndef T512 /* a test may compile these functions against an emulation, see tests/kernels */
#define T512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma")))
#endif
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#elif defined(__APPLE__)
#include <dispatch/dispatch.h>
#endif

#ifndef WORKBENCH_SOURCE
#define WORKBENCH_SOURCE "unknown"
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int64_t i64;

#define IN static inline __attribute__((always_inline))
#define API __attribute__((visibility("default")))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define UNROLL4 _Pragma("unroll 4")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL4 _Pragma("GCC unroll 4")
#endif

enum { PORTABLE = 0, NEON = 1, AVX2 = 2, AVX512 = 3 };

/* The high and the low byte of each FP4 number as bf16. */
#define HIGH 0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0
#define LOW 0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0, 0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0
static const float FP4[16] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

IN float as_float(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
IN u32 as_bits(float f) { u32 b; memcpy(&b, &f, 4); return b; }
IN float wide(u16 h) { return as_float((u32)h << 16); }
IN u16 narrow(float f) { /* to nearest, ties to even; NaN stays NaN */
    u32 b = as_bits(f);
    u16 r = (u16)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    return (b & 0x7fffffff) > 0x7f800000 ? (u16)0x7fc0 : r;
}
IN float power(u8 scale) { return as_float((u32)scale << 23); } /* exact for 1..254 */
IN float load(const void *p, i64 i, int bf16) { return bf16 ? wide(((const u16 *)p)[i]) : ((const float *)p)[i]; }
IN void store(void *p, i64 i, float v, int bf16) {
    if (bf16) ((u16 *)p)[i] = narrow(v); else ((float *)p)[i] = v;
}
IN i64 least(i64 a, i64 b) { return a < b ? a : b; }

static void *room(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes + 64) ? NULL : p;
}

/* ---- threads: pieces of work are handed out one by one, so that unequal ones balance ---- */

typedef void (*Work)(void *job, size_t piece);

static void each(i64 n, int threads, Work work, void *job) {
#if defined(_OPENMP)
    if (threads > 1 && n > 1) { /* always the same number of threads: libgomp would end and start some otherwise */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (i64 i = 0; i < n; i++) work(job, (size_t)i);
        return;
    }
#elif defined(__APPLE__)
    if (threads > 1 && n > 1) {
        dispatch_apply_f((size_t)n, dispatch_get_global_queue(QOS_CLASS_USER_INITIATED, 0), job, work);
        return;
    }
#endif
    for (i64 i = 0; i < n; i++) work(job, (size_t)i);
}

/* ---- the kernels of a level ---- */

enum { PANEL = 32, FOUR = 4, BLOCK = 384 }; /* rows of a panel; tokens at once in "few"; tokens of a piece in "many" */

typedef struct {
    /* few: x row -> the order in which `row` meets the weights, whole pairs of groups; then M <= 4 dot products */
    void (*order)(const void *x, int bf16, i64 groups, void *to);
    void (*row)(const u8 *codes, const u8 *scales, i64 groups, const void *x, size_t stride, int m, float *out);
    /* many: x -> tiles; 32 rows -> a panel; a tile of tokens times a panel, added up in sums[token][32] */
    void (*panel)(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, void *to);
    void (*tile)(int m, const void *panel, const void *x, i64 x_row, i64 groups, float *sums, int first);
    const u8 *place; /* sums[token][i] belongs to row place[i] of the panel; NULL: to row i */
    int size;        /* bytes of a weight or an activation as these read them */
    int tokens;      /* of a tile */
    int chunk;       /* groups of a panel */
    int packed;      /* whether tiles are packed [k][tokens]; otherwise they are rows of x itself */
} Kernels;

/* Elements of a row of x in "few": whole pairs of groups, and room for what a kernel notes about the row. */
IN size_t width_few(i64 groups) { return 32 * (size_t)(groups + (groups & 1)) + 16; }

/* ---- portable ---- */

static void order_plain(const void *x, int bf16, i64 groups, void *to) {
    for (i64 k = 0; k < 32 * groups; k++) ((float *)to)[k] = load(x, k, bf16);
}

IN void row_plain_m(const u8 *codes, const u8 *scales, i64 groups, const float *x, size_t stride, int m, float *out) {
    float sum[FOUR][8] = {{0}};
    for (i64 g = 0; g < groups; g++) {
        const u8 *p = codes + 16 * g;
        float w[32], s = power(scales[g]);
        for (int i = 0; i < 16; i++) w[2 * i] = FP4[p[i] & 15], w[2 * i + 1] = FP4[p[i] >> 4];
        for (int t = 0; t < m; t++) {
            const float *y = x + t * stride + 32 * g;
            for (int i = 0; i < 8; i++)
                sum[t][i] += s * ((w[i] * y[i] + w[i + 8] * y[i + 8]) + (w[i + 16] * y[i + 16] + w[i + 24] * y[i + 24]));
        }
    }
    for (int t = 0; t < m; t++) {
        const float *s = sum[t];
        out[t] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
}
static void row_plain(const u8 *c, const u8 *s, i64 g, const void *x, size_t stride, int m, float *out) {
    for (int t = 0; t < m; t++) row_plain_m(c, s, g, (const float *)x + t * stride, stride, 1, out + t);
}

static void panel_plain(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, void *to) {
    float *out = to;
    memset(out, 0, sizeof(float) * 32 * groups * PANEL);
    for (int r = 0; r < rows; r++)
        for (i64 g = 0; g < groups; g++) {
            const u8 *p = codes + r * code_row + 16 * g;
            float s = power(scales[r * scale_row + g]), *o = out + (r / 16) * 16 * 32 * groups + 512 * g + r % 16;
            for (int i = 0; i < 16; i++) o[32 * i] = FP4[p[i] & 15] * s, o[32 * i + 16] = FP4[p[i] >> 4] * s;
        }
}

/* Two halves of 16 outputs; the panel of each is [k][16], and x is packed [k][6]. */
IN void tile_plain_m(int m, const float *w, const float *x, i64 n, float *sums, int first) {
    float a[6][16];
    for (int t = 0; t < m; t++) for (int i = 0; i < 16; i++) a[t][i] = 0;
    for (i64 k = 0; k < n; k++, w += 16, x += 6)
        for (int t = 0; t < m; t++) for (int i = 0; i < 16; i++) a[t][i] += w[i] * x[t];
    for (int t = 0; t < m; t++)
        for (int i = 0; i < 16; i++) sums[PANEL * t + i] = first ? a[t][i] : sums[PANEL * t + i] + a[t][i];
}
static void tile_plain(int m, const void *panel, const void *x, i64 x_row, i64 groups, float *sums, int first) {
    (void)x_row;
    for (int h = 0; h < 2; h++) {
        const float *w = (const float *)panel + h * 16 * 32 * groups;
        for (int t = 0; t < m; t += 2) {
            if (m - t >= 2) tile_plain_m(2, w, (const float *)x + t, 32 * groups, sums + PANEL * t + 16 * h, first);
            else tile_plain_m(1, w, (const float *)x + t, 32 * groups, sums + PANEL * t + 16 * h, first);
        }
    }
}

/* What is done to each token of a tile, written out by the preprocessor: only then does clang keep the sums of more
 * than three in registers. */
#define AT(n, ...) { enum { t = n }; __VA_ARGS__ }
#define TOKENS_6(m, ...) \
    AT(0, __VA_ARGS__) if ((m) > 1) AT(1, __VA_ARGS__) if ((m) > 2) AT(2, __VA_ARGS__) \
    if ((m) > 3) AT(3, __VA_ARGS__) if ((m) > 4) AT(4, __VA_ARGS__) if ((m) > 5) AT(5, __VA_ARGS__)
#define TOKENS_12(m, ...) \
    TOKENS_6(m, __VA_ARGS__) \
    if ((m) > 6) AT(6, __VA_ARGS__) if ((m) > 7) AT(7, __VA_ARGS__) if ((m) > 8) AT(8, __VA_ARGS__) \
    if ((m) > 9) AT(9, __VA_ARGS__) if ((m) > 10) AT(10, __VA_ARGS__) if ((m) > 11) AT(11, __VA_ARGS__)

/* M is a constant in each call, so that the sums are registers. */
#define BY_TOKENS_4(f, m, ...) \
    switch (m) { case 1: f(1, __VA_ARGS__); break; case 2: f(2, __VA_ARGS__); break; \
                 case 3: f(3, __VA_ARGS__); break; default: f(4, __VA_ARGS__); }
#define BY_TOKENS_6(f, m, ...) \
    switch (m) { case 5: f(5, __VA_ARGS__); break; case 6: f(6, __VA_ARGS__); break; \
                 default: BY_TOKENS_4(f, m, __VA_ARGS__) }
#define BY_TOKENS_12(f, m, ...) \
    switch (m) { case 7: f(7, __VA_ARGS__); break; case 8: f(8, __VA_ARGS__); break; \
                 case 9: f(9, __VA_ARGS__); break; case 10: f(10, __VA_ARGS__); break; \
                 case 11: f(11, __VA_ARGS__); break; case 12: f(12, __VA_ARGS__); break; \
                 default: BY_TOKENS_6(f, m, __VA_ARGS__) }

#if defined(__x86_64__)
/* ---- AVX2: in fp32, exact for bf16 input too; "few" in whole numbers ---- */

static const u8 HIGH2[32] __attribute__((aligned(32))) = {HIGH, HIGH}, LOW2[32] __attribute__((aligned(32))) = {LOW, LOW};

/* 32 nibbles -> 32 numbers: w[0] and w[1] are bytes 0, 2, 4, 6 and 1, 3, 5, 7 of each half, w[2] and w[3] the rest. */
T2 IN void numbers2(__m256i nibbles, __m256 w[4]) {
    const __m256i top = _mm256_set1_epi32((int)0xffff0000);
    __m256i h = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)HIGH2), nibbles);
    __m256i l = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)LOW2), nibbles);
    __m256i a = _mm256_unpacklo_epi8(l, h), b = _mm256_unpackhi_epi8(l, h);
    w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), w[1] = _mm256_castsi256_ps(_mm256_and_si256(a, top));
    w[2] = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), w[3] = _mm256_castsi256_ps(_mm256_and_si256(b, top));
}

T2 IN float total2(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

/* "few" multiplies integers, exactly: eight bits at a time take fewer instructions than fp32 whose weights must first
 * be made of their codes. Of a group of x every number becomes v * 2^e, v whole and |v| <= 2^22, so that what is lost
 * is less than 2^-22 of the group's largest; v is three signed digits of eight bits. A doubled FP4 number plus 12 lies
 * in 0..24, is a byte of a table, and its products with digits never overflow; 12 times the sum of v is taken off.
 *
 * A pair of groups: three planes of digits, lowest first, each of 32 even elements and 32 odd ones (16 of either
 * group); then what is to be taken off, for each four lanes of a group. After all pairs the powers 2^(e - 1). */
enum { PAIR = 224, DIGITS = 3 };
static const u8 UP12[32] __attribute__((aligned(32))) = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
                                                         12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* The group's numbers as whole ones; gives the power of two that one of them counts. */
T2 static float whole_avx2(const float x[32], int32_t v[32]) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    int e = (int)(as_bits(most) >> 23) - 126; /* most < 2^e */
    e = e < -100 ? -100 : e;                  /* below, all are as good as nothing; 2^(22 - e) must be a float */
    float up = as_float((u32)(22 - e + 127) << 23);
    for (int i = 0; i < 32; i++) v[i] = (int32_t)rintf(x[i] * up);
    return as_float((u32)(e - 22 + 127) << 23);
}

T2 static void order_avx2(const void *x, int bf16, i64 groups, void *to) {
    u8 *o = to;
    float *powers = (float *)(o + PAIR * ((groups + 1) / 2));
    int *plain = (int *)to + width_few(groups) - 1;
    *plain = 0;
    for (i64 k = 0; k < 32 * groups; k++) *plain |= (as_bits(load(x, k, bf16)) & 0x7f800000) == 0x7f800000;
    if (*plain) { order_plain(x, bf16, groups, to); return; } /* infinite or NaN: no whole number is like that */
    for (i64 g = 0; g < groups; g += 2, o += PAIR) {
        int32_t off[8] __attribute__((aligned(32))) = {0};
        memset(o, 0, PAIR);
        for (int b = 0; b < 2 && g + b < groups; b++) {
            float y[32];
            int32_t v[32];
            for (int i = 0; i < 32; i++) y[i] = load(x, 32 * (g + b) + i, bf16);
            powers[g + b] = .5f * whole_avx2(y, v);
            for (int i = 0; i < 32; i++) off[4 * b + i / 8] += 12 * v[i];
            for (int plane = 0; plane < DIGITS; plane++)
                for (int i = 0; i < 32; i++) {
                    int8_t digit = (int8_t)v[i];
                    o[64 * plane + 32 * (i & 1) + 16 * b + i / 2] = (u8)digit;
                    v[i] = (v[i] - digit) >> 8;
                }
        }
        memcpy(o + 64 * DIGITS, off, sizeof off);
    }
}

T2 IN void row_avx2_m(int m, const u8 *codes, const u8 *scales, i64 groups, const u8 *x, size_t stride, float *out) {
    const __m256i low = _mm256_set1_epi8(15), table = _mm256_load_si256((const __m256i *)UP12);
    const __m256i one = _mm256_set1_epi16(1), byte = _mm256_set1_epi16(256), spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const u8 *powers = x + PAIR * ((groups + 1) / 2);
    __m256 sum[FOUR];
    float s[FOUR][64];
    UNROLL for (int t = 0; t < m; t++) sum[t] = _mm256_setzero_ps();
    for (i64 start = 0; start < groups; start += 64) {
        i64 n = least(64, groups - start), g;
        for (g = 0; g + 8 <= n; g += 8) {
            __m256 k = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(
                _mm_loadl_epi64((const __m128i *)(scales + start + g))), 23));
            UNROLL for (int t = 0; t < m; t++)
                _mm256_storeu_ps(s[t] + g, _mm256_mul_ps(k, _mm256_loadu_ps((const float *)(powers + t * stride) + start + g)));
        }
        for (; g < n; g++)
            UNROLL for (int t = 0; t < m; t++) s[t][g] = power(scales[start + g]) * ((const float *)(powers + t * stride))[start + g];
        if (n & 1) UNROLL for (int t = 0; t < m; t++) s[t][n] = 0;
        for (g = 0; g < n; g += 2) {
            const u8 *p = codes + 16 * (start + g), *y = x + PAIR / 2 * (start + g);
            _mm_prefetch((const char *)p + 8192, _MM_HINT_T0);
            __m256i b = g + 1 < n ? _mm256_loadu_si256((const __m256i *)p)
                : _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_loadu_si128((const __m128i *)p), 0);
            __m256i even = _mm256_shuffle_epi8(table, _mm256_and_si256(b, low));
            __m256i odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(b, 4), low));
            UNROLL for (int t = 0; t < m; t++) {
                const __m256i *z = (const __m256i *)(y + t * stride);
                __m256i d0 = _mm256_add_epi16(_mm256_maddubs_epi16(even, z[0]), _mm256_maddubs_epi16(odd, z[1]));
                __m256i d1 = _mm256_add_epi16(_mm256_maddubs_epi16(even, z[2]), _mm256_maddubs_epi16(odd, z[3]));
                __m256i d2 = _mm256_add_epi16(_mm256_maddubs_epi16(even, z[4]), _mm256_maddubs_epi16(odd, z[5]));
                __m256i v = _mm256_add_epi32(_mm256_madd_epi16(d1, byte), _mm256_slli_epi32(_mm256_madd_epi16(d2, one), 16));
                v = _mm256_add_epi32(v, _mm256_sub_epi32(_mm256_madd_epi16(d0, one), z[6]));
                __m256 k = _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_broadcast_sd((const double *)(s[t] + g))), spread);
                sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), k, sum[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < m; t++) out[t] = total2(sum[t]);
}
T2 static void row_avx2(const u8 *c, const u8 *s, i64 g, const void *x, size_t stride, int m, float *out) {
    int plain = 0;
    for (int t = 0; t < m; t++) plain |= ((const int *)x)[(t + 1) * stride - 1];
    if (!plain) { BY_TOKENS_4(row_avx2_m, m, c, s, g, x, 4 * stride, out) return; }
    for (int t = 0; t < m; t++) {
        const float *y = (const float *)x + t * stride;
        if (((const int *)y)[stride - 1]) row_plain(c, s, g, y, stride, 1, out + t);
        else row_avx2_m(1, c, s, g, (const u8 *)y, 4 * stride, out + t);
    }
}

/* The bytes of 32 rows are transposed, so that a register holds one byte of each: rows 0-15 in one half, 16-31 in the
 * other. What `numbers2` makes of it comes in the order of PLACE2. */
static const u8 PLACE2[PANEL] = {0, 2, 4, 6, 16, 18, 20, 22, 1, 3, 5, 7, 17, 19, 21, 23,
                                 8, 10, 12, 14, 24, 26, 28, 30, 9, 11, 13, 15, 25, 27, 29, 31};

T2 static void panel_avx2(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, void *to) {
    const __m256i low = _mm256_set1_epi8(15);
    float *first = to, *second = first + 16 * 32 * groups;
    for (i64 g = 0; g < groups; g++) {
        __m256i a[16], b[16];
        float s[PANEL] __attribute__((aligned(32)));
        UNROLL for (int r = 0; r < 16; r++) {
            __m128i x = r < rows ? _mm_loadu_si128((const __m128i *)(codes + r * code_row + 16 * g)) : _mm_setzero_si128();
            __m128i y = r + 16 < rows ? _mm_loadu_si128((const __m128i *)(codes + (r + 16) * code_row + 16 * g))
                                      : _mm_setzero_si128();
            a[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(x), y, 1);
        }
        UNROLL for (int pass = 0; pass < 4; pass++) { /* each interleaves the upper with the lower half */
            UNROLL for (int i = 0; i < 8; i++)
                b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]), b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
            UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
        }
        for (int i = 0; i < PANEL; i++) s[i] = PLACE2[i] < rows ? power(scales[PLACE2[i] * scale_row + g]) : 0;
        __m256 k[4];
        for (int i = 0; i < 4; i++) k[i] = _mm256_load_ps(s + 8 * i);
        for (int j = 0; j < 16; j++)
            for (int nibble = 0; nibble < 2; nibble++) {
                __m256 w[4];
                i64 at = 16 * (32 * g + 2 * j + nibble);
                numbers2(_mm256_and_si256(nibble ? _mm256_srli_epi16(a[j], 4) : a[j], low), w);
                _mm256_store_ps(first + at, _mm256_mul_ps(w[0], k[0]));
                _mm256_store_ps(first + at + 8, _mm256_mul_ps(w[1], k[1]));
                _mm256_store_ps(second + at, _mm256_mul_ps(w[2], k[2]));
                _mm256_store_ps(second + at + 8, _mm256_mul_ps(w[3], k[3]));
            }
    }
}

T2 IN void tile_avx2_m(int m, const float *w, const float *x, i64 n, float *sums, int first) {
    __m256 a[6][2];
    TOKENS_6(m, a[t][0] = a[t][1] = _mm256_setzero_ps();)
    UNROLL4 for (i64 k = 0; k < n; k++) {
        __m256 u = _mm256_load_ps(w + 16 * k), v = _mm256_load_ps(w + 16 * k + 8), y;
        TOKENS_6(m,
            y = _mm256_broadcast_ss(x + 6 * k + t);
            a[t][0] = _mm256_fmadd_ps(u, y, a[t][0]), a[t][1] = _mm256_fmadd_ps(v, y, a[t][1]);)
    }
    TOKENS_6(m,
        float *s = sums + PANEL * t;
        if (!first) a[t][0] = _mm256_add_ps(a[t][0], _mm256_load_ps(s)), a[t][1] = _mm256_add_ps(a[t][1], _mm256_load_ps(s + 8));
        _mm256_store_ps(s, a[t][0]), _mm256_store_ps(s + 8, a[t][1]);)
}
T2 static void half_avx2(int m, const float *w, const float *x, i64 n, float *sums, int first) {
    BY_TOKENS_6(tile_avx2_m, m, w, x, n, sums, first)
}
T2 static void tile_avx2(int m, const void *panel, const void *x, i64 x_row, i64 groups, float *sums, int first) {
    (void)x_row;
    half_avx2(m, panel, x, 32 * groups, sums, first);
    half_avx2(m, (const float *)panel + 16 * 32 * groups, x, 32 * groups, sums + 16, first);
}
#endif

#if defined(HAS512)
/* ---- AVX-512 with bf16: two products and their sum in one instruction ---- */

static const u16 BF16[32] __attribute__((aligned(64))) = {
    0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0,
    0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};

/* Of every pair of groups first the even, then the odd elements. */
static void order_avx512(const void *x, int bf16, i64 groups, void *to) {
    u16 *o = to;
    (void)bf16;
    for (i64 g = 0; g < groups; g += 2)
        for (int nibble = 0; nibble < 2; nibble++)
            for (int i = 0; i < 32; i++) *o++ = g + i / 16 < groups ? ((const u16 *)x)[32 * g + 2 * i + nibble] : 0;
}

T512 IN void row_avx512_m(int m, const u8 *codes, const u8 *scales, i64 groups, const u16 *x, size_t stride, float *out) {
    const __m512i table = _mm512_load_si512(BF16);
    const __m512i spread = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 even[FOUR], odd[FOUR], zero = _mm512_setzero_ps();
    float s[64] __attribute__((aligned(64)));
    UNROLL for (int t = 0; t < m; t++) even[t] = odd[t] = zero;
    for (i64 start = 0; start < groups; start += 64) {
        i64 n = least(64, groups - start);
        for (i64 g = 0; g < n; g += 16) { /* what lies past the end becomes 0 */
            __mmask16 there = n - g >= 16 ? 0xffff : (__mmask16)((1u << (n - g)) - 1);
            _mm512_store_ps(s + g, _mm512_castsi512_ps(_mm512_slli_epi32(
                _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, scales + start + g)), 23)));
        }
        for (i64 g = 0; g < n; g += 2) {
            const u8 *p = codes + 16 * (start + g);
            const u16 *y = x + 32 * (start + g);
            _mm_prefetch((const char *)p + 8192, _MM_HINT_T0);
            __m256i bytes = g + 1 < n ? _mm256_loadu_si256((const __m256i *)p)
                : _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_loadu_si128((const __m128i *)p), 0);
            __m512i b = _mm512_cvtepu8_epi16(bytes); /* the lookup reads the low five bits: the table is there twice */
            __m512i v = _mm512_permutexvar_epi16(b, table), w = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 4), table);
            __m512 k = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_castpd_ps(_mm_load_sd((const double *)(s + g)))));
            UNROLL for (int t = 0; t < m; t++) {
                const u16 *z = y + t * stride;
                __m512 a = _mm512_dpbf16_ps(zero, (__m512bh)v, (__m512bh)_mm512_loadu_si512(z));
                __m512 c = _mm512_dpbf16_ps(zero, (__m512bh)w, (__m512bh)_mm512_loadu_si512(z + 32));
                even[t] = _mm512_fmadd_ps(a, k, even[t]), odd[t] = _mm512_fmadd_ps(c, k, odd[t]);
            }
        }
    }
    UNROLL for (int t = 0; t < m; t++) out[t] = _mm512_reduce_add_ps(_mm512_add_ps(even[t], odd[t]));
}
T512 static void row_avx512(const u8 *c, const u8 *s, i64 g, const void *x, size_t stride, int m, float *out) {
    BY_TOKENS_4(row_avx512_m, m, c, s, g, x, stride, out)
}

/* 16 rows -> [pair of k][16][2]; the scale is added to the exponents, which `safe_scales` has shown to have room. */
T512 static void half_panel_avx512(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, u16 *to) {
    static const u8 QUARTERS[64] __attribute__((aligned(64))) = {
        0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51, 4, 20, 36, 52, 5, 21, 37, 53, 6, 22, 38, 54, 7, 23, 39, 55,
        8, 24, 40, 56, 9, 25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59, 12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
    const __m512i table = _mm512_load_si512(BF16), size = _mm512_set1_epi16(0x7fff), order = _mm512_load_si512(QUARTERS);
    for (i64 g = 0; g < groups; g++) {
        __m512i a[4];
        int s[16] __attribute__((aligned(64)));
        u8 t[64 * 4] __attribute__((aligned(64)));
        UNROLL for (int i = 0; i < 4; i++) { /* four rows: byte j of each becomes dword j */
            __m128i r[4];
            UNROLL for (int j = 0; j < 4; j++)
                r[j] = 4 * i + j < rows ? _mm_loadu_si128((const __m128i *)(codes + (4 * i + j) * code_row + 16 * g)) : _mm_setzero_si128();
            __m512i v = _mm512_castsi128_si512(r[0]);
            v = _mm512_inserti32x4(v, r[1], 1), v = _mm512_inserti32x4(v, r[2], 2), v = _mm512_inserti32x4(v, r[3], 3);
            a[i] = _mm512_permutexvar_epi8(order, v);
        }
        for (int r = 0; r < 16; r++) {
            int e = r < rows ? ((int)scales[r * scale_row + g] - 127) * 128 : 0;
            s[r] = (int)((u32)(e & 0xffff) * 0x10001u);
        }
        __m512i add = _mm512_load_si512(s);
        __m512i b0 = _mm512_unpacklo_epi32(a[0], a[1]), b1 = _mm512_unpackhi_epi32(a[0], a[1]);
        __m512i b2 = _mm512_unpacklo_epi32(a[2], a[3]), b3 = _mm512_unpackhi_epi32(a[2], a[3]);
        _mm512_store_si512(t, _mm512_unpacklo_epi64(b0, b2)), _mm512_store_si512(t + 64, _mm512_unpackhi_epi64(b0, b2));
        _mm512_store_si512(t + 128, _mm512_unpacklo_epi64(b1, b3)), _mm512_store_si512(t + 192, _mm512_unpackhi_epi64(b1, b3));
        UNROLL for (int j = 0; j < 16; j++) { /* byte j of 16 rows: the low nibble to the low half, the high to the high */
            __m512i b = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(t + 64 * (j & 3) + 16 * (j >> 2))));
            b = _mm512_permutexvar_epi16(_mm512_or_si512(b, _mm512_slli_epi32(b, 12)), table);
            b = _mm512_mask_add_epi16(b, _mm512_test_epi16_mask(b, size), b, add); /* a zero stays one */
            _mm512_store_si512(to + (16 * g + j) * 2 * PANEL, b);
        }
    }
}
T512 static void panel_avx512(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, void *to) {
    int more = rows > 16 ? rows - 16 : 0;
    half_panel_avx512(codes, code_row, scales, scale_row, rows - more, groups, to);
    half_panel_avx512(codes + 16 * code_row, code_row, scales + 16 * scale_row, scale_row, more, groups, (u16 *)to + PANEL);
}

T512 IN void tile_avx512_m(int m, const u16 *w, const u16 *x, i64 x_row, i64 pairs, float *sums, int first) {
    __m512 a[12][2];
    TOKENS_12(m, a[t][0] = a[t][1] = _mm512_setzero_ps();)
    for (i64 k = 0; k < pairs; k++) {
        __m512bh u = (__m512bh)_mm512_load_si512(w + 64 * k), v = (__m512bh)_mm512_load_si512(w + 64 * k + 32), y;
        int pair;
        TOKENS_12(m,
            memcpy(&pair, x + t * x_row + 2 * k, 4);
            y = (__m512bh)_mm512_set1_epi32(pair);
            a[t][0] = _mm512_dpbf16_ps(a[t][0], u, y), a[t][1] = _mm512_dpbf16_ps(a[t][1], v, y);)
    }
    TOKENS_12(m,
        float *s = sums + PANEL * t;
        if (!first) a[t][0] = _mm512_add_ps(a[t][0], _mm512_load_ps(s)), a[t][1] = _mm512_add_ps(a[t][1], _mm512_load_ps(s + 16));
        _mm512_store_ps(s, a[t][0]), _mm512_store_ps(s + 16, a[t][1]);)
}
T512 static void tile_avx512(int m, const void *panel, const void *x, i64 x_row, i64 groups, float *sums, int first) {
    BY_TOKENS_12(tile_avx512_m, m, panel, x, x_row, 16 * groups, sums, first)
}
#endif

#if defined(__aarch64__)
/* ---- NEON: fp32 as in AVX2, four numbers at a time ---- */

static const u8 HIGH1[16] = {HIGH}, LOW1[16] = {LOW};

/* 16 nibbles -> 16 numbers, in order. */
IN void numbers_neon(uint8x16_t nibbles, float32x4_t w[4]) {
    uint8x16_t h = vqtbl1q_u8(vld1q_u8(HIGH1), nibbles), l = vqtbl1q_u8(vld1q_u8(LOW1), nibbles);
    uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(l, h)), b = vreinterpretq_u16_u8(vzip2q_u8(l, h));
    w[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(a), 16)), w[1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(a), 16));
    w[2] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16)), w[3] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(b), 16));
}

/* Of every group first the even, then the odd elements. */
static void order_neon(const void *x, int bf16, i64 groups, void *to) {
    float *o = to;
    for (i64 g = 0; g < groups; g++)
        for (int nibble = 0; nibble < 2; nibble++)
            for (int i = 0; i < 16; i++) *o++ = load(x, 32 * g + 2 * i + nibble, bf16);
}

IN void row_neon_m(int m, const u8 *codes, const u8 *scales, i64 groups, const float *x, size_t stride, float *out) {
    float32x4_t sum[FOUR];
    for (int t = 0; t < m; t++) sum[t] = vdupq_n_f32(0);
    for (i64 g = 0; g < groups; g++) {
        __builtin_prefetch(codes + 16 * g + 4096);
        uint8x16_t b = vld1q_u8(codes + 16 * g);
        float32x4_t w[8];
        float s = power(scales[g]);
        numbers_neon(vandq_u8(b, vdupq_n_u8(15)), w);
        numbers_neon(vshrq_n_u8(b, 4), w + 4);
        for (int t = 0; t < m; t++) {
            const float *z = x + t * stride + 32 * g;
            float32x4_t a = vmulq_f32(w[0], vld1q_f32(z)), c = vmulq_f32(w[1], vld1q_f32(z + 4));
            for (int i = 2; i < 8; i += 2) {
                a = vfmaq_f32(a, w[i], vld1q_f32(z + 4 * i));
                c = vfmaq_f32(c, w[i + 1], vld1q_f32(z + 4 * i + 4));
            }
            sum[t] = vfmaq_n_f32(sum[t], vaddq_f32(a, c), s);
        }
    }
    for (int t = 0; t < m; t++) out[t] = vaddvq_f32(sum[t]);
}
static void row_neon(const u8 *c, const u8 *s, i64 g, const void *x, size_t stride, int m, float *out) {
    BY_TOKENS_4(row_neon_m, m, c, s, g, x, stride, out)
}

/* As in AVX2: transposed bytes, so that a register holds one byte of 16 rows. */
static void panel_neon(const u8 *codes, i64 code_row, const u8 *scales, i64 scale_row, int rows, i64 groups, void *to) {
    for (int half = 0; half < 2; half++)
        for (i64 g = 0; g < groups; g++) {
            float *o = (float *)to + half * 16 * 32 * groups + 16 * 32 * g, s[16];
            uint8x16_t a[16], b[16];
            for (int r = 0; r < 16; r++) {
                int row = 16 * half + r;
                a[r] = row < rows ? vld1q_u8(codes + row * code_row + 16 * g) : vdupq_n_u8(0);
                s[r] = row < rows ? power(scales[row * scale_row + g]) : 0;
            }
            UNROLL for (int pass = 0; pass < 4; pass++) {
                UNROLL for (int i = 0; i < 8; i++) b[2 * i] = vzip1q_u8(a[i], a[i + 8]), b[2 * i + 1] = vzip2q_u8(a[i], a[i + 8]);
                UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
            }
            for (int j = 0; j < 16; j++) {
                float32x4_t w[8];
                numbers_neon(vandq_u8(a[j], vdupq_n_u8(15)), w);
                numbers_neon(vshrq_n_u8(a[j], 4), w + 4);
                for (int i = 0; i < 8; i++) vst1q_f32(o + 32 * j + 4 * i, vmulq_f32(w[i], vld1q_f32(s + 4 * (i & 3))));
            }
        }
}

IN void tile_neon_m(int m, const float *w, const float *x, i64 n, float *sums, int first) {
    float32x4_t a[6][4];
    TOKENS_6(m, a[t][0] = a[t][1] = a[t][2] = a[t][3] = vdupq_n_f32(0);)
    for (i64 k = 0; k < n; k++) {
        const float *p = w + 16 * k;
        float32x4_t v0 = vld1q_f32(p), v1 = vld1q_f32(p + 4), v2 = vld1q_f32(p + 8), v3 = vld1q_f32(p + 12);
        TOKENS_6(m,
            float y = x[6 * k + t];
            a[t][0] = vfmaq_n_f32(a[t][0], v0, y), a[t][1] = vfmaq_n_f32(a[t][1], v1, y);
            a[t][2] = vfmaq_n_f32(a[t][2], v2, y), a[t][3] = vfmaq_n_f32(a[t][3], v3, y);)
    }
    TOKENS_6(m,
        float *s = sums + PANEL * t;
        if (!first) {
            a[t][0] = vaddq_f32(a[t][0], vld1q_f32(s)), a[t][1] = vaddq_f32(a[t][1], vld1q_f32(s + 4));
            a[t][2] = vaddq_f32(a[t][2], vld1q_f32(s + 8)), a[t][3] = vaddq_f32(a[t][3], vld1q_f32(s + 12));
        }
        vst1q_f32(s, a[t][0]), vst1q_f32(s + 4, a[t][1]), vst1q_f32(s + 8, a[t][2]), vst1q_f32(s + 12, a[t][3]);)
}
static void half_neon(int m, const float *w, const float *x, i64 n, float *sums, int first) {
    BY_TOKENS_6(tile_neon_m, m, w, x, n, sums, first)
}
static void tile_neon(int m, const void *panel, const void *x, i64 x_row, i64 groups, float *sums, int first) {
    (void)x_row;
    half_neon(m, panel, x, 32 * groups, sums, first);
    half_neon(m, (const float *)panel + 16 * 32 * groups, x, 32 * groups, sums + 16, first);
}
#endif

static const Kernels *kernels(int level, int bf16) {
    static const Kernels plain = {order_plain, row_plain, panel_plain, tile_plain, NULL, 4, 6, 4, 1};
#if defined(HAS512)
    static const Kernels avx512 = {order_avx512, row_avx512, panel_avx512, tile_avx512, NULL, 2, 12, 30, 0};
    if (level == AVX512 && bf16) return &avx512;
#endif
#if defined(__x86_64__)
    static const Kernels avx2 = {order_avx2, row_avx2, panel_avx2, tile_avx2, PLACE2, 4, 6, 4, 1};
    if (level >= AVX2) return &avx2;
#elif defined(__aarch64__)
    static const Kernels neon = {order_neon, row_neon, panel_neon, tile_neon, NULL, 4, 6, 4, 1};
    if (level == NEON) return &neon;
#endif
    (void)level, (void)bf16;
    return &plain;
}

/* ---- x times the matrices of several experts ---- */

typedef struct { i64 expert, first, last; } Group;
typedef struct { i64 group, row, n_rows, out, n_out; const u8 *x; } Piece; /* some tokens of an expert, some outputs */

typedef struct {
    const Kernels *k;
    const u8 *codes, *scales;
    const void *x, *bias;
    void *out;
    i64 code_expert, code_row, scale_expert, scale_row, bias_expert, n_out, n_groups;
    int bf16, failed;
    const Group *groups;
    Piece *pieces;
} Product;

static void piece_few(void *job, size_t i) {
    Product *p = job;
    Piece *w = p->pieces + i;
    i64 expert = p->groups[w->group].expert;
    const u8 *codes = p->codes + expert * p->code_expert, *scales = p->scales + expert * p->scale_expert;
    size_t stride = width_few(p->n_groups);
    for (i64 n = w->out; n < w->out + w->n_out; n++) {
        float bias = p->bias ? load(p->bias, expert * p->bias_expert + n, p->bf16) : 0, y[FOUR];
        for (i64 t = 0; t < w->n_rows; t += FOUR) {
            int m = (int)least(FOUR, w->n_rows - t);
            p->k->row(codes + n * p->code_row, scales + n * p->scale_row, p->n_groups, w->x + t * stride * p->k->size, stride, m, y);
            for (int j = 0; j < m; j++) store(p->out, (w->row + t + j) * p->n_out + n, y[j] + bias, p->bf16);
        }
    }
}

static void piece_many(void *job, size_t i) {
    Product *p = job;
    Piece *w = p->pieces + i;
    const Kernels *k = p->k;
    i64 expert = p->groups[w->group].expert, panels = (w->n_out + PANEL - 1) / PANEL, tokens = k->tokens;
    i64 rows = (w->n_rows + tokens - 1) / tokens * tokens, in = 32 * p->n_groups;
    const u8 *codes = p->codes + expert * p->code_expert, *scales = p->scales + expert * p->scale_expert;
    size_t panel_bytes = (size_t)k->chunk * 32 * PANEL * k->size;
    u8 *panel = room(panel_bytes + sizeof(float) * PANEL * rows * panels);
    if (!panel) { p->failed = 1; return; }
    float *sums = (float *)(panel + panel_bytes);
    for (i64 g = 0; g < p->n_groups; g += k->chunk) { /* what x has in these groups stays in the cache for all panels */
        i64 n = least(k->chunk, p->n_groups - g);
        for (i64 j = 0; j < panels; j++) {
            i64 out = w->out + PANEL * j;
            k->panel(codes + out * p->code_row + 16 * g, p->code_row, scales + out * p->scale_row + g, p->scale_row,
                     (int)least(PANEL, w->out + w->n_out - out), n, panel);
            for (i64 t = 0; t < w->n_rows; t += tokens) {
                const u8 *x = w->x + (t * in + 32 * g * (k->packed ? tokens : 1)) * k->size;
                k->tile((int)least(tokens, w->n_rows - t), panel, x, in, n, sums + PANEL * (j * rows + t), g == 0);
            }
        }
    }
    for (i64 j = 0; j < panels; j++) {
        i64 out = w->out + PANEL * j, n = least(PANEL, w->out + w->n_out - out);
        float bias[PANEL] = {0};
        int from[PANEL];
        for (int r = 0; r < PANEL; r++) from[k->place ? k->place[r] : r] = r;
        for (i64 r = 0; p->bias && r < n; r++) bias[r] = load(p->bias, expert * p->bias_expert + out + r, p->bf16);
        for (i64 t = 0; t < w->n_rows; t++) {
            const float *s = sums + PANEL * (j * rows + t);
            i64 at = (w->row + t) * p->n_out + out;
            if (p->bf16) for (i64 r = 0; r < n; r++) ((u16 *)p->out)[at + r] = narrow(s[from[r]] + bias[r]);
            else for (i64 r = 0; r < n; r++) ((float *)p->out)[at + r] = s[from[r]] + bias[r];
        }
    }
    free(panel);
}

/* x as the kernels read it: a row for "few", a tile for "many". */
typedef struct { const void *from; void *to; i64 tokens; } Input;
typedef struct { const Kernels *k; i64 n_groups; int bf16, few; Input *inputs; } Inputs;

static void piece_input(void *job, size_t i) {
    Inputs *p = job;
    Input *x = p->inputs + i;
    i64 in = 32 * p->n_groups, width = p->k->tokens;
    if (p->few) { p->k->order(x->from, p->bf16, p->n_groups, x->to); return; }
    float *to = x->to;
    if (p->bf16) for (i64 t = 0; t < x->tokens; t++) for (i64 c = 0; c < in; c++) to[c * width + t] = wide(((const u16 *)x->from)[t * in + c]);
    else for (i64 t = 0; t < x->tokens; t++) for (i64 c = 0; c < in; c++) to[c * width + t] = ((const float *)x->from)[t * in + c];
}

/* 0, or 1 where there is no memory. Groups cover the rows of x in order. Strides in elements; bias may be NULL. */
API int wb_linear_mxfp4(int level, int threads, int bf16, int few, const void *x, const i64 *groups, i64 count,
                        const u8 *codes, i64 code_expert, i64 code_row, const u8 *scales, i64 scale_expert, i64 scale_row,
                        const void *bias, i64 bias_expert, i64 n_out, i64 n_groups, void *out) {
    Product p = {kernels(level, bf16), codes, scales, x, bias, out, code_expert, code_row, scale_expert, scale_row,
                 bias_expert, n_out, n_groups, bf16, 0, (const Group *)groups, NULL};
    const Kernels *k = p.k;
    i64 in = 32 * n_groups, width = (i64)width_few(n_groups), slots = 0, n = 0, step = few ? 512 : 2 * PANEL;
    i64 ranges = (n_out + step - 1) / step;
    for (i64 g = 0; g < count; g++) {
        i64 rows = p.groups[g].last - p.groups[g].first;
        slots += few ? rows : (rows + k->tokens - 1) / k->tokens * k->tokens;
        n += ranges * (few ? 1 : (rows + BLOCK - 1) / BLOCK);
    }
    int direct = !few && !k->packed; /* the kernel reads x as it lies */
    u8 *ours = direct ? NULL : room((size_t)slots * (few ? width : in) * k->size);
    i64 n_in = 0;
    Inputs y = {k, n_groups, bf16, few, malloc(sizeof(Input) * (slots + 1))};
    p.pieces = malloc(sizeof(Piece) * (n + 1));
    if ((!direct && !ours) || !p.pieces || !y.inputs) { free(ours), free(p.pieces), free(y.inputs); return 1; }
    size_t element = bf16 ? 2 : 4;
    u8 *to = ours;
    n = 0;
    for (i64 g = 0; g < count; g++) {
        const Group *e = p.groups + g;
        i64 rows = e->last - e->first, block = few ? rows : BLOCK;
        const u8 *from = (const u8 *)x + e->first * in * element;
        for (i64 t = 0; t < rows; t += block)
            for (i64 r = 0; r < ranges; r++)
                p.pieces[n++] = (Piece){g, e->first + t, least(block, rows - t), r * step, least(step, n_out - r * step),
                                        direct ? from + t * in * element : to + t * (few ? width : in) * k->size};
        i64 step_in = few ? 1 : k->tokens;
        for (i64 t = 0; ours && t < rows; t += step_in, to += (few ? width : step_in * in) * k->size)
            y.inputs[n_in++] = (Input){from + t * in * element, to, least(step_in, rows - t)};
    }
    each(n_in, n_in * in > 1 << 16 ? threads : 1, piece_input, &y);
    each(n, threads, few ? piece_few : piece_many, &p);
    free(ours), free(p.pieces), free(y.inputs);
    return p.failed;
}

/* ---- x times a matrix of bf16, for up to four tokens: the weights are one stream ---- */

enum { STEP = 64 }; /* weights at once; x is filled up with zeros to a multiple, and so is the end of each row */

#define ENDING(w, k, n) /* where the weights k.. of a row of n lie: the last ones in a copy that has zeros after them */ \
    const u16 *p = (w) + (k); \
    u16 end[STEP] __attribute__((aligned(64))); \
    if ((n) - (k) < STEP) { \
        memset(end, 0, sizeof end); \
        memcpy(end, p, sizeof(u16) * (size_t)((n) - (k))); \
        p = end; \
    }

IN void stream_plain_m(int m, const u16 *w, i64 n, const float *x, size_t stride, float *out) {
    float a[FOUR][16] = {{0}};
    for (i64 k = 0; k < n; k += STEP) {
        ENDING(w, k, n)
        for (int j = 0; j < STEP; j += 16)
            for (int t = 0; t < m; t++)
                for (int i = 0; i < 16; i++) a[t][i] += wide(p[j + i]) * x[t * stride + k + j + i];
    }
    for (int t = 0; t < m; t++) {
        float *s = a[t];
        for (int h = 8; h; h /= 2) for (int i = 0; i < h; i++) s[i] += s[i + h];
        out[t] = s[0];
    }
}
static void stream_plain(const u16 *w, i64 n, const void *x, size_t stride, int m, float *out) {
    BY_TOKENS_4(stream_plain_m, m, w, n, x, stride, out)
}

#if defined(__x86_64__)
/* Of 16 weights the even ones are shifted up, the odd ones masked; x lies in that order. Four sums a token, so that none
 * waits for the one before; of three or four tokens two are done first, and the row is in the cache for the others. */
T2 IN void steps_avx2(int m, const u16 *p, const float *x, size_t stride, __m256 a[2][4]) {
    const __m256i top = _mm256_set1_epi32((int)0xffff0000);
    UNROLL for (int j = 0; j < STEP; j += 16) {
        __m256i b = _mm256_loadu_si256((const __m256i *)(p + j));
        __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), odd = _mm256_castsi256_ps(_mm256_and_si256(b, top));
        UNROLL for (int t = 0; t < m; t++) {
            const float *y = x + t * stride + j;
            __m256 *s = a[t] + j / 16 % 2 * 2;
            s[0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(y), s[0]);
            s[1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(y + 8), s[1]);
        }
    }
}
T2 IN void stream_avx2_m(int m, const u16 *w, i64 n, const float *x, size_t stride, float *out) {
    __m256 a[2][4];
    i64 k = 0;
    UNROLL for (int t = 0; t < m; t++) a[t][0] = a[t][1] = a[t][2] = a[t][3] = _mm256_setzero_ps();
    for (; k + STEP <= n; k += STEP) {
        _mm_prefetch((const char *)(w + k) + 1024, _MM_HINT_T0), _mm_prefetch((const char *)(w + k) + 1088, _MM_HINT_T0);
        steps_avx2(m, w + k, x + k, stride, a);
    }
    if (k < n) {
        ENDING(w, k, n)
        steps_avx2(m, p, x + k, stride, a);
    }
    UNROLL for (int t = 0; t < m; t++) out[t] = total2(_mm256_add_ps(_mm256_add_ps(a[t][0], a[t][1]), _mm256_add_ps(a[t][2], a[t][3])));
}
T2 static void stream_avx2(const u16 *w, i64 n, const void *x, size_t stride, int m, float *out) {
    for (int t = 0; t < m; t += 2) {
        const float *y = (const float *)x + t * stride;
        if (t + 1 < m) stream_avx2_m(2, w, n, y, stride, out + t);
        else stream_avx2_m(1, w, n, y, stride, out + t);
    }
}
#endif
#if defined(HAS512)
T512 IN void stream_avx512_m(int m, const u16 *w, i64 n, const u16 *x, size_t stride, float *out) {
    __m512 a[FOUR][2];
    UNROLL for (int t = 0; t < m; t++) a[t][0] = a[t][1] = _mm512_setzero_ps();
    for (i64 k = 0; k < n; k += STEP) {
        ENDING(w, k, n)
        _mm_prefetch((const char *)(w + k) + 8192, _MM_HINT_T0), _mm_prefetch((const char *)(w + k) + 8256, _MM_HINT_T0);
        __m512bh u = (__m512bh)_mm512_loadu_si512(p), v = (__m512bh)_mm512_loadu_si512(p + 32);
        UNROLL for (int t = 0; t < m; t++) {
            const u16 *y = x + t * stride + k;
            a[t][0] = _mm512_dpbf16_ps(a[t][0], u, (__m512bh)_mm512_loadu_si512(y));
            a[t][1] = _mm512_dpbf16_ps(a[t][1], v, (__m512bh)_mm512_loadu_si512(y + 32));
        }
    }
    UNROLL for (int t = 0; t < m; t++) out[t] = _mm512_reduce_add_ps(_mm512_add_ps(a[t][0], a[t][1]));
}
T512 static void stream_avx512(const u16 *w, i64 n, const void *x, size_t stride, int m, float *out) {
    BY_TOKENS_4(stream_avx512_m, m, w, n, x, stride, out)
}
#endif

typedef struct {
    void (*stream)(const u16 *w, i64 n, const void *x, size_t stride, int m, float *out);
    const u16 *w, *bias;
    const void *x;
    u16 *out;
    i64 w_row, n, n_out;
    size_t stride;
    int m;
} Stream;

enum { OUTPUTS = 128 };

static void piece_stream(void *job, size_t i) {
    Stream *p = job;
    float y[FOUR];
    for (i64 o = OUTPUTS * (i64)i; o < least(p->n_out, OUTPUTS * ((i64)i + 1)); o++) {
        p->stream(p->w + o * p->w_row, p->n, p->x, p->stride, p->m, y);
        for (int t = 0; t < p->m; t++) p->out[t * p->n_out + o] = narrow(y[t] + (p->bias ? wide(p->bias[o]) : 0));
    }
}

API int wb_linear_bf16(int level, int threads, const u16 *x, i64 m, const u16 *w, i64 w_row, const u16 *bias, i64 n,
                       i64 n_out, u16 *out) {
    size_t stride = (size_t)(n + STEP - 1) / STEP * STEP;
    Stream p = {stream_plain, w, bias, NULL, out, w_row, n, n_out, stride, (int)m};
    void *ours = room(sizeof(float) * stride * (size_t)m);
    if (!ours) return 1;
    p.x = ours;
    for (i64 t = 0; t < m; t++)
        for (i64 k = 0; k < (i64)stride; k++) {
            u16 v = k < n ? x[t * n + k] : 0;
            if (level == AVX512) ((u16 *)ours)[t * stride + k] = v;
            else if (level == AVX2) ((float *)ours)[t * stride + k / 16 * 16 + k % 16 / 2 + k % 2 * 8] = wide(v);
            else ((float *)ours)[t * stride + k] = wide(v);
        }
#if defined(__x86_64__)
    if (level == AVX2) p.stream = stream_avx2;
#endif
#if defined(HAS512)
    if (level == AVX512) p.stream = stream_avx512;
#endif
    each((n_out + OUTPUTS - 1) / OUTPUTS, threads, piece_stream, &p);
    free(ours);
    return 0;
}

/* ---- MXFP4 as numbers, and what may be computed without looking at each number ---- */

typedef struct { const u8 *codes, *scales; void *out; i64 n; int bf16, level; } Decode;

enum { GROUPS = 2048 };

static void number_bits(u8 scale, u32 bits[16]) { /* through fp64, so that 2^-127 and beyond come out right */
    for (int c = 0; c < 16; c++) bits[c] = scale == 255 ? 0x7fc00000 : as_bits((float)ldexp(FP4[c], scale - 127));
}

#if defined(__x86_64__)
/* 32 numbers of a group whose scale keeps them normal, in order. */
T2 static void group_avx2(const u8 *codes, u8 scale, void *out, int bf16) {
    __m128i b = _mm_loadu_si128((const __m128i *)codes), low = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(b, low), odd = _mm_and_si128(_mm_srli_epi16(b, 4), low);
    __m256i n = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(even, odd)), _mm_unpackhi_epi8(even, odd), 1);
    __m256i h = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)HIGH2), n);
    __m256i l = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)LOW2), n);
    __m256i a = _mm256_unpacklo_epi8(l, h), c = _mm256_unpackhi_epi8(l, h);
    __m256i w[2] = {_mm256_permute2x128_si256(a, c, 0x20), _mm256_permute2x128_si256(a, c, 0x31)};
    const __m256i size = _mm256_set1_epi16(0x7fff), zero = _mm256_setzero_si256();
    const __m256i add = _mm256_set1_epi16((short)(((int)scale - 127) * 128));
    for (int i = 0; i < 2; i++) {
        __m256i none = _mm256_cmpeq_epi16(_mm256_and_si256(w[i], size), zero);
        w[i] = _mm256_add_epi16(w[i], _mm256_andnot_si256(none, add));
        if (bf16) {
            _mm256_storeu_si256((__m256i *)((u16 *)out + 16 * i), w[i]);
        } else {
            _mm256_storeu_si256((__m256i *)((u32 *)out + 16 * i),
                                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(w[i])), 16));
            _mm256_storeu_si256((__m256i *)((u32 *)out + 16 * i + 8),
                                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(w[i], 1)), 16));
        }
    }
}
#endif

static void piece_decode(void *job, size_t i) {
    Decode *p = job;
    int last = -1;
    u32 bits[16];
    for (i64 g = GROUPS * (i64)i; g < least(p->n, GROUPS * ((i64)i + 1)); g++) {
        const u8 *c = p->codes + 16 * g;
        u8 s = p->scales[g];
#if defined(__x86_64__)
        if (p->level >= AVX2 && s >= 2 && s <= 252) {
            group_avx2(c, s, (u8 *)p->out + 32 * g * (p->bf16 ? 2 : 4), p->bf16);
            continue;
        }
#endif
        if (s != last) number_bits(s, bits), last = s;
        if (p->bf16) {
            u16 *o = (u16 *)p->out + 32 * g;
            for (int j = 0; j < 16; j++) o[2 * j] = (u16)(bits[c[j] & 15] >> 16), o[2 * j + 1] = (u16)(bits[c[j] >> 4] >> 16);
        } else {
            u32 *o = (u32 *)p->out + 32 * g;
            for (int j = 0; j < 16; j++) o[2 * j] = bits[c[j] & 15], o[2 * j + 1] = bits[c[j] >> 4];
        }
    }
}

API void wb_dequantise(int level, int threads, int bf16, const u8 *codes, const u8 *scales, i64 n, void *out) {
    Decode p = {codes, scales, out, n, bf16, level};
    each((n + GROUPS - 1) / GROUPS, threads, piece_decode, &p);
}

typedef struct { const u8 *scales; i64 n; u8 low, width; u8 *found; } Scan;

enum { SCANNED = 1 << 20 };

IN int outside(const u8 *s, i64 n, u8 low, u8 width) {
    u8 bad = 0;
    for (i64 i = 0; i < n; i++) bad |= (u8)((u8)(s[i] - low) > width);
    return bad;
}
static int outside_plain(const u8 *s, i64 n, u8 low, u8 width) { return outside(s, n, low, width); }
#if defined(__x86_64__)
T2 static int outside_avx2(const u8 *s, i64 n, u8 low, u8 width) { return outside(s, n, low, width); }
#endif
static void piece_scan(void *job, size_t i) {
    Scan *p = job;
    i64 a = SCANNED * (i64)i, n = least(SCANNED, p->n - a);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) { p->found[i] = (u8)outside_avx2(p->scales + a, n, p->low, p->width); return; }
#endif
    p->found[i] = (u8)outside_plain(p->scales + a, n, p->low, p->width);
}

/* 1 if all scales lie in low..high, 0 if not, -1 without memory. */
API int wb_within(int threads, const u8 *scales, i64 n, int low, int high) {
    i64 pieces = (n + SCANNED - 1) / SCANNED;
    Scan p = {scales, n, (u8)low, (u8)(high - low), calloc((size_t)pieces + 1, 1)};
    if (!p.found) return -1;
    each(pieces, threads, piece_scan, &p);
    int bad = 0;
    for (i64 i = 0; i < pieces; i++) bad |= p.found[i];
    free(p.found);
    return !bad;
}

/* ---- exp, one number at a time in the source, as many as the processor takes in the object ---- */

/* 2^n * e^r with |r| <= ln 2 / 2; two powers, because 2^128 is no float. NaN stays NaN; x may be anything. */
IN float exponential(float x) {
    const float round = 12582912.f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float y = x > 100.f ? 100.f : x < -110.f ? -110.f : x;
    float shifted = y * 1.44269504088896341f + round, n = shifted - round;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f, p = p * r + 8.33333333e-3f, p = p * r + 4.16666667e-2f, p = p * r + 1.66666667e-1f;
    p = p * r + .5f, p = p * r * r + r + 1.f;
    int32_t k = (int32_t)(as_bits(shifted) - 0x4b400000u);
    k = k > 160 ? 160 : k < -160 ? -160 : k; /* of NaN the bits are anything */
    int32_t half = k >> 1;
    return p * as_float((u32)(half + 127) << 23) * as_float((u32)(k - half + 127) << 23);
}

/* ---- swiglu ---- */

typedef struct { const void *x; void *out; i64 rows, n; float alpha, limit; int bf16, level; } Gate;

IN float gated(float gate, float up, float alpha, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return (up + 1.f) * (gate * (1.f / (1.f + exponential(-(alpha * gate)))));
}
IN void gate_row(const Gate *p, i64 row) {
    i64 n = p->n;
    float alpha = p->alpha, limit = p->limit;
    if (p->bf16) {
        const u32 *x = (const u32 *)p->x + row * n; /* a gate and the up beside it */
        u16 *o = (u16 *)p->out + row * n;
        for (i64 i = 0; i < n; i++) {
            u32 pair;
            memcpy(&pair, x + i, 4);
            o[i] = narrow(gated(as_float(pair << 16), as_float(pair & 0xffff0000u), alpha, limit));
        }
    } else {
        const float *x = (const float *)p->x + 2 * row * n;
        float *o = (float *)p->out + row * n;
        for (i64 i = 0; i < n; i++) o[i] = gated(x[2 * i], x[2 * i + 1], alpha, limit);
    }
}
static void gate_plain(const Gate *p, i64 row) { gate_row(p, row); }
#if defined(__x86_64__)
T2 static void gate_avx2(const Gate *p, i64 row) { gate_row(p, row); }
#endif
enum { GATED = 4 };
static void piece_gate(void *job, size_t i) {
    Gate *p = job;
    for (i64 r = GATED * (i64)i; r < least(p->rows, GATED * ((i64)i + 1)); r++)
#if defined(__x86_64__)
        if (p->level >= AVX2) gate_avx2(p, r); else
#endif
        gate_plain(p, r);
}

API void wb_swiglu(int level, int threads, int bf16, const void *x, i64 rows, i64 n, float alpha, float limit, void *out) {
    Gate p = {x, out, rows, n, alpha, limit, bf16, level};
    each((rows + GATED - 1) / GATED, threads, piece_gate, &p);
}

/* ---- attention of one query: scores, pattern, values ---- */

typedef struct {
    int bf16, level, failed;
    i64 heads, kv, keys, d, head_stride, key_stride;
    float scale;
    const void *cache; /* keys or values */
    float *q, *s;      /* fp32 [head][d], [head][key] */
    const float *sinks;
    float *mass, *sums;
} Attend;

enum { SPAN = 512, BITE = 64 }; /* keys of a piece: fixed, so that no sum depends on the number of threads; keys at once */

IN void widen(const Attend *p, i64 kv, i64 key, float *to, int bf16) {
    i64 at = kv * p->head_stride + key * p->key_stride;
    for (i64 i = 0; i < p->d; i++) to[i] = load(p->cache, at + i, bf16);
}
IN float finished(float s, float scale, int bf16) { return bf16 ? wide(narrow(s * scale)) : s * scale; }

IN void scores_span(const Attend *p, i64 kv, i64 from, i64 to, float *room8, int bf16) {
    i64 group = p->heads / p->kv, d = p->d;
    for (i64 j = from; j < to; j++) {
        widen(p, kv, j, room8, bf16);
        for (i64 h = kv * group; h < (kv + 1) * group; h++) {
            const float *q = p->q + h * d;
            float a[8] = {0}, rest = 0;
            i64 i = 0;
            for (; i + 8 <= d; i += 8) for (int c = 0; c < 8; c++) a[c] += q[i + c] * room8[i + c];
            for (; i < d; i++) rest += q[i] * room8[i];
            float s = ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7])) + rest;
            p->s[h * p->keys + j] = finished(s, p->scale, bf16);
        }
    }
}

/* The pattern of a few keys, rounded to the values' dtype: w[head][BITE]. */
IN void weights(const Attend *p, i64 head, i64 from, i64 n, float *w) {
    for (i64 h = 0; h < p->heads / p->kv; h++) {
        const float *s = p->s + (head + h) * p->keys + from;
        if (p->bf16) for (i64 j = 0; j < n; j++) w[h * BITE + j] = wide(narrow(s[j]));
        else for (i64 j = 0; j < n; j++) w[h * BITE + j] = s[j];
    }
}

/* The values of a few keys, weighted, added to sums[head][d]; w: [head][BITE]. Summed by themselves first: long sums
 * of small numbers lose bits. */
static void mix_plain(i64 heads, const float *w, i64 n, const float *values, i64 d, float *sums) {
    for (i64 h = 0; h < heads; h++)
        for (i64 i = 0; i < d; i += 8) {
            float a[8] = {0};
            int m = (int)least(8, d - i);
            for (i64 j = 0; j < n; j++)
                for (int c = 0; c < m; c++) a[c] += w[h * BITE + j] * values[j * d + i + c];
            for (int c = 0; c < m; c++) sums[h * d + i + c] += a[c];
        }
}

#if defined(__x86_64__)
/* d is a multiple of 8. Eight keys at a time: the eight sums of a head are added up across by one tree of adds. */
T2 IN __m256 totals8(const __m256 a[8]) {
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    __m256 c = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(b, c, 0x20), _mm256_permute2f128_ps(b, c, 0x31));
}
T2 IN __m256 rounded8(__m256 v) { /* `narrow` and back */
    __m256i b = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
    __m256 y = _mm256_castsi256_ps(_mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000)));
    return _mm256_blendv_ps(y, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
T2 IN void widen8(const Attend *p, i64 kv, i64 key, float *to, int bf16) {
    i64 at = kv * p->head_stride + key * p->key_stride, size = bf16 ? 2 : 4, far = 32 * p->key_stride;
    for (i64 i = 0; i < p->d; i += 64 / size) _mm_prefetch((const char *)p->cache + size * (at + far + i), _MM_HINT_T0);
    for (i64 i = 0; i < p->d; i += 8) {
        __m256 v;
        if (bf16) v = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const u16 *)p->cache + at + i))), 16));
        else v = _mm256_loadu_ps((const float *)p->cache + at + i);
        _mm256_storeu_ps(to + i, v);
    }
}
T2 IN void scores_eights(const Attend *p, i64 kv, i64 from, i64 to, float *room8, int bf16, i64 d) {
    i64 group = p->heads / p->kv;
    for (i64 j = from; j < to; j += 8) {
        i64 n = least(8, to - j);
        for (i64 r = 0; r < 8; r++) {
            if (r < n) widen8(p, kv, j + r, room8 + r * d, bf16);
            else memset(room8 + r * d, 0, sizeof(float) * (size_t)d);
        }
        for (i64 h = kv * group; h < (kv + 1) * group; h++) {
            const float *q = p->q + h * d;
            __m256 a[8];
            UNROLL for (int r = 0; r < 8; r++) a[r] = _mm256_setzero_ps();
            for (i64 i = 0; i < d; i += 8) {
                __m256 y = _mm256_loadu_ps(q + i);
                UNROLL for (int r = 0; r < 8; r++) a[r] = _mm256_fmadd_ps(y, _mm256_loadu_ps(room8 + r * d + i), a[r]);
            }
            __m256 s = _mm256_mul_ps(totals8(a), _mm256_set1_ps(p->scale));
            float *to_s = p->s + h * p->keys + j, some[8];
            if (bf16) s = rounded8(s);
            _mm256_storeu_ps(n == 8 ? to_s : some, s);
            for (i64 r = 0; n < 8 && r < n; r++) to_s[r] = some[r];
        }
    }
}
T2 static void scores_avx2(const Attend *p, i64 kv, i64 from, i64 to, float *room8) {
    if (p->d % 8) { if (p->bf16) scores_span(p, kv, from, to, room8, 1); else scores_span(p, kv, from, to, room8, 0); }
    else if (p->bf16 && p->d == 64) scores_eights(p, kv, from, to, room8, 1, 64); /* as in every gpt-oss */
    else if (p->bf16) scores_eights(p, kv, from, to, room8, 1, p->d);
    else scores_eights(p, kv, from, to, room8, 0, p->d);
}
T2 IN void mix_avx2_m(int m, const float *w, i64 n, const float *values, i64 d, float *sums) {
    for (i64 i = 0; i < d; i += 32) {
        __m256 a[2][4];
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int c = 0; c < 4; c++) a[t][c] = _mm256_setzero_ps();
        const float *v = values + i;
        for (i64 j = 0; j < n; j++, v += d)
            UNROLL for (int t = 0; t < m; t++) {
                __m256 y = _mm256_broadcast_ss(w + t * BITE + j);
                UNROLL for (int c = 0; c < 4; c++) a[t][c] = _mm256_fmadd_ps(y, _mm256_loadu_ps(v + 8 * c), a[t][c]);
            }
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int c = 0; c < 4; c++) {
            float *s = sums + t * d + i + 8 * c;
            _mm256_storeu_ps(s, _mm256_add_ps(_mm256_loadu_ps(s), a[t][c]));
        }
    }
}
T2 static void mix_avx2(const Attend *p, i64 kv, i64 from, float *w, i64 n, float *values, float *sums) {
    i64 h = 0, heads = p->heads / p->kv, d = p->d;
    weights(p, kv * heads, from, n, w);
    for (i64 j = 0; j < n; j++) {
        if (p->bf16) widen8(p, kv, from + j, values + j * d, 1);
        else widen8(p, kv, from + j, values + j * d, 0);
    }
    if (d == 64) for (; h + 2 <= heads; h += 2) mix_avx2_m(2, w + h * BITE, n, values, 64, sums + h * 64);
    for (; h + 2 <= heads; h += 2) mix_avx2_m(2, w + h * BITE, n, values, d, sums + h * d);
    if (h < heads) mix_avx2_m(1, w + h * BITE, n, values, d, sums + h * d);
}
#endif

static i64 spans(const Attend *p) { return (p->keys + SPAN - 1) / SPAN; }

/* A piece too small to be worth waking a thread stays here. */
static int worth(const Attend *p, int threads) { return p->heads * p->keys * p->d < (1 << 18) ? 1 : threads; }

static void piece_scores(void *job, size_t i) {
    Attend *p = job;
    i64 kv = (i64)i / spans(p), from = SPAN * ((i64)i % spans(p)), to = least(p->keys, from + SPAN);
    float *space = room(sizeof(float) * 8 * (size_t)p->d);
    if (!space) { p->failed = 1; return; }
#if defined(__x86_64__)
    if (p->level >= AVX2) scores_avx2(p, kv, from, to, space); else
#endif
    if (p->bf16) scores_span(p, kv, from, to, space, 1);
    else scores_span(p, kv, from, to, space, 0);
    free(space);
}

API int wb_scores(int level, int threads, int bf16, const void *q, i64 q_row, i64 heads, i64 d, const void *k, i64 kv,
                  i64 keys, i64 head_stride, i64 key_stride, float *s) {
    Attend p = {bf16, level, 0, heads, kv, keys, d, head_stride, key_stride, (float)(1 / sqrt((double)d)), k, NULL, s, NULL, NULL, NULL};
    p.q = room(sizeof(float) * (size_t)(heads * d));
    if (!p.q) return 1;
    for (i64 h = 0; h < heads; h++) for (i64 i = 0; i < d; i++) p.q[h * d + i] = load(q, h * q_row + i, bf16);
    each(kv * spans(&p), worth(&p, threads), piece_scores, &p);
    free(p.q);
    return p.failed;
}

enum { LANES = 32 };
#define ACROSS(s, op) \
    for (int h = LANES / 2; h; h /= 2) for (int i = 0; i < h; i++) s[i] = op(s[i], s[i + h]);
#define MORE(a, b) ((b) > (a) ? (b) : (a))
#define SUM(a, b) ((a) + (b))

IN float exponential_or_zero(float x) { /* what would leave the normal numbers is exactly 0 */
    float e = exponential(x);
    return e < 4 * 1.17549435e-38f ? 0.f : e;
}
IN void softmax_row(float *s, i64 n, float sink, float *mass) {
    float top[LANES], sum[LANES] = {0}, last = sink;
    i64 j = 0;
    for (int i = 0; i < LANES; i++) top[i] = sink;
    for (; j + LANES <= n; j += LANES) for (int i = 0; i < LANES; i++) top[i] = MORE(top[i], s[j + i]);
    for (; j < n; j++) last = MORE(last, s[j]);
    ACROSS(top, MORE)
    float highest = MORE(top[0], last), rest = 0;
    for (j = 0; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) {
            float e = exponential_or_zero(s[j + i] - highest);
            s[j + i] = e, sum[i] += e;
        }
    for (; j < n; j++) s[j] = exponential_or_zero(s[j] - highest), rest += s[j];
    ACROSS(sum, SUM)
    float e = expf(sink - highest), total = sum[0] + rest + e, by = 1.f / total;
    for (j = 0; j < n; j++) s[j] *= by;
    *mass = e / total;
}
static void softmax_plain(float *s, i64 n, float sink, float *mass) { softmax_row(s, n, sink, mass); }
#if defined(__x86_64__)
T2 static void softmax_avx2(float *s, i64 n, float sink, float *mass) { softmax_row(s, n, sink, mass); }
#endif
static void piece_softmax(void *job, size_t h) {
    Attend *p = job;
#if defined(__x86_64__)
    if (p->level >= AVX2) { softmax_avx2(p->s + (i64)h * p->keys, p->keys, p->sinks[h], p->mass + h); return; }
#endif
    softmax_plain(p->s + (i64)h * p->keys, p->keys, p->sinks[h], p->mass + h);
}

API void wb_softmax_sink(int level, int threads, float *s, i64 heads, i64 keys, const float *sinks, float *mass) {
    Attend p = {0, level, 0, heads, 1, keys, 8, 0, 0, 0, NULL, NULL, s, sinks, mass, NULL};
    each(heads, worth(&p, threads), piece_softmax, &p);
}

static void piece_mix(void *job, size_t i) {
    Attend *p = job;
    i64 kv = (i64)i / spans(p), span = (i64)i % spans(p), group = p->heads / p->kv, d = p->d;
    float *sums = p->sums + (span * p->heads + kv * group) * d, *values = room(sizeof(float) * (size_t)(BITE * (d + group)));
    if (!values) { p->failed = 1; return; }
    float *w = values + BITE * d;
    memset(sums, 0, sizeof(float) * (size_t)(group * d));
    for (i64 from = SPAN * span; from < least(p->keys, SPAN * (span + 1)); from += BITE) {
        i64 n = least(BITE, least(p->keys, SPAN * (span + 1)) - from);
#if defined(__x86_64__)
        if (p->level >= AVX2 && d % 32 == 0) {
            mix_avx2(p, kv, from, w, n, values, sums);
            continue;
        }
#endif
        weights(p, kv * group, from, n, w);
        for (i64 j = 0; j < n; j++) widen(p, kv, from + j, values + j * d, p->bf16);
        mix_plain(group, w, n, values, d, sums);
    }
    free(values);
}

API int wb_mix(int level, int threads, int bf16, float *pattern, i64 heads, i64 keys, const void *v, i64 kv, i64 d,
               i64 head_stride, i64 key_stride, void *out) {
    Attend p = {bf16, level, 0, heads, kv, keys, d, head_stride, key_stride, 0, v, NULL, pattern, NULL, NULL, NULL};
    i64 n = spans(&p);
    p.sums = room(sizeof(float) * (size_t)(n * heads * d));
    if (!p.sums) return 1;
    each(kv * n, worth(&p, threads), piece_mix, &p);
    for (i64 i = 0; i < heads * d; i++) {
        float sum = 0;
        for (i64 j = 0; j < n; j++) sum += p.sums[j * heads * d + i];
        store(out, i, sum, bf16);
    }
    free(p.sums);
    return p.failed;
}

/* ---- what this library is, and what this machine can run ---- */

API const char *wb_source(void) { return WORKBENCH_SOURCE; }

API int wb_threaded(void) {
#if defined(_OPENMP) || defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}

API int wb_runs(int level) {
    if (level == PORTABLE) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (level == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(EMULATED)
    if (level == AVX512) return 1;
#elif defined(HAS512)
    if (level == AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
#endif
#elif defined(__aarch64__)
    if (level == NEON) return 1;
#endif
    return 0;
}
