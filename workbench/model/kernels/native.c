/* The expensive arithmetic, for the current processor: every product of a forward pass (fp32, bf16 and MXFP4), attention,
 * and the functions of a row. native.py calls it through ctypes and checks every shape; nothing is checked here. The
 * reference in torch is in linear.py, experts.py, attention.py and rows.py.
 *
 * A row's bits depend on that row alone: not on the other rows, the threads, or which of the forms below is used.
 * In fp32, and in bf16 without AVX-512, they do not depend on the processor either: fixed_order.h defines the order of
 * additions, and vectors.h has its operations for each processor. bf16 with AVX-512 has another order, because there
 * two products and their sum are one instruction.
 *
 * An MXFP4 row is a sequence of groups: 16 bytes of codes (byte i: element 2i low, 2i + 1 high) and one scale byte s; an
 * element is FP4[code] * 2^(s - 127). A scaled number is a bf16 whose two bytes come from two 16-entry tables.
 *
 * A product has two forms that give the same bits. For up to four rows of an expert, each row of weights is one
 * sequential stream, decoded in registers. For more rows, some rows of weights are decoded into a panel in the cache and
 * multiplied with all rows of x.
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
#ifndef T512 /* a test may compile these functions against an emulation, see tests/model/kernels */
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
typedef uint64_t u64;
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
enum { FP32 = 0, BF16 = 1, MXFP4 = 2, PLANES = 3 }; /* how weights are stored */
enum { PACKED_ROWS = 6, DECODE_MAX_ROWS = 4, STRIP = 64, TILE = 256, STEP = 64, NEAR = 512 };
/* PACKED_ROWS: rows that are packed together. DECODE_MAX_ROWS: rows of x in the first form. STRIP, TILE: outputs and rows
 * of a work item. STEP: weights at once. NEAR: numbers of a row that stay in the L1 cache. */

/* The FP4 numbers times a group's scale as bf16, for each scale byte: scaling adds to the exponent of all but zeros. Right
 * where the results are normal, as they are for the scales that native.py lets pass. */
#define TIMES(bits, s) (u16)((bits) + ((s) - 127) * 128)
#define SIGNED(of, sign, s) of(sign), of(TIMES((sign) + 0x3F00, s)), of(TIMES((sign) + 0x3F80, s)), of(TIMES((sign) + 0x3FC0, s)), \
    of(TIMES((sign) + 0x4000, s)), of(TIMES((sign) + 0x4040, s)), of(TIMES((sign) + 0x4080, s)), of(TIMES((sign) + 0x40C0, s))
#define NUMBERS(of, s) {SIGNED(of, 0, s), SIGNED(of, 0x8000, s)}
#define UPPER(bits) (u8)((bits) >> 8)
#define SCALED_ROW(s) NUMBERS((u16), s)
#define SCALED_BYTES(s) {NUMBERS(UPPER, s), NUMBERS((u8), s)}
#define EACH4TH(f, s) f(s), f((s) + 1), f((s) + 2), f((s) + 3)
#define EACH16TH(f, s) EACH4TH(f, s), EACH4TH(f, (s) + 4), EACH4TH(f, (s) + 8), EACH4TH(f, (s) + 12)
#define EACH64TH(f, s) EACH16TH(f, s), EACH16TH(f, (s) + 16), EACH16TH(f, (s) + 32), EACH16TH(f, (s) + 48)
#define EACH_SCALE(f) EACH64TH(f, 0), EACH64TH(f, 64), EACH64TH(f, 128), EACH64TH(f, 192)
static const u16 SCALED[256][16] __attribute__((aligned(64))) = {EACH_SCALE(SCALED_ROW)};
static const u8 SCALED_HALVES[256][2][16] __attribute__((aligned(64))) = {EACH_SCALE(SCALED_BYTES)}; /* upper and lower bytes */
static const float FP4[16] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

IN float as_float(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
IN u32 as_bits(float f) { u32 b; memcpy(&b, &f, 4); return b; }
IN double double_of(u64 bits) { double d; memcpy(&d, &bits, 8); return d; }
IN u64 bits_of(double d) { u64 b; memcpy(&b, &d, 8); return b; }
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
IN i64 min64(i64 a, i64 b) { return a < b ? a : b; }

static void *allocate(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes + 64) ? NULL : p;
}

/* ---- threads: work items are assigned one by one, so that unequal ones balance ---- */

typedef void (*Work)(void *job, size_t piece);

static void each(i64 n, int threads, Work work, void *job) {
#if defined(_OPENMP)
    if (threads > 1 && n > 1) { /* always the same number of threads: otherwise libgomp stops and starts some */
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

#include "vectors.h"

/* ---- exp and log by operations that IEEE 754 defines, because libm's differ between machines ---- */

/* 2^n * e^r with |r| <= ln 2 / 2; two powers, because 2^128 is not a float. NaN stays NaN; x is unrestricted. */
IN float exponential(float x) {
    const float round = 12582912.f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float y = x > 100.f ? 100.f : x < -110.f ? -110.f : x;
    float shifted = fmaf(y, 1.44269504088896341f, round), n = shifted - round;
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, y));
    float p = fmaf(1.98412698e-4f, r, 1.38888889e-3f);
    p = fmaf(p, r, 8.33333333e-3f), p = fmaf(p, r, 4.16666667e-2f), p = fmaf(p, r, 1.66666667e-1f), p = fmaf(p, r, .5f);
    p = fmaf(p * r, r, r) + 1.f;
    int32_t k = (int32_t)(as_bits(shifted) - 0x4b400000u);
    k = k > 160 ? 160 : k < -160 ? -160 : k; /* the bits of NaN are arbitrary */
    int32_t half = k >> 1;
    return p * as_float((u32)(half + 127) << 23) * as_float((u32)(k - half + 127) << 23);
}
IN float exponential_or_zero(float x) { /* a subnormal result is replaced by exactly 0 */
    float e = exponential(x);
    return e < 4 * 1.17549435e-38f ? 0.f : e;
}
/* e ln 2 + 2 artanh(t) with t = (m - 1) / (m + 1), m within sqrt 2 of 1. x is a normal number above 0. */
IN double positive_logarithm(double x) {
    u64 bits = bits_of(x);
    double e = double_of((bits >> 52) | 0x4330000000000000ull) - (0x1p52 + 1023); /* the exponent, converted exactly */
    double m = double_of((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    int big = m > 1.4142135623730951;
    m = big ? m * .5 : m, e = big ? e + 1 : e;
    double t = (m - 1) / (m + 1), s = t * t, sum = 1. / 19;
    UNROLL for (int i = 17; i >= 1; i -= 2) sum = sum * s + 1. / i;
    return e * 0.6931471805599453 + 2 * t * sum;
}
static float logarithm(float x) { /* in fp64, rounded once; a subnormal float is a normal double */
    if (!(x > 0) || x > 3.4028234e38f) return x == 0 ? -INFINITY : x > 0 ? x : NAN;
    return (float)positive_logarithm(x);
}
IN float gated(float gate, float up, float alpha, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return (up + 1.f) * (gate * (1.f / (1.f + exponential(-(alpha * gate)))));
}
#define MORE(a, b) ((b) > (a) ? (b) : (a))

/* Rows of n numbers and the arguments of a function of each row; fixed_order.h shows which function uses which. */
typedef struct {
    const void *x;
    void *out;
    const float *scale, *other;
    i64 n, count, positions;
    float eps, alpha, limit;
    int bf16;
} Rows;

#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)

#define LEVEL plain
#define TARGET
#define MANY_ROWS 1
#define MANY_COLS 1
#define WEIGH_ROWS 1
#include "fixed_order.h"
#if defined(__x86_64__)
#define LEVEL avx2
#define TARGET T2
#define MANY_ROWS 3
#define MANY_COLS 2
#define WEIGH_ROWS 2
#include "fixed_order.h"
#endif
#if defined(HAS512)
#define LEVEL avx512
#define TARGET T512
#define MANY_ROWS 4
#define MANY_COLS 4
#define WEIGH_ROWS 4
#include "fixed_order.h"
#endif
#if defined(__aarch64__)
#define LEVEL neon
#define TARGET
#define MANY_ROWS 2
#define MANY_COLS 2
#define WEIGH_ROWS 2
#include "fixed_order.h"
#endif

#if defined(__x86_64__)
/* ---- many rows with AVX2: fixed_order.h's sums with outputs in the lanes ----
 *
 * With 16 registers, blocks of dot products are limited by the cache. Here six rows of x are multiplied with 16 rows of
 * weights. Both are packed by k mod 16, so that one of the 16 partial sums is computed at a time, in order of k, and the
 * sums are added in the order of the tree. The bits are those of `dots`. */

enum { SIX = PACKED_ROWS, EIGHT = 8 };

/* Transposes eight rows of eight numbers. */
T2 IN void transpose8(const __m256 in[8], __m256 out[8]) {
    __m256 a[8], b[8];
    UNROLL for (int i = 0; i < 4; i++) a[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]), a[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
    UNROLL for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44), b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44), b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) out[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20), out[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
}
/* Packs at most `wide` rows of n numbers: element k of all rows goes to to[k mod 16 * share + k / 16 * wide], padded with
 * zeros. Eight numbers at a time are written, also if `wide` is six. */
T2 static void pack_rows(const float *x, i64 xs, i64 rows, i64 n, float *to, i64 wide, i64 share) {
    for (i64 k = 0; k < (n + 15) / 16 * 16; k += EIGHT)
        for (i64 first = 0; first < wide; first += EIGHT) {
            const float *at = x + first * xs + k;
            __m256 in[8], out[8];
            UNROLL for (int r = 0; r < EIGHT; r++) {
                if (first + r >= rows || k >= n) in[r] = _mm256_setzero_ps();
                else if (k + EIGHT <= n) in[r] = _mm256_loadu_ps(at + r * xs);
                else {
                    float end[8] = {0};
                    memcpy(end, at + r * xs, sizeof(float) * (size_t)(n - k));
                    in[r] = _mm256_loadu_ps(end);
                }
            }
            transpose8(in, out);
            float *place = to + k % 16 * share + k / 16 * wide + first;
            UNROLL for (int i = 0; i < EIGHT; i++) _mm256_storeu_ps(place + i * share, out[i]);
        }
}
/* One of the 16 partial sums of six rows with 16 outputs, the i-th in the order of the tree. `sums` are the pending sums
 * by height in the tree; the total is at height 4. */
T2 IN void six_avx2(int i, const float *x, const float *w, i64 deep, float (*sums)[SIX * 16]) {
    V16_avx2 a[SIX];
    int height = 0;
    UNROLL for (int t = 0; t < SIX; t++) a[t] = zero_avx2();
    UNROLL4 for (i64 j = 0; j < deep; j++) {
        V16_avx2 b = load_avx2(w + 16 * j);
        UNROLL for (int t = 0; t < SIX; t++) a[t] = fma_avx2(all_avx2(x[SIX * j + t]), b, a[t]);
    }
    for (; i >> height & 1; height++) UNROLL for (int t = 0; t < SIX; t++) a[t] = add_avx2(load_avx2(sums[height] + 16 * t), a[t]);
    UNROLL for (int t = 0; t < SIX; t++) store_avx2(sums[height] + 16 * t, a[t]);
}

/* The layout of x for `six_avx2`: the size of one partial sum's part of six rows, and the packing. */
static i64 share_avx2(i64 n) { return (n + 15) / 16 * SIX + EIGHT; } /* packing writes eight numbers for six */
static i64 packed_avx2(i64 n) { return 16 * share_avx2(n); }
T2 static void pack_avx2(const float *x, i64 xs, i64 n, float *to) { pack_rows(x, xs, SIX, n, to, SIX, share_avx2(n)); }
/* As `dots_avx2`, for complete groups of six rows. `space` has 16 packed rows of weights, then the pending sums. One
 * partial sum's part of the weights stays in the L1 cache for all rows. */
static i64 space_avx2(i64 rows, i64 n) { return (n + 15) / 16 * 256 + rows / SIX * 5 * SIX * 16; }
T2 static void sixes_avx2(const float *packed, i64 rows, const float *w, i64 ws, i64 cols, i64 n, float *space, float *y, i64 ys) {
    static const u8 REVERSED[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    i64 deep = (n + 15) / 16, share = share_avx2(n), sixes = rows / SIX;
    float (*sums)[5][SIX * 16] = (float (*)[5][SIX * 16])(space + deep * 256);
    for (i64 c = 0; c < cols; c += 16) {
        i64 m = min64(16, cols - c);
        pack_rows(w + c * ws, ws, m, n, space, 16, 16 * deep);
        for (int i = 0; i < 16; i++)
            for (i64 r = 0; r < sixes; r++)
                six_avx2(i, packed + r * packed_avx2(n) + REVERSED[i] * share, space + REVERSED[i] * deep * 16, deep, sums[r]);
        for (i64 r = 0; r < sixes * SIX; r++) memcpy(y + r * ys + c, sums[r / SIX][4] + r % SIX * 16, sizeof(float) * (size_t)m);
    }
}
#endif

/* ---- a row of MXFP4: decoded to fp32, and multiplied with up to four rows of x during decoding ----
 *
 * `few` needs x in the order in which a register of codes is decoded; `order` rearranges it. */

static void decode_plain(const u8 *codes, const u8 *scales, i64 groups, float *out) {
    for (i64 g = 0; g < groups; g++, out += 32) {
        const u8 *p = codes + 16 * g;
        float s = power(scales[g]);
        for (int i = 0; i < 16; i++) out[2 * i] = FP4[p[i] & 15] * s, out[2 * i + 1] = FP4[p[i] >> 4] * s;
    }
}
static void order_plain(const float *x, i64 groups, float *to) { memcpy(to, x, sizeof(float) * 32 * (size_t)groups); }
/* Several rows of weights, `row` and `scale_row` bytes apart, with m <= DECODE_MAX_ROWS rows of x: y[t * STRIP + row]. */
typedef struct { const u8 *codes, *scales; i64 row, scale_row, rows, groups; } Rowset;
static void few_plain(const Rowset *w, const float *x, int m, float *y) {
    for (i64 o = 0; o < w->rows; o++) {
        float s[DECODE_MAX_ROWS][16] = {{0}}, of_group[32];
        for (i64 g = 0; g < w->groups; g++) {
            decode_plain(w->codes + o * w->row + 16 * g, w->scales + o * w->scale_row + g, 1, of_group);
            for (int t = 0; t < m; t++)
                for (int k = 0; k < 32; k++) s[t][k & 15] = fmaf(x[32 * (t * w->groups + g) + k], of_group[k], s[t][k & 15]);
        }
        for (int t = 0; t < m; t++) y[t * STRIP + o] = tree(s[t]);
    }
}

/* m is a constant in each call, so that the sums are in registers. */
#define BY_ROWS_4(f, r, m, ...) \
    switch (m) { case 1: f(r, 1, __VA_ARGS__); break; case 2: f(r, 2, __VA_ARGS__); break; \
                 case 3: f(r, 3, __VA_ARGS__); break; default: f(r, 4, __VA_ARGS__); }

#if defined(__x86_64__)
/* The numbers of 32 codes at this scale: their upper bytes (half 0) or lower bytes (1). */
T2 IN __m256i scaled_avx2(u8 scale, int half, __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)SCALED_HALVES[scale][half])), codes);
}
/* 32 numbers of a group whose scale keeps them normal, in order. */
T2 static void group_avx2(const u8 *codes, u8 scale, void *out, int bf16) {
    __m128i b = _mm_loadu_si128((const __m128i *)codes), low = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(b, low), odd = _mm_and_si128(_mm_srli_epi16(b, 4), low);
    __m256i n = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(even, odd)), _mm_unpackhi_epi8(even, odd), 1);
    __m256i h = scaled_avx2(scale, 0, n), l = scaled_avx2(scale, 1, n);
    __m256i a = _mm256_unpacklo_epi8(l, h), c = _mm256_unpackhi_epi8(l, h);
    __m256i w[2] = {_mm256_permute2x128_si256(a, c, 0x20), _mm256_permute2x128_si256(a, c, 0x31)};
    for (int i = 0; i < 2; i++) {
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
T2 static void decode_avx2(const u8 *codes, const u8 *scales, i64 groups, float *out) {
    for (i64 g = 0; g < groups; g++) group_avx2(codes + 16 * g, scales[g], out + 32 * g, 0);
}

/* A group's low nibbles (even elements) fill one half of a register, its high ones the other. PLACE2 has the order in
 * which the two sums then contain every 16 elements: the first sum has the first eight entries. */
static const u8 PLACE2[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

static void order_avx2(const float *x, i64 groups, float *to) {
    for (i64 k = 0; k < 32 * groups; k += 16) for (int i = 0; i < 16; i++) to[k + i] = x[k + PLACE2[i]];
}
T2 IN float placed2(const __m256 a[2], const u8 place[16]) {
    float s[16], as[16];
    _mm256_storeu_ps(as, a[0]), _mm256_storeu_ps(as + 8, a[1]);
    for (int i = 0; i < 16; i++) s[place[i]] = as[i];
    return tree(s);
}
T2 IN void numbers2(const u8 *codes, u8 scale, __m256 w[4]) {
    const __m256i top = _mm256_set1_epi32((int)0xffff0000), low = _mm256_set1_epi8(15);
    __m128i c = _mm_loadu_si128((const __m128i *)codes);
    __m256i b = _mm256_and_si256(_mm256_inserti128_si256(_mm256_castsi128_si256(c), _mm_srli_epi16(c, 4), 1), low);
    __m256i h = scaled_avx2(scale, 0, b), l = scaled_avx2(scale, 1, b);
    __m256i p = _mm256_unpacklo_epi8(l, h), q = _mm256_unpackhi_epi8(l, h);
    w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(p, 16)), w[1] = _mm256_castsi256_ps(_mm256_and_si256(p, top));
    w[2] = _mm256_castsi256_ps(_mm256_slli_epi32(q, 16)), w[3] = _mm256_castsi256_ps(_mm256_and_si256(q, top));
}
/* R rows of weights, so that there are enough independent sums even with one row of x. */
T2 IN void few_avx2_m(int R, int m, const Rowset *w, i64 o, const float *x, float *y) {
    __m256 a[2][DECODE_MAX_ROWS][2];
    const u8 *rows = w->codes + o * w->row, *scales = w->scales + o * w->scale_row;
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) a[r][t][0] = a[r][t][1] = _mm256_setzero_ps();
    for (i64 g = 0; g < w->groups; g++) {
        if (R == 2 || g % 2 == 0) _mm_prefetch((const char *)(rows + R * 16 * g) + 8192, _MM_HINT_T0); /* the rows are one stream */
        UNROLL for (int r = 0; r < R; r++) {
            __m256 u[4];
            numbers2(rows + r * w->row + 16 * g, scales[r * w->scale_row + g], u);
            UNROLL for (int t = 0; t < m; t++) {
                const float *v = x + 32 * (t * w->groups + g);
                a[r][t][0] = _mm256_fmadd_ps(u[0], _mm256_loadu_ps(v), a[r][t][0]);
                a[r][t][1] = _mm256_fmadd_ps(u[1], _mm256_loadu_ps(v + 8), a[r][t][1]);
                a[r][t][0] = _mm256_fmadd_ps(u[2], _mm256_loadu_ps(v + 16), a[r][t][0]);
                a[r][t][1] = _mm256_fmadd_ps(u[3], _mm256_loadu_ps(v + 24), a[r][t][1]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) y[t * STRIP + o + r] = placed2(a[r][t], PLACE2);
}
T2 static void few_avx2(const Rowset *w, const float *x, int m, float *y) {
    i64 o = 0;
    if (m == 1) for (; o + 2 <= w->rows; o += 2) few_avx2_m(2, 1, w, o, x, y);
    for (; o < w->rows; o++) BY_ROWS_4(few_avx2_m, 1, m, w, o, x, y)
}

/* Of 16 weights in bf16 the even ones are shifted, the odd ones masked; x is in that order. */
static const u8 HALVES2[16] = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
static void halves_avx2(const float *x, i64 n, float *to) { /* padded to a multiple of 16 */
    for (i64 k = 0; k < n; k += 16) for (int i = 0; i < 16; i++) to[k + i] = k + HALVES2[i] < n ? x[k + HALVES2[i]] : 0;
}
T2 IN void sixteen_avx2(int m, __m256i b, const float *x, i64 xs, __m256 (*a)[2]) {
    const __m256i top = _mm256_set1_epi32((int)0xffff0000);
    __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), odd = _mm256_castsi256_ps(_mm256_and_si256(b, top));
    UNROLL for (int t = 0; t < m; t++) {
        a[t][0] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x + t * xs), a[t][0]);
        a[t][1] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x + t * xs + 8), a[t][1]);
    }
}
T2 IN void stream_avx2_m(int R, int m, const u16 *w, i64 ws, i64 n, const float *x, i64 xs, float *y) {
    __m256 a[2][DECODE_MAX_ROWS][2];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) a[r][t][0] = a[r][t][1] = _mm256_setzero_ps();
    i64 k = 0;
    for (; k + 32 <= n; k += 32) {
        UNROLL for (int r = 0; r < R; r++) {
            const u16 *p = w + r * ws + k;
            _mm_prefetch((const char *)p + 1024, _MM_HINT_T0);
            UNROLL for (int i = 0; i < 32; i += 16) sixteen_avx2(m, _mm256_loadu_si256((const __m256i *)(p + i)), x + k + i, xs, a[r]);
        }
    }
    for (; k < n; k += 16)
        UNROLL for (int r = 0; r < R; r++) {
            u16 end[16] = {0};
            memcpy(end, w + r * ws + k, sizeof(u16) * (size_t)min64(16, n - k));
            sixteen_avx2(m, _mm256_loadu_si256((const __m256i *)end), x + k, xs, a[r]);
        }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) y[t * STRIP + r] = placed2(a[r][t], HALVES2);
}
T2 static void stream_avx2(const u16 *w, i64 ws, i64 rows, i64 n, const float *x, i64 xs, int m, float *y) {
    for (i64 o = 0; o < rows; o++) BY_ROWS_4(stream_avx2_m, 1, m, w + o * ws, ws, n, x, xs, y + o)
}
#endif

#if defined(__aarch64__)
/* 16 nibbles -> 16 scaled numbers, in order. */
IN void numbers_neon(uint8x16_t nibbles, u8 scale, float32x4_t w[4]) {
    uint8x16_t h = vqtbl1q_u8(vld1q_u8(SCALED_HALVES[scale][0]), nibbles), l = vqtbl1q_u8(vld1q_u8(SCALED_HALVES[scale][1]), nibbles);
    uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(l, h)), b = vreinterpretq_u16_u8(vzip2q_u8(l, h));
    w[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(a), 16)), w[1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(a), 16));
    w[2] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16)), w[3] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(b), 16));
}
/* A group, scaled: its 16 even elements, then its 16 odd ones. */
IN void group_neon(const u8 *codes, u8 scale, float32x4_t w[8]) {
    uint8x16_t b = vld1q_u8(codes);
    numbers_neon(vandq_u8(b, vdupq_n_u8(15)), scale, w);
    numbers_neon(vshrq_n_u8(b, 4), scale, w + 4);
}
static void decode_neon(const u8 *codes, const u8 *scales, i64 groups, float *out) {
    for (i64 g = 0; g < groups; g++, out += 32) {
        float32x4_t w[8];
        group_neon(codes + 16 * g, scales[g], w);
        UNROLL for (int i = 0; i < 4; i++)
            vst1q_f32(out + 8 * i, vzip1q_f32(w[i], w[i + 4])), vst1q_f32(out + 8 * i + 4, vzip2q_f32(w[i], w[i + 4]));
    }
}
static const u8 PLACE1[16] = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
static void order_neon(const float *x, i64 groups, float *to) {
    for (i64 g = 0; g < groups; g++) for (int i = 0; i < 32; i++) to[32 * g + i % 2 * 16 + i / 2] = x[32 * g + i];
}
IN void few_neon_m(int R, int m, const Rowset *w, i64 o, const float *x, float *y) {
    float32x4_t a[DECODE_MAX_ROWS][4];
    (void)R;
    UNROLL for (int t = 0; t < m; t++) UNROLL for (int i = 0; i < 4; i++) a[t][i] = vdupq_n_f32(0);
    for (i64 g = 0; g < w->groups; g++) {
        const u8 *p = w->codes + o * w->row + 16 * g;
        float32x4_t u[8];
        __builtin_prefetch(p + 4096);
        group_neon(p, w->scales[o * w->scale_row + g], u);
        UNROLL for (int t = 0; t < m; t++) {
            const float *v = x + 32 * (t * w->groups + g);
            UNROLL for (int i = 0; i < 4; i++) { /* even, then odd elements: the first eight, then the others */
                int at = i / 2 * 4 + i % 2;
                a[t][i] = vfmaq_f32(a[t][i], u[at], vld1q_f32(v + 4 * at));
                a[t][i] = vfmaq_f32(a[t][i], u[at + 2], vld1q_f32(v + 4 * at + 8));
            }
        }
    }
    UNROLL for (int t = 0; t < m; t++) {
        float s[16], as[16];
        UNROLL for (int i = 0; i < 4; i++) vst1q_f32(as + 4 * i, a[t][i]);
        for (int i = 0; i < 16; i++) s[PLACE1[i]] = as[i];
        y[t * STRIP + o] = tree(s);
    }
}
static void few_neon(const Rowset *w, const float *x, int m, float *y) {
    for (i64 o = 0; o < w->rows; o++) BY_ROWS_4(few_neon_m, 1, m, w, o, x, y)
}
#endif

#if defined(HAS512)
/* ---- bf16 with AVX-512: two products and their sum in one instruction ----
 *
 * There are 16 sums; an instruction adds two products to each. Then they are added by totals4's tree. 64 elements are a
 * step; for MXFP4 a step is a pair of groups, first the even elements, then the odd ones. */

/* x in that order, in whole steps. */
static void order_bf16(const u16 *x, i64 groups, u16 *o) {
    for (i64 g = 0; g < groups; g += 2)
        for (int nibble = 0; nibble < 2; nibble++)
            for (int i = 0; i < 32; i++) *o++ = g + i / 16 < groups ? x[32 * g + 2 * i + nibble] : 0;
}

/* A step of weights, of one group if not `both`. The table has the scaled numbers of both groups. */
T512 IN void step_avx512(const u8 *p, int both, const u8 *scales, __m512i *even, __m512i *odd) {
    const __m512i nibble = _mm512_set1_epi16(15), second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    __m256i bytes = both ? _mm256_loadu_si256((const __m256i *)p)
        : _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_loadu_si128((const __m128i *)p), 0);
    __m256i of_first = _mm256_load_si256((const __m256i *)SCALED[scales[0]]), of_second = _mm256_load_si256((const __m256i *)SCALED[scales[both]]);
    __m512i scaled = _mm512_inserti64x4(_mm512_castsi256_si512(of_first), of_second, 1), b = _mm512_cvtepu8_epi16(bytes);
    *even = _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_and_si512(b, nibble), second), scaled);
    *odd = _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi16(b, 4), second), scaled);
}
T512 static void decode_bf16(const u8 *codes, const u8 *scales, i64 groups, u16 *out) {
    for (i64 g = 0; g < groups; g += 2, out += 64) {
        __m512i even, odd;
        step_avx512(codes + 16 * g, g + 1 < groups, scales + g, &even, &odd);
        _mm512_storeu_si512(out, even), _mm512_storeu_si512(out + 32, odd);
    }
}
T512 IN void totals_bf16(int count, const __m512 *a, float *y, i64 ys) { /* count <= DECODE_MAX_ROWS */
    __m512 t[DECODE_MAX_ROWS];
    float of[DECODE_MAX_ROWS];
    UNROLL for (int i = 0; i < DECODE_MAX_ROWS; i++) t[i] = i < count ? a[i] : _mm512_setzero_ps();
    totals4_avx512(t, of);
    UNROLL for (int i = 0; i < count; i++) y[i * ys] = of[i];
}
/* A step of R rows of weights with m rows of x. */
T512 IN void few_step(int R, int m, const Rowset *w, i64 o, i64 g, int both, const u16 *x, i64 xs, __m512 (*a)[DECODE_MAX_ROWS]) {
    const u16 *v = x + 32 * g;
    UNROLL for (int r = 0; r < R; r++) {
        __m512i even, odd;
        step_avx512(w->codes + (o + r) * w->row + 16 * g, both, w->scales + (o + r) * w->scale_row + g, &even, &odd);
        UNROLL for (int t = 0; t < m; t++) a[r][t] = _mm512_dpbf16_ps(a[r][t], (__m512bh)even, (__m512bh)_mm512_loadu_si512(v + t * xs));
        UNROLL for (int t = 0; t < m; t++) a[r][t] = _mm512_dpbf16_ps(a[r][t], (__m512bh)odd, (__m512bh)_mm512_loadu_si512(v + t * xs + 32));
    }
}
/* R rows of weights: the sums of one row wait for each other, those of several rows do not. */
T512 IN void few_bf16_m(int R, int m, const Rowset *w, i64 o, const u16 *x, i64 xs, float *y) {
    __m512 a[4][DECODE_MAX_ROWS];
    const char *ahead = (const char *)(w->codes + o * w->row) + 8192; /* the rows are one stream */
    i64 g = 0;
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) a[r][t] = _mm512_setzero_ps();
    for (; g + 2 <= w->groups; g += 2) {
        UNROLL for (int i = 0; i < R; i += 2) _mm_prefetch(ahead + 16 * (R * g + 2 * i), _MM_HINT_T0);
        few_step(R, m, w, o, g, 1, x, xs, a);
    }
    if (g < w->groups) few_step(R, m, w, o, g, 0, x, xs, a);
    UNROLL for (int r = 0; r < R; r++) totals_bf16(m, a[r], y + o + r, STRIP);
}
T512 static void few_bf16(const Rowset *w, const u16 *x, i64 xs, int m, float *y) {
    i64 o = 0;
    if (m == 1) for (; o + 4 <= w->rows; o += 4) few_bf16_m(4, 1, w, o, x, xs, y);
    if (m == 2) for (; o + 2 <= w->rows; o += 2) few_bf16_m(2, 2, w, o, x, xs, y);
    for (; o < w->rows; o++) BY_ROWS_4(few_bf16_m, 1, m, w, o, x, xs, y)
}

/* n bf16 weights per row, with rows of x that are padded to whole steps. */
T512 IN __m512i weights_at(const u16 *w, i64 left) { /* 32 of them; zeros after the end */
    if (left >= 32) return _mm512_loadu_si512(w);
    return _mm512_maskz_loadu_epi16(left > 0 ? (__mmask32)((1ull << left) - 1) : 0, w);
}
T512 IN void step_bf16(int R, int C, const u16 *x, i64 xs, const u16 *w, i64 ws, i64 left, __m512 *a) {
    UNROLL for (int h = 0; h < 2; h++) {
        __m512bh u[6];
        UNROLL for (int r = 0; r < R; r++) u[r] = (__m512bh)_mm512_loadu_si512(x + r * xs + 32 * h);
        UNROLL for (int c = 0; c < C; c++) {
            __m512bh p = (__m512bh)weights_at(w + c * ws + 32 * h, left - 32 * h);
            UNROLL for (int r = 0; r < R; r++) a[r * C + c] = _mm512_dpbf16_ps(a[r * C + c], p, u[r]);
        }
    }
}
T512 IN void block_bf16(int R, int C, const u16 *x, i64 xs, const u16 *w, i64 ws, i64 n, int ahead, float *y, i64 ys) {
    __m512 a[24];
    UNROLL for (int i = 0; i < R * C; i++) a[i] = _mm512_setzero_ps();
    i64 k = 0;
    for (; k + STEP <= n; k += STEP) {
        if (ahead) UNROLL for (int c = 0; c < C; c++) {
            const char *p = (const char *)(w + c * ws + k) + 8192;
            _mm_prefetch(p, _MM_HINT_T0), _mm_prefetch(p + 64, _MM_HINT_T0);
        }
        step_bf16(R, C, x + k, xs, w + k, ws, STEP, a);
    }
    if (k < n) step_bf16(R, C, x + k, xs, w + k, ws, n - k, a);
    UNROLL for (int r = 0; r < R; r++) totals_bf16(C, a + r * C, y + r * ys, 1);
}
/* For up to four rows of x: each row of weights is one stream. */
T512 IN void stream_bf16_m(int C, int m, const u16 *w, i64 ws, i64 n, const u16 *x, i64 xs, float *y) {
    block_bf16(m, C, x, xs, w, ws, n, 1, y, STRIP);
}
T512 static void stream_bf16(const u16 *w, i64 ws, i64 rows, i64 n, const u16 *x, i64 xs, int m, float *y) {
    for (i64 o = 0; o < rows; o++) BY_ROWS_4(stream_bf16_m, 1, m, w + o * ws, ws, n, x, xs, y + o)
}
T512 static void dots_bf16(const u16 *x, i64 xs, i64 rows, const u16 *w, i64 ws, i64 cols, i64 n, float *y, i64 ys) {
    enum { R = 6, C = 4, TALL = 48 }; /* a tile of x stays in the L2 cache */
    i64 whole = cols / C * C;
    for (i64 r = 0; r < rows; r += TALL) {
        i64 end = min64(rows, r + TALL), i;
        for (i64 c = 0; c < whole; c += C) {
            const u16 *weights = w + c * ws;
            for (i = r; i + R <= end; i += R) block_bf16(R, C, x + i * xs, xs, weights, ws, n, 0, y + i * ys + c, ys);
            for (; i + 3 <= end; i += 3) block_bf16(3, C, x + i * xs, xs, weights, ws, n, 0, y + i * ys + c, ys);
            for (; i < end; i++) block_bf16(1, C, x + i * xs, xs, weights, ws, n, 0, y + i * ys + c, ys);
        }
        for (i64 c = whole; c < cols; c++) for (i = r; i < end; i++)
            block_bf16(1, 1, x + i * xs, xs, w + c * ws, ws, n, 0, y + i * ys + c, ys);
    }
}
#endif

#include "planes.h"

/* ---- the functions of a level ---- */

typedef void (*RowFunction)(const Rows *p, i64 row);
enum { RMS, SWIGLU, LOG_SOFTMAX, ENTROPY, MIXTURE, ROTATE, ROW_FUNCTIONS };

typedef struct {
    void (*dots)(const float *x, i64 xs, i64 rows, const void *w, i64 ws, i64 cols, i64 n, int bf16, float *y, i64 ys);
    void (*weigh)(i64 rows, const float *p, i64 ps, const float *v, i64 width, i64 n, float *to, i64 ts);
    void (*softmax_row)(float *s, i64 n, i64 first, float sink, float *mass);
    RowFunction row[ROW_FUNCTIONS];
    void (*decode)(const u8 *codes, const u8 *scales, i64 groups, float *out);
    void (*order)(const float *x, i64 groups, float *to);
    void (*few)(const Rowset *w, const float *x, int m, float *y);
    /* the same for bf16 if there is something faster than `dots`, and the order in which it needs x */
    void (*stream)(const u16 *w, i64 ws, i64 rows, i64 n, const float *x, i64 xs, int m, float *y);
    void (*halves)(const float *x, i64 n, float *to);
    /* planes: a row as bf16, and up to four rows of x in the order of `stream` (NULL if there is no `stream`) */
    void (*unpack)(const Planes *w, i64 row, u16 *out);
    void (*planes)(const Planes *w, i64 first, i64 rows, const float *x, i64 xs, int m, float *y);
    /* the same as `dots` for many rows, if there is something faster */
    i64 (*packed)(i64 n);
    i64 (*space)(i64 rows, i64 n);
    void (*pack)(const float *x, i64 xs, i64 n, float *to);
    void (*sixes)(const float *packed, i64 rows, const float *w, i64 ws, i64 cols, i64 n, float *space, float *y, i64 ys);
} Level;

#define ROWS_OF(l) {rms_row_##l, swiglu_row_##l, log_softmax_row_##l, entropy_row_##l, mixture_row_##l, rotate_row_##l}
static const Level *level_of(int level) {
    static const Level plain = {dots_plain, weigh_plain, softmax_row_plain, ROWS_OF(plain), decode_plain, order_plain, few_plain, NULL, NULL, unpack_plain, NULL, NULL, NULL, NULL, NULL};
#if defined(HAS512)
    static const Level avx512 = {dots_avx512, weigh_avx512, softmax_row_avx512, ROWS_OF(avx512), decode_avx2, order_avx2, few_avx2, stream_avx2, halves_avx2, unpack_avx512, planes_avx2, NULL, NULL, NULL, NULL};
    if (level == AVX512) return &avx512;
#endif
#if defined(__x86_64__)
    static const Level avx2 = {dots_avx2, weigh_avx2, softmax_row_avx2, ROWS_OF(avx2), decode_avx2, order_avx2, few_avx2, stream_avx2, halves_avx2, unpack_avx2, planes_avx2, packed_avx2, space_avx2, pack_avx2, sixes_avx2};
    if (level >= AVX2) return &avx2;
#elif defined(__aarch64__)
    static const Level neon = {dots_neon, weigh_neon, softmax_row_neon, ROWS_OF(neon), decode_neon, order_neon, few_neon, NULL, NULL, unpack_neon, NULL, NULL, NULL, NULL, NULL};
    if (level == NEON) return &neon;
#endif
    (void)level;
    return &plain;
}

/* ---- x times the matrices of one or several experts ---- */

typedef struct { i64 expert, first, last; } Group;
typedef struct { i64 expert, row, n_rows, out, n_out, six; } Piece; /* some rows of an expert, some outputs; index of its first packed six */

typedef struct {
    const Level *l;
    int stored, bf16, pairs; /* format of the weights; whether x and the result are bf16; whether dpbf16 is used */
    int failed;
    const void *x, *ordered; /* converted for the kernels; in the order of `few` */
    float *packed;           /* six rows at a time, for `sixes`; NULL if not used */
    i64 x_row, ordered_row;
    const void *w, *bias;
    const u8 *scales;
    i64 w_expert, w_row, w_step, scale_expert, scale_row, bias_expert, n, n_out, out_row; /* w_step: stride within a row */
    void *out;
    Piece *pieces;
    Planes planes; /* the matrix, if it is stored so: one, without experts */
} Product;

IN const void *weight_row(const Product *p, i64 expert, i64 out) {
    i64 at = expert * p->w_expert + out * p->w_row;
    return (const u8 *)p->w + at * (p->stored == FP32 ? 4 : p->stored == BF16 ? 2 : 1);
}
IN const u8 *scale_row(const Product *p, i64 expert, i64 out) { return p->scales + expert * p->scale_expert + out * p->scale_row; }

/* Planes with up to four rows of x. */
static void streamed_planes(const Product *p, const Piece *w, float *y) {
    int m = (int)w->n_rows;
#if defined(HAS512)
    if (p->pairs) { planes_bf16(&p->planes, w->out, w->n_out, (const u16 *)p->x + w->row * p->x_row, p->x_row, m, y); return; }
#endif
    if (p->l->planes) { p->l->planes(&p->planes, w->out, w->n_out, (const float *)p->ordered + w->row * p->ordered_row, p->ordered_row, m, y); return; }
    u16 row[MAX_PLANE];
    for (i64 o = 0; o < w->n_out; o++) {
        p->l->unpack(&p->planes, w->out + o, row);
        p->l->dots((const float *)p->x + w->row * p->x_row, p->x_row, m, row, p->n, 1, p->n, 1, y + o, STRIP);
    }
}

/* One stream over each row of weights, for up to four rows of x. */
static void streamed(const Product *p, const Piece *w, float *y) {
    if (p->stored == PLANES) { streamed_planes(p, w, y); return; }
    const void *at = weight_row(p, w->expert, w->out);
    const u8 *scales = p->stored == MXFP4 ? scale_row(p, w->expert, w->out) : NULL;
    const void *x = (const u8 *)p->ordered + w->row * p->ordered_row * (p->pairs ? 2 : 4);
    int m = (int)w->n_rows;
    Rowset rows = {at, scales, p->w_row, p->scale_row, w->n_out, p->n / 32};
#if defined(HAS512)
    if (p->pairs && p->stored == MXFP4) { few_bf16(&rows, x, p->ordered_row, m, y); return; }
    if (p->pairs) { stream_bf16(at, p->w_row, w->n_out, p->n, (const u16 *)p->x + w->row * p->x_row, p->x_row, m, y); return; }
#endif
    if (p->stored == BF16) { p->l->stream(at, p->w_row, w->n_out, p->n, x, p->ordered_row, m, y); return; }
    p->l->few(&rows, x, m, y);
}

/* A row of planes, as the products of many rows need it: bf16 or fp32. */
static void unpack_row(const Product *p, i64 row, void *to) {
    if (p->pairs) { p->l->unpack(&p->planes, row, to); return; }
    u16 weights[MAX_PLANE];
    p->l->unpack(&p->planes, row, weights);
    for (i64 k = 0; k < p->n; k++) ((float *)to)[k] = wide(weights[k]);
}

/* Copies rows of weights of a transposed matrix to contiguous rows, padded with zeros. */
static void copy_transposed(const Product *p, const void *at, i64 rows, i64 width, void *to) {
    for (i64 k = 0; k < width; k++)
        for (i64 r = 0; r < rows; r++) {
            i64 from = k * p->w_step + r * p->w_row;
            if (p->pairs) ((u16 *)to)[r * width + k] = k < p->n ? ((const u16 *)at)[from] : 0;
            else ((float *)to)[r * width + k] = load(at, from, p->stored == BF16);
        }
}

/* Products with rows of weights in fp32, by the faster form. `space` is the memory for `sixes`, NULL without them. */
static void multiply(const Product *p, const Piece *w, const float *weights, i64 ws, i64 cols, float *space, float *y) {
    const float *x = (const float *)p->x + w->row * p->x_row;
    i64 n = p->n, sixes = space ? w->n_rows / PACKED_ROWS * PACKED_ROWS : 0;
    if (sixes) p->l->sixes(p->packed + w->six * p->l->packed(n), sixes, weights, ws, cols, n, space, y, STRIP);
    if (sixes < w->n_rows) p->l->dots(x + sixes * p->x_row, p->x_row, w->n_rows - sixes, weights, ws, cols, n, 0, y + sixes * STRIP, STRIP);
}

static int by_panel(const Product *p, const Piece *w, float *y) {
    i64 n = p->n, groups = n / 32;
    int in_place = (p->stored == FP32 || p->stored == BF16) && p->w_step == 1;
    const void *first = weight_row(p, w->expert, w->out);
    if (in_place && !p->pairs && p->stored == BF16 && w->n_rows <= DECODE_MAX_ROWS) { /* not worth a panel */
        p->l->dots((const float *)p->x + w->row * p->x_row, p->x_row, w->n_rows, first, p->w_row, w->n_out, n, 1, y, STRIP);
        return 0;
    }
#if defined(HAS512)
    if (in_place && p->pairs) {
        dots_bf16((const u16 *)p->x + w->row * p->x_row, p->x_row, w->n_rows, first, p->w_row, w->n_out, n, y, STRIP);
        return 0;
    }
#endif
    float *space = NULL;
    if (w->six >= 0) {
        space = allocate(sizeof(float) * (size_t)p->l->space(w->n_rows, n));
        if (!space) return 1;
    }
    if (in_place && p->stored == FP32) {
        multiply(p, w, first, p->w_row, w->n_out, space, y);
        free(space);
        return 0;
    }
    i64 width = p->pairs ? (n + STEP - 1) / STEP * STEP : n, rows = min64(w->n_out, 32);
    u8 *panel = allocate((size_t)(rows * width) * (p->pairs ? 2 : 4));
    if (!panel) { free(space); return 1; }
    for (i64 o = 0; o < w->n_out; o += rows) {
        i64 m = min64(rows, w->n_out - o);
        for (i64 r = 0; r < m; r++) {
            const void *at = weight_row(p, w->expert, w->out + o + r);
            if (p->stored == PLANES) { unpack_row(p, w->out + o + r, panel + r * width * (p->pairs ? 2 : 4)); continue; }
#if defined(HAS512)
            if (p->pairs && p->stored == MXFP4) decode_bf16(at, scale_row(p, w->expert, w->out + o + r), groups, (u16 *)panel + r * width);
            else
#endif
            if (p->stored == MXFP4) p->l->decode(at, scale_row(p, w->expert, w->out + o + r), groups, (float *)panel + r * n);
            else if (p->w_step == 1) for (i64 k = 0; k < n; k++) ((float *)panel)[r * n + k] = wide(((const u16 *)at)[k]);
        }
        if (p->w_step != 1) copy_transposed(p, weight_row(p, w->expert, w->out + o), m, width, panel);
#if defined(HAS512)
        const u16 *x = p->stored == MXFP4 ? (const u16 *)p->ordered + w->row * p->ordered_row : (const u16 *)p->x + w->row * p->x_row;
        if (p->pairs) dots_bf16(x, p->stored == MXFP4 ? p->ordered_row : p->x_row, w->n_rows, (const u16 *)panel, width, m, width, y + o, STRIP);
        else
#endif
        multiply(p, w, (const float *)panel, n, m, space, y + o);
    }
    free(panel), free(space);
    return 0;
}

static void piece_product(void *job, size_t i) {
    Product *p = job;
    const Piece *w = p->pieces + i;
    float few[DECODE_MAX_ROWS * STRIP], *y = w->n_rows <= DECODE_MAX_ROWS ? few : allocate(sizeof(float) * STRIP * (size_t)w->n_rows);
    if (!y) { p->failed = 1; return; }
    int by_row = w->n_rows <= DECODE_MAX_ROWS && p->w_step == 1 && (p->stored >= MXFP4 || p->pairs || (p->stored == BF16 && p->l->stream));
    if (by_row) streamed(p, w, y);
    else if (by_panel(p, w, y)) p->failed = 1;
    float bias[STRIP];
    for (i64 o = 0; o < w->n_out; o++) bias[o] = p->bias ? load(p->bias, w->expert * p->bias_expert + w->out + o, p->bf16) : 0;
    for (i64 r = 0; r < w->n_rows; r++) {
        i64 at = (w->row + r) * p->out_row + w->out;
        const float *s = y + r * STRIP;
        if (p->bf16) for (i64 o = 0; o < w->n_out; o++) ((u16 *)p->out)[at + o] = narrow(s[o] + bias[o]);
        else for (i64 o = 0; o < w->n_out; o++) ((float *)p->out)[at + o] = s[o] + bias[o];
    }
    if (y != few) free(y);
}

/* Converts x for the kernels, row by row. */
typedef struct { const Product *p; const void *from; i64 from_row; void *x, *ordered; } Input;

static void piece_input(void *job, size_t i) {
    Input *q = job;
    const Product *p = q->p;
    i64 n = p->n, row = (i64)i;
    const u16 *h = (const u16 *)q->from + row * q->from_row;
    const float *f = (const float *)q->from + row * q->from_row;
#if defined(HAS512)
    if (p->pairs) {
        if (q->ordered) order_bf16(h, n / 32, (u16 *)q->ordered + row * p->ordered_row);
        if (q->x) {
            u16 *to = (u16 *)q->x + row * p->x_row;
            memcpy(to, h, 2 * (size_t)n);
            memset(to + n, 0, 2 * (size_t)(p->x_row - n));
        }
        return;
    }
#endif
    if (p->bf16) {
        float *to = (float *)q->x + row * n;
        for (i64 k = 0; k < n; k++) to[k] = wide(h[k]);
        f = to;
    }
    if (q->ordered && p->stored == MXFP4) p->l->order(f, n / 32, (float *)q->ordered + row * p->ordered_row);
    else if (q->ordered) p->l->halves(f, n, (float *)q->ordered + row * p->ordered_row);
}

/* How many groups of six rows are packed: packing is not worthwhile for few or short rows. */
static i64 sixes_of(const Product *p, i64 rows) {
    return !p->pairs && p->l->sixes && rows >= 3 * PACKED_ROWS && p->n >= 256 ? rows / PACKED_ROWS : 0;
}
static void piece_pack(void *job, size_t i) { /* packs an item's rows once, with its first outputs */
    const Product *p = job;
    const Piece *w = p->pieces + i;
    for (i64 k = 0; w->six >= 0 && w->out == 0 && k < w->n_rows / PACKED_ROWS; k++)
        p->l->pack((const float *)p->x + (w->row + k * PACKED_ROWS) * p->x_row, p->x_row, p->n, p->packed + (w->six + k) * p->l->packed(p->n));
}

/* Returns 0, or 1 without memory. `p` has everything but the converted rows and the work items. */
static int run(Product p, int threads, const void *x, i64 x_row, const Group *g, i64 count) {
    i64 rows = count ? g[count - 1].last : 0, n = p.n, pieces = 0;
    int few = 0, dense = p.stored == BF16 || p.stored == PLANES;
    for (i64 i = 0; i < count; i++) {
        few |= (g[i].last - g[i].first - 1) % TILE < DECODE_MAX_ROWS; /* the last of its tiles */
        pieces += (g[i].last - g[i].first + TILE - 1) / TILE;
    }
    pieces *= (p.n_out + STRIP - 1) / STRIP;
    p.x = x, p.x_row = x_row, p.ordered_row = n;
    p.pieces = malloc(sizeof(Piece) * (size_t)(pieces + 1));
    void *converted = NULL, *ordered = NULL;
    int copies = p.pairs ? dense && (n % STEP || x_row % STEP) : p.bf16, failed = !p.pieces;
    int orders = p.stored == MXFP4 ? few || p.pairs : dense && few && !p.pairs && p.l->stream;
    if (copies) p.x_row = p.pairs ? (n + STEP - 1) / STEP * STEP : n, converted = allocate((size_t)(rows * p.x_row) * (p.pairs ? 2 : 4)), failed |= !converted;
    if (orders) p.ordered_row = p.stored == MXFP4 && !p.pairs ? n : (n + STEP - 1) / STEP * STEP, ordered = allocate((size_t)(rows * p.ordered_row) * (p.pairs ? 2 : 4)), failed |= !ordered;
    if (failed) { free(p.pieces), free(converted), free(ordered); return 1; }
    if (copies) p.x = converted;
    p.ordered = ordered;
    if (rows * p.n_out < (1 << 20) / (n + 1)) threads = 1; /* too small to start threads */
    Input input = {&p, x, x_row, converted, ordered};
    if (copies || orders) each(rows, rows * n > 1 << 16 ? threads : 1, piece_input, &input);
    i64 sixes = 0;
    pieces = 0;
    for (i64 i = 0; i < count; i++)
        for (i64 r = g[i].first; r < g[i].last; r += TILE) {
            i64 m = min64(TILE, g[i].last - r), n_sixes = sixes_of(&p, m);
            for (i64 o = 0; o < p.n_out; o += STRIP)
                p.pieces[pieces++] = (Piece){g[i].expert, r, m, o, min64(STRIP, p.n_out - o), n_sixes ? sixes : -1};
            sixes += n_sixes;
        }
    if (sixes) {
        p.packed = allocate(sizeof(float) * (size_t)(sixes * p.l->packed(n)));
        if (p.packed) each(pieces, threads, piece_pack, &p);
        else p.failed = 1;
    }
    if (!p.failed) each(pieces, threads, piece_product, &p);
    free(p.pieces), free(converted), free(ordered), free(p.packed);
    return p.failed;
}
IN int in_pairs(int level, int bf16) {
#if defined(HAS512)
    return level == AVX512 && bf16;
#endif
    (void)level, (void)bf16;
    return 0;
}

/* out[row] = x[row] times the matrix of the row's expert, plus its bias, in the dtype of x. Groups (expert, first row,
 * last row) cover the rows of x in order. Strides in elements; bias may be NULL. */
API int wb_linear(int level, int threads, int stored, int bf16, const void *x, i64 x_row, const i64 *groups, i64 count,
                  const void *w, i64 w_expert, i64 w_row, i64 w_step, const u8 *scales, i64 scale_expert, i64 scale_row,
                  const void *bias, i64 bias_expert, i64 n, i64 n_out, void *out, i64 out_row) {
    Product p = {.l = level_of(level), .stored = stored, .bf16 = bf16, .pairs = in_pairs(level, bf16), .w = w, .bias = bias, .scales = scales,
                 .w_expert = w_expert, .w_row = w_row, .w_step = w_step, .scale_expert = scale_expert, .scale_row = scale_row,
                 .bias_expert = bias_expert, .n = n, .n_out = n_out, .out = out, .out_row = out_row};
    return run(p, threads, x, x_row, (const Group *)groups, count);
}
/* The same for one matrix of bf16 in planes; x, bias and out are bf16. n <= MAX_PLANE. */
API int wb_linear_planes(int level, int threads, const u16 *x, i64 x_row, i64 rows, const u8 *blocks, const u8 *table, const i64 *starts,
                         const u16 *at, const u16 *others, const u16 *bias, i64 n, i64 n_out, u16 *out) {
    Group all = {0, 0, rows};
    Product p = {.l = level_of(level), .stored = PLANES, .bf16 = 1, .pairs = in_pairs(level, 1), .w = blocks, .bias = bias, .w_step = 1,
                 .n = n, .n_out = n_out, .out = out, .out_row = n_out, .planes = {blocks, table, starts, at, others, n}};
    return run(p, threads, x, x_row, &all, 1);
}
/* The bf16 matrix of planes, row after row. */
typedef struct { const Level *l; Planes planes; u16 *out; } Unpacking;
static void piece_unpack(void *job, size_t row) {
    Unpacking *p = job;
    p->l->unpack(&p->planes, (i64)row, p->out + (i64)row * p->planes.n);
}
API void wb_unpack_planes(int level, int threads, const u8 *blocks, const u8 *table, const i64 *starts, const u16 *at, const u16 *others, i64 n, i64 rows, u16 *out) {
    Unpacking p = {level_of(level), {blocks, table, starts, at, others, n}, out};
    each(rows, threads, piece_unpack, &p);
}

/* ---- attention: scores, pattern with sink, values ---- */

/* Queries are [batch][query][head][d], keys and values [batch][kv][key][d], with any strides but d's; scores and
 * patterns are [batch][head][query][key] in fp32. Head h reads kv head h / (heads / kv). */
typedef struct {
    const Level *l;
    int bf16, failed;
    i64 batch, queries, heads, kv, keys, d, width; /* width: d up to a multiple of 16 */
    i64 cache_batch, cache_head, cache_key;
    i64 late, window; /* query i attends to keys j <= late + i, and j > late + i - window if there is a window */
    i64 first;        /* the absolute position of key 0 */
    float scale;
    const float *q;
    const void *cache;
    float *s, *sums, *mass;
    const float *sinks;
} Attend;

enum { SPAN = 512, CHUNK = 64 }; /* keys of a work item; keys at once */

IN i64 max64(i64 a, i64 b) { return a > b ? a : b; }
static i64 spans(const Attend *p) { return (p->first % SPAN + p->keys + SPAN - 1) / SPAN; }
/* The local keys of a span, whose ends are at multiples of SPAN of the absolute position. */
static void span(const Attend *p, i64 i, i64 *from, i64 *to) {
    i64 start = SPAN * i - p->first % SPAN;
    *from = max64(0, start), *to = min64(p->keys, start + SPAN);
}
/* One thread if the work is too small to start others. */
static int n_threads(const Attend *p, int threads) { return p->batch * p->heads * p->queries * p->keys * p->d < (1 << 18) ? 1 : threads; }

/* n keys or values in fp32, width numbers each: d numbers, padded with zeros. */
static void load_fp32(const Attend *p, i64 b, i64 kv, i64 key, i64 n, float *to) {
    for (i64 j = 0; j < n; j++, to += p->width) {
        i64 at = b * p->cache_batch + kv * p->cache_head + (key + j) * p->cache_key, i = 0;
        if (p->bf16) for (; i < p->d; i++) to[i] = wide(((const u16 *)p->cache)[at + i]);
        else for (; i < p->d; i++) to[i] = ((const float *)p->cache)[at + i];
        for (; i < p->width; i++) to[i] = 0;
    }
}

static void piece_scores(void *job, size_t piece) {
    Attend *p = job;
    i64 n_spans = spans(p), kv = (i64)piece / n_spans % p->kv, b = (i64)piece / n_spans / p->kv, group = p->heads / p->kv;
    i64 from, to, at_once = 4, end = (kv + 1) * group;
    int one = p->queries == 1; /* then several heads are multiplied with the keys at once, otherwise several queries of a head */
    span(p, (i64)piece % n_spans, &from, &to);
    float *keys = allocate(sizeof(float) * CHUNK * (size_t)p->width), t[4 * CHUNK];
    if (!keys) { p->failed = 1; return; }
    for (i64 j = from; j < to; j += CHUNK) {
        i64 n = min64(CHUNK, to - j);
        load_fp32(p, b, kv, j, n, keys);
        for (i64 h = kv * group; h < end; h += one ? at_once : 1)
            for (i64 i = 0; i < p->queries; i += at_once) {
                i64 m = min64(at_once, one ? end - h : p->queries - i), queries = one ? 1 : m;
                i64 seen = p->window < 0 ? 0 : max64(0, p->late + i - p->window + 1 - j), stop = min64(n, p->late + i + queries - j);
                if (seen < stop) p->l->dots(p->q + ((b * p->queries + i) * p->heads + h) * p->width, one ? p->width : p->heads * p->width, m, keys + seen * p->width, p->width, stop - seen, p->width, 0, t + seen, CHUNK);
                for (i64 r = 0; r < m; r++) {
                    float *s = p->s + ((b * p->heads + h) * p->queries + i + r) * p->keys + j;
                    i64 last = p->late + i + (one ? 0 : r) - j, first = p->window < 0 ? -1 : last - p->window;
                    i64 a = min64(n, max64(0, first + 1)), z = max64(a, min64(n, last + 1));
                    for (i64 c = 0; c < a; c++) s[c] = -INFINITY;
                    if (p->bf16) for (i64 c = a; c < z; c++) s[c] = wide(narrow(t[r * CHUNK + c] * p->scale));
                    else for (i64 c = a; c < z; c++) s[c] = t[r * CHUNK + c] * p->scale;
                    for (i64 c = z; c < n; c++) s[c] = -INFINITY;
                }
            }
    }
    free(keys);
}

API int wb_scores(int level, int threads, int bf16, const void *q, i64 q_batch, i64 q_pos, i64 q_head, i64 batch, i64 queries,
                  i64 heads, i64 d, const void *k, i64 kv, i64 keys, i64 k_batch, i64 k_head, i64 k_key, i64 late, i64 window, float *s) {
    Attend p = {.l = level_of(level), .bf16 = bf16, .batch = batch, .queries = queries, .heads = heads, .kv = kv, .keys = keys,
                .d = d, .width = (d + 15) / 16 * 16, .cache_batch = k_batch, .cache_head = k_head, .cache_key = k_key,
                .late = late, .window = window, .scale = (float)(1 / sqrt((double)d)), .cache = k, .s = s};
    float *wide_q = allocate(sizeof(float) * (size_t)(batch * queries * heads * p.width)), *to = wide_q;
    if (!wide_q) return 1;
    for (i64 b = 0; b < batch; b++)
        for (i64 i = 0; i < queries; i++)
            for (i64 h = 0; h < heads; h++, to += p.width) {
                i64 at = b * q_batch + i * q_pos + h * q_head, c = 0;
                if (bf16) for (; c < d; c++) to[c] = wide(((const u16 *)q)[at + c]);
                else for (; c < d; c++) to[c] = ((const float *)q)[at + c];
                for (; c < p.width; c++) to[c] = 0;
            }
    p.q = wide_q;
    each(batch * kv * spans(&p), n_threads(&p, threads), piece_scores, &p);
    free(wide_q);
    return p.failed;
}

typedef struct { const Level *l; float *s, *mass; const float *sinks; i64 rows, n, first, heads, queries; } Softmax;
enum { SOFTMAX_ROWS = 8 };
static void piece_softmax(void *job, size_t piece) {
    Softmax *p = job;
    for (i64 r = SOFTMAX_ROWS * (i64)piece; r < min64(p->rows, SOFTMAX_ROWS * ((i64)piece + 1)); r++)
        p->l->softmax_row(p->s + r * p->n, p->n, p->first, p->sinks ? p->sinks[r / p->queries % p->heads] : -INFINITY, p->mass ? p->mass + r : NULL);
}
/* Replaces rows [batch][head][query] of n scores by the pattern; mass gets the sink mass. Without sinks: a softmax. */
API void wb_softmax(int level, int threads, float *s, i64 batch, i64 heads, i64 queries, i64 n, i64 first, const float *sinks, float *mass) {
    Softmax p = {level_of(level), s, mass, sinks, batch * heads * queries, n, first, heads, queries};
    each((p.rows + SOFTMAX_ROWS - 1) / SOFTMAX_ROWS, p.rows * n < 1 << 13 ? 1 : threads, piece_softmax, &p);
}

/* The weights of up to CHUNK keys for some rows (queries of a head, or heads of the only query), rounded as for the product with the values, and the range
 * of nonzero weights in each row. */
IN void weights(const Attend *p, i64 b, i64 h, i64 i, i64 rows, i64 key, i64 n, float *w, i64 *from, i64 *to) {
    for (i64 r = 0; r < rows; r++, w += CHUNK) {
        const float *s = p->s + ((b * p->heads + h) * p->queries + i + r) * p->keys + key;
        if (p->bf16) for (i64 j = 0; j < n; j++) w[j] = wide(narrow(s[j]));
        else for (i64 j = 0; j < n; j++) w[j] = s[j];
        i64 a = 0, z = n;
        while (a < z && w[a] == 0) a++;
        while (z > a && w[z - 1] == 0) z--;
        from[r] = a, to[r] = z;
    }
}

/* Adds a chunk of keys to such rows, at most CHUNK: sums[row * row_stride ...]. Rows that attend to other keys than their
 * neighbors are computed separately, so that a masked key never affects a query, not even with a NaN. */
static void mix_chunk(const Attend *p, i64 b, i64 h, i64 i, i64 rows, i64 key, i64 n, const float *values, float *w, float *sums, i64 row_stride) {
    i64 from[CHUNK], to[CHUNK], r = 0;
    weights(p, b, h, i, rows, key, n, w, from, to);
    while (r < rows) {
        i64 m = 1;
        while (r + m < rows && from[r + m] == from[r] && to[r + m] == to[r]) m++;
        if (from[r] < to[r])
            p->l->weigh(m, w + r * CHUNK + from[r], CHUNK, values + from[r] * p->width, p->width, to[r] - from[r], sums + r * row_stride, row_stride);
        r += m;
    }
}

/* Many queries: one head with all its keys. */
static void piece_mix_many(void *job, size_t piece) {
    Attend *p = job;
    i64 h = (i64)piece % p->heads, b = (i64)piece / p->heads, kv = h / (p->heads / p->kv);
    float *values = allocate(sizeof(float) * CHUNK * (size_t)(p->width + CHUNK)), *w = values + CHUNK * p->width;
    float *sums = p->sums + (b * p->heads + h) * p->queries * p->width;
    if (!values) { p->failed = 1; return; }
    for (i64 j = 0; j < p->keys;) {
        i64 n = min64(CHUNK - (p->first + j) % CHUNK, p->keys - j);
        load_fp32(p, b, kv, j, n, values);
        for (i64 i = 0; i < p->queries; i += CHUNK)
            mix_chunk(p, b, h, i, min64(CHUNK, p->queries - i), j, n, values, w, sums + i * p->width, p->width);
        j += n;
    }
    free(values);
}
/* Few queries: a span of the keys for all heads that share them; each chunk has separate sums, which are added later. */
static void piece_mix_few(void *job, size_t piece) {
    Attend *p = job;
    i64 n_spans = spans(p), kv = (i64)piece / n_spans % p->kv, b = (i64)piece / n_spans / p->kv, group = p->heads / p->kv, from, to;
    span(p, (i64)piece % n_spans, &from, &to);
    float *values = allocate(sizeof(float) * CHUNK * (size_t)(p->width + CHUNK)), *w = values + CHUNK * p->width;
    if (!values) { p->failed = 1; return; }
    i64 rows = p->batch * p->heads * p->queries;
    for (i64 j = from; j < to;) {
        i64 n = min64(CHUNK - (p->first + j) % CHUNK, to - j), chunk = (p->first % SPAN + j) / CHUNK;
        load_fp32(p, b, kv, j, n, values);
        for (i64 h = kv * group, m; h < (kv + 1) * group; h += m) {
            m = p->queries == 1 ? min64(CHUNK, (kv + 1) * group - h) : 1; /* heads at once */
            mix_chunk(p, b, h, 0, m * p->queries, j, n, values, w, p->sums + (chunk * rows + (b * p->heads + h) * p->queries) * p->width, p->width);
        }
        j += n;
    }
    free(values);
}

enum { FEW_QUERIES = 8 };
API int wb_mix(int level, int threads, int bf16, float *pattern, i64 batch, i64 heads, i64 queries, i64 keys, const void *v, i64 kv,
               i64 d, i64 v_batch, i64 v_head, i64 v_key, i64 first, void *out) {
    Attend p = {.l = level_of(level), .bf16 = bf16, .batch = batch, .queries = queries, .heads = heads, .kv = kv, .keys = keys,
                .d = d, .width = (d + 15) / 16 * 16, .cache_batch = v_batch, .cache_head = v_head, .cache_key = v_key,
                .first = first, .cache = v, .s = pattern};
    int few = queries <= FEW_QUERIES;
    i64 parts = few ? max64(1, spans(&p) * (SPAN / CHUNK)) : 1, rows = batch * heads * queries, size = rows * p.width;
    p.sums = allocate(sizeof(float) * (size_t)(parts * size));
    if (!p.sums) return 1;
    memset(p.sums, 0, sizeof(float) * (size_t)(parts * size));
    if (few) each(batch * kv * spans(&p), n_threads(&p, threads), piece_mix_few, &p);
    else each(batch * heads, n_threads(&p, threads), piece_mix_many, &p);
    for (i64 j = 1; j < parts; j++) for (i64 i = 0; i < size; i++) p.sums[i] += p.sums[j * size + i];
    for (i64 b = 0; b < batch; b++)
        for (i64 h = 0; h < heads; h++)
            for (i64 i = 0; i < queries; i++)
                for (i64 c = 0; c < d; c++)
                    store(out, ((b * queries + i) * heads + h) * d + c, p.sums[((b * heads + h) * queries + i) * p.width + c], bf16);
    free(p.sums);
    return p.failed;
}

/* ---- functions of rows ---- */

typedef struct { Rows rows; RowFunction of; i64 count, at_once; } RowJob;
static void piece_rows(void *job, size_t piece) {
    RowJob *p = job;
    for (i64 r = p->at_once * (i64)piece; r < min64(p->count, p->at_once * ((i64)piece + 1)); r++) p->of(&p->rows, r);
}
static void by_rows(int level, int threads, int which, i64 count, Rows rows) {
    RowJob p = {rows, level_of(level)->row[which], count, max64(1, 4096 / (rows.n + 1))};
    each((count + p.at_once - 1) / p.at_once, count * rows.n < 1 << 15 ? 1 : threads, piece_rows, &p);
}

/* x / sqrt(mean x^2 + eps) * scale; without a scale, the norm of each row in fp32. */
API void wb_rms_norm(int level, int threads, int bf16, const void *x, i64 rows, i64 n, const float *scale, float eps, void *out) {
    by_rows(level, threads, RMS, rows, (Rows){.x = x, .out = out, .scale = scale, .n = n, .eps = eps, .bf16 = bf16});
}
API void wb_swiglu(int level, int threads, int bf16, const void *x, i64 rows, i64 n, float alpha, float limit, void *out) {
    by_rows(level, threads, SWIGLU, rows, (Rows){.x = x, .out = out, .n = n, .alpha = alpha, .limit = limit, .bf16 = bf16});
}
API void wb_log_softmax(int level, int threads, int bf16, const void *x, i64 rows, i64 n, float *out) {
    by_rows(level, threads, LOG_SOFTMAX, rows, (Rows){.x = x, .out = out, .n = n, .bf16 = bf16});
}
/* sum of exp(a) (a - b); without b, the entropy. */
API void wb_entropy(int level, int threads, const float *a, const float *b, i64 rows, i64 n, float *out) {
    by_rows(level, threads, ENTROPY, rows, (Rows){.x = a, .other = b, .out = out, .n = n});
}
API void wb_mixture(int level, int threads, int bf16, const void *x, const float *share, i64 rows, i64 count, i64 n, void *out) {
    by_rows(level, threads, MIXTURE, rows, (Rows){.x = x, .other = share, .out = out, .n = n, .count = count, .bf16 = bf16});
}

/* Rows are [batch][position] of count heads with n numbers; cos and sin are [position][n]. */
API void wb_rotate(int level, int threads, int bf16, const void *x, i64 rows, i64 count, i64 n, i64 positions, const float *cos, const float *sin, void *out) {
    by_rows(level, threads, ROTATE, rows, (Rows){.x = x, .out = out, .scale = cos, .other = sin, .n = n, .count = count, .positions = positions, .bf16 = bf16});
}

/* ---- dequantization of MXFP4, and the check of scales ---- */

typedef struct { const u8 *codes, *scales; void *out; i64 n; int bf16, level; } Decode;

enum { GROUPS = 2048 };

static void number_bits(u8 scale, u32 bits[16]) { /* through fp64, so that 2^-127 and smaller are exact */
    for (int c = 0; c < 16; c++) bits[c] = scale == 255 ? 0x7fc00000 : as_bits((float)ldexp(FP4[c], scale - 127));
}

static void piece_decode(void *job, size_t i) {
    Decode *p = job;
    int last = -1;
    u32 bits[16];
    for (i64 g = GROUPS * (i64)i; g < min64(p->n, GROUPS * ((i64)i + 1)); g++) {
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

API void wb_dequantize(int level, int threads, int bf16, const u8 *codes, const u8 *scales, i64 n, void *out) {
    Decode p = {codes, scales, out, n, bf16, level};
    each((n + GROUPS - 1) / GROUPS, threads, piece_decode, &p);
}

typedef struct { const u8 *scales; i64 n; u8 low, width; u8 *outside; } Scan;

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
    i64 a = SCANNED * (i64)i, n = min64(SCANNED, p->n - a);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) { p->outside[i] = (u8)outside_avx2(p->scales + a, n, p->low, p->width); return; }
#endif
    p->outside[i] = (u8)outside_plain(p->scales + a, n, p->low, p->width);
}

/* Returns 1 if all scales are in low..high, 0 if not, -1 without memory. */
API int wb_within(int threads, const u8 *scales, i64 n, int low, int high) {
    i64 pieces = (n + SCANNED - 1) / SCANNED;
    Scan p = {scales, n, (u8)low, (u8)(high - low), calloc((size_t)pieces + 1, 1)};
    if (!p.outside) return -1;
    each(pieces, threads, piece_scan, &p);
    int bad = 0;
    for (i64 i = 0; i < pieces; i++) bad |= p.outside[i];
    free(p.outside);
    return !bad;
}

#include "noise.h"
#include "screen.h"

/* ---- the source of this library, and the levels that this machine can run ---- */

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
