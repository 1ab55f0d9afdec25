/* Products in fp32 with a fixed order of additions: the same bits at every level, for any number of rows, columns and
 * threads. native.c includes this file once for each level, with LEVEL, TARGET and the sizes of a block defined.
 *
 * A dot product over k has 16 partial sums. Element k is added to sum k mod 16 by one fused multiply-add, in order of k.
 * A fixed tree then adds the sums (vectors.h). A weighted sum of rows (attention's values) adds chunks of up to 64 rows
 * by fused multiply-adds in order, and then the chunks in order. Chunks begin at multiples of 64 of the absolute
 * position. Rows with weight zero at either end change nothing. */

#define V CAT(V16, LEVEL)
#define L(name) CAT(name, LEVEL)

/* R rows of x with C rows of w, n numbers of each. They are added to the partial sums, which start at zero if `first`;
 * if `last`, the totals are written to y[r * ys + c]. R, C and bf16 are constants in each call. */
TARGET IN void L(block)(int R, int C, const float *x, i64 xs, const void *w, i64 ws, i64 n, int bf16, V *sums, int first, int last, float *y, i64 ys) {
    V a[16];
    UNROLL for (int i = 0; i < R * C; i++) a[i] = first ? L(zero)() : sums[i];
    i64 k = 0;
    for (; k + 16 <= n; k += 16) {
        V u[4];
        UNROLL for (int c = 0; c < C; c++) u[c] = bf16 ? L(wide)((const u16 *)w + c * ws + k) : L(load)((const float *)w + c * ws + k);
        UNROLL for (int r = 0; r < R; r++) {
            V v = L(load)(x + r * xs + k);
            UNROLL for (int c = 0; c < C; c++) a[r * C + c] = L(fma)(v, u[c], a[r * C + c]);
        }
    }
    if (k < n) {
        V u[4];
        float end[16];
        UNROLL for (int c = 0; c < C; c++) {
            for (i64 i = k; i < n; i++) end[i - k] = load(w, c * ws + i, bf16);
            u[c] = L(some)(end, n - k);
        }
        UNROLL for (int r = 0; r < R; r++) {
            V v = L(some)(x + r * xs + k, n - k);
            UNROLL for (int c = 0; c < C; c++) a[r * C + c] = L(fma)(v, u[c], a[r * C + c]);
        }
    }
    if (!last) { UNROLL for (int i = 0; i < R * C; i++) sums[i] = a[i]; return; }
    UNROLL for (int i = R * C; i < (R * C + 3) / 4 * 4; i++) a[i] = L(zero)();
    float t[16];
    UNROLL for (int i = 0; i < R * C; i += 4) L(totals4)(a + i, t + i);
    UNROLL for (int i = 0; i < R * C; i++) y[i / C * ys + i % C] = t[i];
}

/* rows of x with cols rows of w: y[r * ys + c]. cols <= STRIP. For many rows, a tile stays in the L1 cache, with as much
 * of n as fits; the partial sums are stored in between. */
TARGET IN void L(dots_of)(const float *x, i64 xs, i64 rows, const void *w, i64 ws, i64 cols, i64 n, int bf16, float *y, i64 ys) {
    enum { R = MANY_ROWS, C = MANY_COLS, TALL = 12 / R * R };
    V sums[TALL * STRIP];
    const char *at = w;
    i64 size = bf16 ? 2 : 4, r = 0, whole = cols / C * C;
    while (rows - r >= R) {
        i64 end = r + min64(TALL, (rows - r) / R * R), deep = end - r > R ? NEAR : n + 1;
        for (i64 k = 0; k == 0 || k < n; k += deep) { /* also once if n is 0: then all sums are 0 */
            i64 m = min64(deep, n - k);
            V *s = sums;
            for (i64 c = 0; c < whole; c += C)
                for (i64 i = r; i < end; i += R, s += R * C)
                    L(block)(R, C, x + i * xs + k, xs, at + (c * ws + k) * size, ws, m, bf16, s, k == 0, k + m == n, y + i * ys + c, ys);
        }
        for (i64 c = whole; c < cols; c++) for (i64 i = r; i < end; i++)
            L(block)(1, 1, x + i * xs, xs, at + c * ws * size, ws, n, bf16, sums, 1, 1, y + i * ys + c, ys);
        r = end;
    }
    for (i64 c = 0; c < cols;) {
        i64 step = cols - c >= 4 ? 4 : 1;
        for (i64 i = r; i < rows; i++) {
            if (step == 4) L(block)(1, 4, x + i * xs, xs, at + c * ws * size, ws, n, bf16, sums, 1, 1, y + i * ys + c, ys);
            else L(block)(1, 1, x + i * xs, xs, at + c * ws * size, ws, n, bf16, sums, 1, 1, y + i * ys + c, ys);
        }
        c += step;
    }
}
TARGET static void L(dots)(const float *x, i64 xs, i64 rows, const void *w, i64 ws, i64 cols, i64 n, int bf16, float *y, i64 ys) {
    if (bf16) L(dots_of)(x, xs, rows, w, ws, cols, n, 1, y, ys);
    else L(dots_of)(x, xs, rows, w, ws, cols, n, 0, y, ys);
}

/* n <= 64 rows of v (of `width` numbers, a multiple of 16), weighted by R rows of p; their sum is added to `to`. */
TARGET IN void L(weigh_block)(int R, int D, const float *p, i64 ps, const float *v, i64 width, i64 n, float *to, i64 ts) {
    V a[8];
    UNROLL for (int i = 0; i < R * D; i++) a[i] = L(zero)();
    for (i64 j = 0; j < n; j++) {
        V u[4];
        UNROLL for (int d = 0; d < D; d++) u[d] = L(load)(v + j * width + 16 * d);
        UNROLL for (int r = 0; r < R; r++) {
            V s = L(all)(p[r * ps + j]);
            UNROLL for (int d = 0; d < D; d++) a[r * D + d] = L(fma)(s, u[d], a[r * D + d]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int d = 0; d < D; d++)
        L(store)(to + r * ts + 16 * d, L(add)(L(load)(to + r * ts + 16 * d), a[r * D + d]));
}
TARGET static void L(weigh)(i64 rows, const float *p, i64 ps, const float *v, i64 width, i64 n, float *to, i64 ts) {
    for (i64 d = 0; d < width; d += 32) {
        i64 r = 0;
        if (width - d >= 32) {
            for (; r + WEIGH_ROWS <= rows; r += WEIGH_ROWS) L(weigh_block)(WEIGH_ROWS, 2, p + r * ps, ps, v + d, width, n, to + r * ts + d, ts);
            for (; r < rows; r++) L(weigh_block)(1, 2, p + r * ps, ps, v + d, width, n, to + r * ts + d, ts);
        } else for (; r < rows; r++) L(weigh_block)(1, 1, p + r * ps, ps, v + d, width, n, to + r * ts + d, ts);
    }
}

/* ---- functions of a row: written for one number at a time and vectorized by the compiler ---- */

TARGET static void L(rms_row)(const Rows *p, i64 row) {
    i64 n = p->n, at = row * n;
    float s[16] = {0};
    i64 k = 0;
    if (p->bf16) for (; k + 16 <= n; k += 16) EACH16(float v = wide(((const u16 *)p->x)[at + k + i]); s[i] = fmaf(v, v, s[i]);)
    else for (; k + 16 <= n; k += 16) EACH16(float v = ((const float *)p->x)[at + k + i]; s[i] = fmaf(v, v, s[i]);)
    for (; k < n; k++) { float v = load(p->x, at + k, p->bf16); s[k & 15] = fmaf(v, v, s[k & 15]); }
    float total = tree(s);
    if (!p->scale) { ((float *)p->out)[row] = sqrtf(total); return; } /* only the norm */
    float by = 1.f / sqrtf(total / (float)n + p->eps);
    if (p->bf16) for (k = 0; k < n; k++) ((u16 *)p->out)[at + k] = narrow(wide(((const u16 *)p->x)[at + k]) * by * p->scale[k]);
    else for (k = 0; k < n; k++) ((float *)p->out)[at + k] = ((const float *)p->x)[at + k] * by * p->scale[k];
}

TARGET static void L(swiglu_row)(const Rows *p, i64 row) {
    i64 n = p->n;
    float alpha = p->alpha, limit = p->limit;
    if (p->bf16) {
        const u32 *x = (const u32 *)p->x + row * n; /* a gate and its up */
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

/* The heads of a position, rotated: x[i] * cos[i] + x[(i + n / 2) mod n] * sin[i], each operation rounded. */
TARGET static void L(rotate_row)(const Rows *p, i64 row) {
    i64 half = p->n / 2, angle = row % p->positions * p->n;
    const float *cos = p->scale + angle, *sin = p->other + angle;
    for (i64 at = row * p->count * p->n, end = at + p->count * p->n; at < end; at += p->n)
        for (i64 i = 0; i < half; i++) {
            float a = load(p->x, at + i, p->bf16), b = load(p->x, at + half + i, p->bf16);
            store(p->out, at + i, a * cos[i] + b * sin[i], p->bf16);
            store(p->out, at + half + i, b * cos[half + i] + a * sin[half + i], p->bf16);
        }
}

/* exp(x - top) of a row in place, with 0 for subnormal results; returns their sum, number j at place first + j. */
TARGET IN float L(exponentials)(float *s, i64 n, i64 first, float top) {
    float sum[16] = {0};
    i64 j = 0;
    for (; j < n && ((first + j) & 15); j++) s[j] = exponential_or_zero(s[j] - top), sum[(first + j) & 15] += s[j];
    for (; j + 16 <= n; j += 16)
        EACH16(float e = exponential_or_zero(s[j + i] - top); s[j + i] = e; sum[i] += e;)
    for (; j < n; j++) s[j] = exponential_or_zero(s[j] - top), sum[(first + j) & 15] += s[j];
    return tree(sum);
}
TARGET IN float L(largest)(const float *s, i64 n, float start) {
    float top[16];
    i64 j = 0;
    EACH16(top[i] = start;)
    for (; j + 16 <= n; j += 16) EACH16(top[i] = MORE(top[i], s[j + i]);)
    for (; j < n; j++) top[0] = MORE(top[0], s[j]);
    EACH16(top[0] = MORE(top[0], top[i]);)
    return top[0];
}
TARGET static void L(softmax_row)(float *s, i64 n, i64 first, float sink, float *mass) {
    i64 a = 0, b = n;
    while (a < b && s[a] == -INFINITY) s[a++] = 0;
    while (b > a && s[b - 1] == -INFINITY) s[--b] = 0;
    float top = L(largest)(s + a, b - a, sink);
    float sum = L(exponentials)(s + a, b - a, first + a, top);
    float e = exponential_or_zero(sink - top), total = sum + e, by = 1.f / total;
    for (i64 j = a; j < b; j++) s[j] *= by;
    if (mass) *mass = e / total;
}

/* Logits to log-probabilities. */
TARGET static void L(log_softmax_row)(const Rows *p, i64 row) {
    i64 n = p->n;
    float *y = (float *)p->out + row * n, s[16] = {0};
    if (p->bf16) for (i64 k = 0; k < n; k++) y[k] = wide(((const u16 *)p->x)[row * n + k]);
    else if (y != (const float *)p->x + row * n) memcpy(y, (const float *)p->x + row * n, sizeof(float) * (size_t)n);
    float top = L(largest)(y, n, -INFINITY);
    i64 k = 0;
    for (; k + 16 <= n; k += 16) EACH16(s[i] += exponential(y[k + i] - top);)
    for (; k < n; k++) s[k & 15] += exponential(y[k] - top);
    float of_sum = logarithm(tree(s));
    for (k = 0; k < n; k++) y[k] = (y[k] - top) - of_sum;
}

/* sum of exp(a) * (a - b), or of -exp(a) * a; a token with probability 0 counts 0. */
TARGET static void L(entropy_row)(const Rows *p, i64 row) {
    const float *a = (const float *)p->x + row * p->n, *b = p->other ? p->other + row * p->n : NULL;
    float s[16] = {0};
    for (i64 k = 0; k < p->n; k++) {
        float e = exponential(a[k]), d = b ? a[k] - b[k] : -a[k];
        s[k & 15] = fmaf(e, e > 0 ? d : 0.f, s[k & 15]);
    }
    ((float *)p->out)[row] = tree(s);
}

/* Weighted sum of experts: sum over c of share[c] * y[c][k], by fused multiply-adds in order. */
TARGET static void L(mixture_row)(const Rows *p, i64 row) {
    i64 n = p->n;
    const float *share = p->other + row * p->count;
    float s[64];
    for (i64 k = 0; k < n; k += 64) {
        i64 m = min64(64, n - k);
        for (i64 i = 0; i < m; i++) s[i] = 0;
        for (i64 c = 0; c < p->count; c++) {
            i64 at = (row * p->count + c) * n + k;
            if (p->bf16) for (i64 i = 0; i < m; i++) s[i] = fmaf(share[c], wide(((const u16 *)p->x)[at + i]), s[i]);
            else for (i64 i = 0; i < m; i++) s[i] = fmaf(share[c], ((const float *)p->x)[at + i], s[i]);
        }
        for (i64 i = 0; i < m; i++) store(p->out, row * n + k + i, s[i], p->bf16);
    }
}

#undef V
#undef L
#undef LEVEL
#undef TARGET
#undef MANY_ROWS
#undef MANY_COLS
#undef WEIGH_ROWS
