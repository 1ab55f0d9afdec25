/* Which rows of a bf16 matrix can have the largest product with x, found from an int8 copy of half the size.
 *
 * Row r has the bf16 weights w, their int8 copy q with one scale s, and two norms: |w| and |w - s q|. x is rounded to
 * int16 with one scale t: x is about t X. Then, for the fp32 sum y that a kernel of this library computes for w and x,
 *
 *   |w.x - s t q.X| = |(w - s q).x + s q.(x - t X)| <= |w - s q| |x| + (|w| + |w - s q|) |x - t X|   (Cauchy-Schwarz)
 *   |y - w.x| <= 2 (n + 16) 2^-24 |w| |x| + 2^-126 (n + 16) (|w| + |x| + 4)
 *
 * The second line holds for every order of additions: at most n + 16 of them, each with a relative error of 2^-24, and the
 * factor 2 leaves room; sum of |w_k x_k| <= |w| |x|. vdpbf16ps replaces subnormal weights, x and sums by 0: each changes the
 * result by at most 2^-126 times |x_k|, |w_k| or 1. The sums cannot overflow if |w| |x| < 2^126; rows where they might have
 * no bounds. q.X is an exact integer. Everything else is computed in fp64 and rounded up: norms have a margin of 2^-20
 * (stored in fp32) or 2^-48, and the whole bound b one of 2^-40.
 *
 * So y is between a - b and a + b, with a = s t q.X. The logit is y rounded to bf16, and a token's value is
 * logit / temperature + noise in fp64. All these roundings are monotone, so the same steps from both ends give two numbers
 * between which the value is certain. A row whose upper end is below the best lower end of all rows can be neither the
 * largest nor equal to it. The other rows are the candidates, in order, so the first of equal values is among them too. */

enum { SCREEN_ROWS = NOISE_TOKENS, MAX_INT16 = 32767 }; /* rows of a work item */

typedef struct { /* the int8 copy: rows of `width` numbers, n of them and zeros */
    const u16 *w;
    i64 w_row, rows, n, width;
    int8_t *q;
    float *scale, *residual, *norm;
    int level;
} Copy;

/* ---- the copy ---- */

static float rounded_up(double square) { /* at least the square root, whose relative error is far below 2^-20 */
    return (float)(sqrt(square) * (1 + 0x1p-20)) + 0x1p-149f;
}

/* Written in loops of 64 numbers, which the compiler vectorizes; the width of a row is a multiple of that. */
IN void copy_row(const Copy *p, i64 row) {
    enum { N = 64 };
    const u16 *w = p->w + row * p->w_row;
    int8_t *q = p->q + row * p->width;
    u16 top = 0; /* the bits of absolute values are in their order, with infinity and NaN last */
    for (i64 k = 0; k < p->n; k++) { u16 size = w[k] & 0x7fff; top = MORE(top, size); }
    if (top >= 0x7f80) {
        memset(q, 0, (size_t)p->width);
        p->scale[row] = p->residual[row] = p->norm[row] = NAN;
        return;
    }
    float scale = wide(top) / 127, by = 1 / scale; /* |w| by, rounded, is at most 127 */
    if (scale < 1.17549435e-38f) scale = by = 0;   /* 1 / scale might overflow: all of q is 0 */
    double squares[N] = {0}, errors[N] = {0}, square = 0, error = 0;
    const float round = 12582912.f; /* 1.5 * 2^23: adding and subtracting it leaves the nearest integer */
    for (i64 k = 0; k < p->n; k += N) {
        u16 end[N] = {0};
        const u16 *at = w + k;
        if (k + N > p->n) memcpy(end, at, sizeof(u16) * (size_t)(p->n - k)), at = end;
        float v[N], of[N];
        for (int i = 0; i < N; i++) v[i] = wide(at[i]);
        for (int i = 0; i < N; i++) of[i] = (v[i] * by + round) - round;
        for (int i = 0; i < N; i++) q[k + i] = (int8_t)(int32_t)of[i];
        for (int i = 0; i < N; i++) squares[i] += (double)v[i] * (double)v[i];
        for (int i = 0; i < N; i++) { double d = (double)v[i] - (double)of[i] * (double)scale; errors[i] += d * d; }
    }
    for (int i = 0; i < N; i++) square += squares[i], error += errors[i];
    p->scale[row] = scale, p->residual[row] = rounded_up(error), p->norm[row] = rounded_up(square);
}
static void copy_row_plain(const Copy *p, i64 row) { copy_row(p, row); }
#if defined(__x86_64__)
T2 static void copy_row_avx2(const Copy *p, i64 row) { copy_row(p, row); }
#endif
static void piece_copy(void *job, size_t piece) {
    const Copy *p = job;
    for (i64 r = SCREEN_ROWS * (i64)piece; r < min64(p->rows, SCREEN_ROWS * ((i64)piece + 1)); r++) {
#if defined(__x86_64__)
        if (p->level >= AVX2) { copy_row_avx2(p, r); continue; }
#endif
        copy_row_plain(p, r);
    }
}
/* The int8 copy of a bf16 matrix; the scale of a row that is not finite is NaN. width: n up to a multiple of 64. */
API void wb_screen_copy(int level, int threads, const u16 *w, i64 w_row, i64 rows, i64 n, i64 width, int8_t *q, float *scale, float *residual, float *norm) {
    Copy p = {w, w_row, rows, n, width, q, scale, residual, norm, level};
    each((rows + SCREEN_ROWS - 1) / SCREEN_ROWS, threads, piece_copy, &p);
}

/* ---- q.X of each row: exact at every level. There are 16 sums or more; each adds at most width / 16 products in int32,
 * which cannot overflow because of the size of X (`largest_int16`). ---- */

static i64 largest_int16(i64 width) { return min64(MAX_INT16, INT32_MAX / (127 * (width / 16))); }

IN i64 total(const int32_t *s, int count) {
    i64 sum = 0;
    for (int i = 0; i < count; i++) sum += s[i];
    return sum;
}
static void integers_plain(const int8_t *q, i64 rows, i64 width, const int16_t *x, i64 *sums) {
    for (i64 r = 0; r < rows; r++, q += width) {
        int32_t s[16] = {0};
        for (i64 k = 0; k < width; k += 16) EACH16(s[i] += (int32_t)q[k + i] * x[k + i];)
        sums[r] = total(s, 16);
    }
}
#if defined(__x86_64__)
T2 IN __m256i pairs_avx2(const int8_t *q, const int16_t *x) { /* sums of two products */
    return _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)q)), _mm256_loadu_si256((const __m256i *)x));
}
T2 static void integers_avx2(const int8_t *q, i64 rows, i64 width, const int16_t *x, i64 *sums) {
    for (i64 r = 0; r < rows; r++, q += width) {
        __m256i a = _mm256_setzero_si256(), b = a;
        for (i64 k = 0; k < width; k += 64) {
            _mm_prefetch((const char *)q + k + 4096, _MM_HINT_T0);
            a = _mm256_add_epi32(a, pairs_avx2(q + k, x + k)), b = _mm256_add_epi32(b, pairs_avx2(q + k + 16, x + k + 16));
            a = _mm256_add_epi32(a, pairs_avx2(q + k + 32, x + k + 32)), b = _mm256_add_epi32(b, pairs_avx2(q + k + 48, x + k + 48));
        }
        int32_t s[16];
        _mm256_storeu_si256((__m256i *)s, a), _mm256_storeu_si256((__m256i *)(s + 8), b);
        sums[r] = total(s, 16);
    }
}
#endif
#if defined(HAS512)
#ifdef EMULATED
#define TVNNI T512
#define HAS_VNNI 1
#else
#define TVNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")))
#define HAS_VNNI __builtin_cpu_supports("avx512vnni")
#endif
TVNNI static void integers_avx512(const int8_t *q, i64 rows, i64 width, const int16_t *x, i64 *sums) {
    for (i64 r = 0; r < rows; r++, q += width) {
        __m512i a = _mm512_setzero_si512(), b = a;
        for (i64 k = 0; k < width; k += 64) {
            _mm_prefetch((const char *)q + k + 8192, _MM_HINT_T0);
            a = _mm512_dpwssd_epi32(a, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(q + k))), _mm512_loadu_si512(x + k));
            b = _mm512_dpwssd_epi32(b, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(q + k + 32))), _mm512_loadu_si512(x + k + 32));
        }
        int32_t s[32];
        _mm512_storeu_si512(s, a), _mm512_storeu_si512(s + 16, b);
        sums[r] = total(s, 32);
    }
}
#endif
#if defined(__aarch64__)
static void integers_neon(const int8_t *q, i64 rows, i64 width, const int16_t *x, i64 *sums) {
    for (i64 r = 0; r < rows; r++, q += width) {
        int32x4_t a[4];
        UNROLL for (int i = 0; i < 4; i++) a[i] = vdupq_n_s32(0);
        for (i64 k = 0; k < width; k += 16) {
            int8x16_t b = vld1q_s8(q + k);
            int16x8_t u = vmovl_s8(vget_low_s8(b)), v = vmovl_high_s8(b), p = vld1q_s16(x + k), o = vld1q_s16(x + k + 8);
            if (!(k & 63)) __builtin_prefetch(q + k + 4096);
            a[0] = vmlal_s16(a[0], vget_low_s16(u), vget_low_s16(p)), a[1] = vmlal_high_s16(a[1], u, p);
            a[2] = vmlal_s16(a[2], vget_low_s16(v), vget_low_s16(o)), a[3] = vmlal_high_s16(a[3], v, o);
        }
        sums[r] = 0;
        UNROLL for (int i = 0; i < 4; i++) sums[r] += vaddlvq_s32(a[i]);
    }
}
#endif

typedef void (*Integers)(const int8_t *q, i64 rows, i64 width, const int16_t *x, i64 *sums);
static Integers integers_of(int level) {
#if defined(HAS512)
    if (level == AVX512 && HAS_VNNI) return integers_avx512;
#endif
#if defined(__x86_64__)
    if (level >= AVX2) return integers_avx2;
#elif defined(__aarch64__)
    if (level == NEON) return integers_neon;
#endif
    (void)level;
    return integers_plain;
}

/* ---- the bounds of each row, and the candidates ---- */

typedef struct { double best; float lower, upper; } Best; /* of some rows: the best lower end, and the largest bounds */

typedef struct {
    Copy copy;
    Integers integers;
    const int16_t *x;
    double t, x_norm, x_error; /* t, |x|, |x - t X| */
    double temperature;
    Noise noise;
    u16 *lower, *upper; /* of the logit */
    double *ends;       /* the upper end of each row's value */
    Best *best;
} Screen;

/* X, t and the norms. Returns 0 if x is not finite. */
static int round_x(Screen *p, const u16 *x, int16_t *to) {
    i64 n = p->copy.n, width = p->copy.width, most = largest_int16(width);
    u16 top = 0;
    for (i64 k = 0; k < n; k++) top = MORE(top, (u16)(x[k] & 0x7fff));
    if (top >= 0x7f80) return 0;
    double square = 0, error = 0;
    p->t = wide(top) / (double)most;
    for (i64 k = 0; k < width; k++) {
        double v = k < n ? wide(x[k]) : 0, u = top ? rint(v / p->t) : 0;
        u = u > most ? most : u < -most ? -most : u;
        to[k] = (int16_t)u;
        square += v * v, error += (v - u * p->t) * (v - u * p->t);
    }
    p->x_norm = sqrt(square) * (1 + 0x1p-36); /* the sums' relative error is below 2^-37 for n up to 32,768 */
    p->x_error = sqrt(error) * (1 + 0x1p-36) + p->x_norm * 0x1p-48; /* and the rounding of t X and of a */
    p->x = to;
    return 1;
}

static void piece_screen(void *job, size_t piece) {
    Screen *p = job;
    const Copy *c = &p->copy;
    i64 first = SCREEN_ROWS * (i64)piece, m = min64(SCREEN_ROWS, c->rows - first), sums[SCREEN_ROWS];
    double by_norm = p->x_error + 2 * (double)(c->n + 16) * 0x1p-24 * p->x_norm, by_residual = p->x_norm + p->x_error;
    double of_zero = 0x1p-126 * (double)(c->n + 16), *noise_of = p->temperature > 0 ? p->noise.out + first : NULL;
    p->integers(c->q + first * c->width, m, c->width, p->x, sums);
    if (noise_of) noise(&p->noise, first, m, noise_of);
    Best best = {-INFINITY, -INFINITY, -INFINITY};
    for (i64 i = 0; i < m; i++) {
        i64 r = first + i;
        double norm = c->norm[r], residual = c->residual[r];
        double a = (double)c->scale[r] * p->t * (double)sums[i];
        double b = (residual * by_residual + norm * by_norm + of_zero * (norm + p->x_norm + 4)) * (1 + 0x1p-40);
        int bounded = norm * p->x_norm < 0x1p126 && residual < INFINITY;
        u16 low = narrow(bounded ? (float)(a - b) : -INFINITY), high = narrow(bounded ? (float)(a + b) : INFINITY);
        float lower = wide(low), upper = wide(high);
        double start = lower, end = upper;
        if (noise_of) start = lower / p->temperature + noise_of[i], end = upper / p->temperature + noise_of[i];
        p->lower[r] = low, p->upper[r] = high, p->ends[r] = end;
        best.best = MORE(best.best, start), best.lower = MORE(best.lower, lower), best.upper = MORE(best.upper, upper);
    }
    p->best[piece] = best;
}

/* The candidates for the next token, ascending; returns their number, of which at most `most` are written. -1: no memory.
 * -2: x is not finite, or it is not certain that the largest logit can be divided by the temperature. lower and upper are
 * the bounds of each logit; noise is not written at temperature 0. */
API i64 wb_screen(int level, int threads, const int8_t *q, i64 rows, i64 n, i64 width, const float *scale, const float *residual, const float *norm,
                  const u16 *x, double temperature, u64 seed, u64 position, u16 *lower, u16 *upper, double *noise, i64 *candidates, i64 most) {
    i64 pieces = (rows + SCREEN_ROWS - 1) / SCREEN_ROWS, count = 0;
    int16_t *to = allocate(sizeof(int16_t) * (size_t)width);
    Screen p = {.copy = {.rows = rows, .n = n, .width = width, .q = (int8_t *)q, .scale = (float *)scale, .residual = (float *)residual, .norm = (float *)norm},
                .integers = integers_of(level), .temperature = temperature, .noise = {seed, position, rows, noise, level}, .lower = lower, .upper = upper,
                .ends = allocate(sizeof(double) * (size_t)rows), .best = allocate(sizeof(Best) * (size_t)pieces)};
    if (!to || !p.ends || !p.best) count = -1;
    else if (!round_x(&p, x, to)) count = -2;
    else {
        Best best = {-INFINITY, -INFINITY, -INFINITY};
        each(pieces, rows * width < 1 << 18 ? 1 : threads, piece_screen, &p);
        for (i64 i = 0; i < pieces; i++) {
            best.best = MORE(best.best, p.best[i].best);
            best.lower = MORE(best.lower, p.best[i].lower), best.upper = MORE(best.upper, p.best[i].upper);
        }
        if (temperature > 0 && !(isfinite(best.lower / temperature) && isfinite(best.upper / temperature))) count = -2;
        else for (i64 r = 0; r < rows; r++) if (p.ends[r] >= best.best) {
            if (count < most) candidates[count] = r;
            count++;
        }
    }
    free(to), free(p.ends), free(p.best);
    return count;
}
