/* Matrices of bf16 in 12 bits a weight, without loss.
 *
 * The upper byte of a bf16 (its sign and the upper 7 bits of its exponent) has few values in a trained matrix. A weight is
 * stored as its lower byte and a 4-bit code for its upper byte: the index in a table of 15 bytes, or 15 for any other
 * byte. Weights with code 15 are listed separately, with all their 16 bits. Planes are decoded in registers, in the order
 * of the bf16 kernels, so all sums have the bits of those of the bf16 matrix.
 *
 * 64 weights are a block of 96 bytes: 64 lower bytes, then 32 bytes of codes. PLACE has the byte of each weight, in which
 * unpacking bytes within 128-bit lanes gives weights in order. Byte i < 32 has its code in the low half of byte 64 + i,
 * byte 32 + i in the high half. */

enum { BLOCK = 64, BLOCK_BYTES = 96, OTHER = 15, MAX_PLANE = 1 << 14, AHEAD = 8192 }; /* MAX_PLANE: the longest row */
#define PLACE(i) ((i) % 32 / 8 * 16 + (i) / 32 * 8 + (i) % 8)

typedef struct {
    const u8 *blocks;   /* rows of n / 64 blocks */
    const u8 *table;    /* 16 upper bytes; the last one is 0 */
    const i64 *starts;  /* the weights of row r with other upper bytes are starts[r] .. starts[r + 1] */
    const u16 *at, *others; /* their places in the row, ascending, and their bits */
    i64 n;
} Planes;

IN const u8 *blocks_of(const Planes *w, i64 row) { return w->blocks + row * (w->n / BLOCK) * BLOCK_BYTES; }
#if defined(__x86_64__)
/* Prefetches the next `bytes` of the stream: rows that are read side by side are one stream. */
IN void fetch(const u8 *p, int bytes) { UNROLL for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T0); }
#endif
static void put_others(const Planes *w, i64 row, u16 *out) {
    for (i64 e = w->starts[row]; e < w->starts[row + 1]; e++) out[w->at[e]] = w->others[e];
}

/* The first block from which the listed weights of these rows begin; `next` is the next one of each row. */
IN i64 before_listed(int R, const Planes *w, i64 o, const i64 *next) {
    i64 stop = w->n;
    UNROLL for (int r = 0; r < R; r++) if (next[r] < w->starts[o + r + 1]) stop = min64(stop, w->at[next[r]] / BLOCK * BLOCK);
    return stop;
}
/* Puts the listed weights of the block at k into its 64 weights; returns the next listed one of the row. */
IN i64 put_listed(const Planes *w, i64 row, i64 next, i64 k, u16 *weights) {
    for (; next < w->starts[row + 1] && w->at[next] < k + BLOCK; next++) weights[w->at[next] - k] = w->others[next];
    return next;
}

static void unpack_plain(const Planes *w, i64 row, u16 *out) {
    const u8 *p = blocks_of(w, row);
    for (i64 k = 0; k < w->n; k += BLOCK, p += BLOCK_BYTES)
        for (int i = 0; i < BLOCK; i++) {
            int at = PLACE(i), code = at < 32 ? p[BLOCK + at] & 15 : p[BLOCK + at - 32] >> 4;
            out[k + i] = (u16)(w->table[code] << 8 | p[at]);
        }
    put_others(w, row, out);
}

#if defined(__x86_64__)
T2 IN __m256i table2(const Planes *w) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)w->table)); }
/* A block as bf16: four times 16 weights, in order. */
T2 IN void block2(const u8 *p, __m256i table, __m256i out[4]) {
    const __m256i code = _mm256_set1_epi8(15);
    __m256i codes = _mm256_loadu_si256((const __m256i *)(p + BLOCK));
    UNROLL for (int i = 0; i < 2; i++) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(p + 32 * i));
        __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(i ? _mm256_srli_epi16(codes, 4) : codes, code));
        out[i] = _mm256_unpacklo_epi8(low, high), out[2 + i] = _mm256_unpackhi_epi8(low, high);
    }
}
T2 static void unpack_avx2(const Planes *w, i64 row, u16 *out) {
    const u8 *p = blocks_of(w, row);
    __m256i t = table2(w);
    for (i64 k = 0; k < w->n; k += BLOCK, p += BLOCK_BYTES) {
        __m256i b[4];
        block2(p, t, b);
        UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(out + k + 16 * i), b[i]);
    }
    put_others(w, row, out);
}
/* R rows of weights with m rows of x, in the order of `stream_avx2`. The loop over blocks stops at each block that has
 * weights with other upper bytes. */
T2 IN void rows2(int R, int m, const Planes *w, i64 o, const float *x, i64 xs, float *y) {
    __m256 a[2][DECODE_MAX_ROWS][2];
    const u8 *first = blocks_of(w, o), *p = first;
    const i64 row = w->n / BLOCK * BLOCK_BYTES;
    const __m256i table = table2(w);
    i64 next[2], k = 0;
    UNROLL for (int r = 0; r < R; r++) next[r] = w->starts[o + r];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) a[r][t][0] = a[r][t][1] = _mm256_setzero_ps();
    while (k < w->n) {
        i64 stop = before_listed(R, w, o, next);
        for (; k < stop; k += BLOCK, p += BLOCK_BYTES) {
            fetch(first + R * (p - first), R * BLOCK_BYTES);
            UNROLL for (int r = 0; r < R; r++) {
                __m256i b[4];
                block2(p + r * row, table, b);
                UNROLL for (int i = 0; i < 4; i++) sixteen_avx2(m, b[i], x + k + 16 * i, xs, a[r]);
            }
        }
        if (k == w->n) break;
        UNROLL for (int r = 0; r < R; r++) {
            u16 weights[BLOCK];
            __m256i b[4];
            block2(p + r * row, table, b);
            UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(weights + 16 * i), b[i]);
            next[r] = put_listed(w, o + r, next[r], k, weights);
            UNROLL for (int i = 0; i < 4; i++) sixteen_avx2(m, _mm256_loadu_si256((const __m256i *)(weights + 16 * i)), x + k + 16 * i, xs, a[r]);
        }
        k += BLOCK, p += BLOCK_BYTES;
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) y[t * STRIP + r] = placed2(a[r][t], HALVES2);
}
T2 static void planes_avx2(const Planes *w, i64 first, i64 rows, const float *x, i64 xs, int m, float *y) {
    i64 o = 0;
    if (m == 1) for (; o + 2 <= rows; o += 2) rows2(2, 1, w, first + o, x, xs, y + o);
    for (; o < rows; o++) BY_ROWS_4(rows2, 1, m, w, first + o, x, xs, y + o)
}
#endif

#if defined(HAS512)
T512 IN __m512i table5(const Planes *w) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w->table)); }
/* A block as bf16: twice 32 weights, in order. */
T512 IN void block5(const u8 *p, __m512i table, __m512i out[2]) {
    __m512i low = _mm512_loadu_si512(p);
    __m256i codes = _mm256_loadu_si256((const __m256i *)(p + BLOCK));
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(codes), _mm256_srli_epi16(codes, 4), 1);
    __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(both, _mm512_set1_epi8(15)));
    out[0] = _mm512_unpacklo_epi8(low, high), out[1] = _mm512_unpackhi_epi8(low, high);
}
T512 static void unpack_avx512(const Planes *w, i64 row, u16 *out) {
    const u8 *p = blocks_of(w, row);
    __m512i t = table5(w);
    for (i64 k = 0; k < w->n; k += BLOCK, p += BLOCK_BYTES) {
        __m512i b[2];
        block5(p, t, b);
        _mm512_storeu_si512(out + k, b[0]), _mm512_storeu_si512(out + k + 32, b[1]);
    }
    put_others(w, row, out);
}
/* As `rows2`, in the order of `stream_bf16`. */
T512 IN void pairs5(int m, const __m512i w[2], const u16 *x, i64 xs, __m512 *a) {
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int t = 0; t < m; t++)
        a[t] = _mm512_dpbf16_ps(a[t], (__m512bh)w[h], (__m512bh)_mm512_loadu_si512(x + t * xs + 32 * h));
}
T512 IN void rows5(int R, int m, const Planes *w, i64 o, const u16 *x, i64 xs, float *y) {
    __m512 a[2][DECODE_MAX_ROWS];
    const u8 *first = blocks_of(w, o), *p = first;
    const i64 row = w->n / BLOCK * BLOCK_BYTES;
    const __m512i table = table5(w);
    i64 next[2], k = 0;
    UNROLL for (int r = 0; r < R; r++) next[r] = w->starts[o + r];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < m; t++) a[r][t] = _mm512_setzero_ps();
    while (k < w->n) {
        i64 stop = before_listed(R, w, o, next);
        for (; k < stop; k += BLOCK, p += BLOCK_BYTES) {
            fetch(first + R * (p - first), R * BLOCK_BYTES);
            UNROLL for (int r = 0; r < R; r++) {
                __m512i b[2];
                block5(p + r * row, table, b);
                pairs5(m, b, x + k, xs, a[r]);
            }
        }
        if (k == w->n) break;
        UNROLL for (int r = 0; r < R; r++) {
            u16 weights[BLOCK];
            __m512i b[2];
            block5(p + r * row, table, b);
            _mm512_storeu_si512(weights, b[0]), _mm512_storeu_si512(weights + 32, b[1]);
            next[r] = put_listed(w, o + r, next[r], k, weights);
            b[0] = _mm512_loadu_si512(weights), b[1] = _mm512_loadu_si512(weights + 32);
            pairs5(m, b, x + k, xs, a[r]);
        }
        k += BLOCK, p += BLOCK_BYTES;
    }
    UNROLL for (int r = 0; r < R; r++) totals_bf16(m, a[r], y + r, STRIP);
}
T512 static void planes_bf16(const Planes *w, i64 first, i64 rows, const u16 *x, i64 xs, int m, float *y) {
    i64 o = 0;
    if (m == 1) for (; o + 2 <= rows; o += 2) rows5(2, 1, w, first + o, x, xs, y + o);
    if (m == 2) for (; o + 2 <= rows; o += 2) rows5(2, 2, w, first + o, x, xs, y + o);
    for (; o < rows; o++) BY_ROWS_4(rows5, 1, m, w, first + o, x, xs, y + o)
}
#endif

#if defined(__aarch64__)
static void unpack_neon(const Planes *w, i64 row, u16 *out) {
    const u8 *p = blocks_of(w, row);
    uint8x16_t table = vld1q_u8(w->table);
    for (i64 k = 0; k < w->n; k += BLOCK, p += BLOCK_BYTES)
        UNROLL for (int i = 0; i < 4; i++) { /* a lane: eight weights of the first half, eight of the second */
            uint8x16_t low = vld1q_u8(p + 16 * i), codes = vld1q_u8(p + BLOCK + 16 * (i % 2));
            uint8x16_t high = vqtbl1q_u8(table, i < 2 ? vandq_u8(codes, vdupq_n_u8(15)) : vshrq_n_u8(codes, 4));
            vst1q_u8((u8 *)(out + k + 8 * i), vzip1q_u8(low, high)), vst1q_u8((u8 *)(out + k + 32 + 8 * i), vzip2q_u8(low, high));
        }
    put_others(w, row, out);
}
#endif

/* ---- packing ---- */

typedef struct { const u16 *w; i64 stride, rows, n; int32_t *counts; const u8 *table; const i64 *starts; u8 *blocks; u16 *at, *others; } Packing;

static void piece_count(void *job, size_t row) {
    Packing *p = job;
    const u16 *w = p->w + (i64)row * p->stride;
    int32_t counts[4][256] = {{0}}; /* four, because increments of one counter wait for each other */
    for (i64 k = 0; k < p->n; k++) counts[k & 3][w[k] >> 8]++;
    for (int b = 0; b < 256; b++) p->counts[256 * row + b] = counts[0][b] + counts[1][b] + counts[2][b] + counts[3][b];
}
/* counts[row][upper byte] of a bf16 matrix. */
API void wb_upper_bytes(int threads, const u16 *w, i64 stride, i64 rows, i64 n, int32_t *counts) {
    Packing p = {.w = w, .stride = stride, .rows = rows, .n = n, .counts = counts};
    each(rows, threads, piece_count, &p);
}
static void piece_pack_planes(void *job, size_t row) {
    Packing *p = job;
    const u16 *w = p->w + (i64)row * p->stride;
    u8 code_of[256];
    memset(code_of, OTHER, 256);
    for (int c = OTHER - 1; c >= 0; c--) code_of[p->table[c]] = (u8)c;
    i64 next = p->starts[row];
    u8 *out = p->blocks + (i64)row * (p->n / BLOCK) * BLOCK_BYTES;
    for (i64 k = 0; k < p->n; k += BLOCK, out += BLOCK_BYTES) {
        u8 codes[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            u16 v = w[k + i];
            u8 code = code_of[v >> 8];
            out[PLACE(i)] = (u8)v, codes[PLACE(i)] = code;
            if (code == OTHER) p->at[next] = (u16)(k + i), p->others[next++] = v;
        }
        for (int i = 0; i < 32; i++) out[BLOCK + i] = (u8)(codes[i] | codes[32 + i] << 4);
    }
}
/* Packs a bf16 matrix with n % 64 == 0 and n <= MAX_PLANE; table[15] is 0, and equal entries before it are allowed. */
API void wb_pack_planes(int threads, const u16 *w, i64 stride, i64 rows, i64 n, const u8 *table, const i64 *starts, u8 *blocks, u16 *at, u16 *others) {
    Packing p = {.w = w, .stride = stride, .rows = rows, .n = n, .table = table, .starts = starts, .blocks = blocks, .at = at, .others = others};
    each(rows, threads, piece_pack_planes, &p);
}
