/* Vectors of sixteen fp32 numbers for each kind of processor: the partial sums of fixed_order.h.
 *
 * Each level has a type V16_… and the same dozen operations. All of them are defined exactly by IEEE 754, so code
 * written with them gives the same bits at every level. `some` loads n < 16 numbers and pads with zeros; `totals4`
 * sums each of four vectors by one tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. */

/* ---- portable ---- */

typedef struct { float f[16]; } V16_plain;
#define EACH16(...) for (int i = 0; i < 16; i++) { __VA_ARGS__ }
IN V16_plain zero_plain(void) { V16_plain v; EACH16(v.f[i] = 0;) return v; }
IN V16_plain load_plain(const float *p) { V16_plain v; EACH16(v.f[i] = p[i];) return v; }
IN V16_plain some_plain(const float *p, i64 n) { V16_plain v; EACH16(v.f[i] = i < n ? p[i] : 0;) return v; }
IN V16_plain wide_plain(const u16 *p) { V16_plain v; EACH16(v.f[i] = wide(p[i]);) return v; }
IN void store_plain(float *p, V16_plain v) { EACH16(p[i] = v.f[i];) }
IN V16_plain all_plain(float x) { V16_plain v; EACH16(v.f[i] = x;) return v; }
IN V16_plain fma_plain(V16_plain a, V16_plain b, V16_plain c) { EACH16(c.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);) return c; }
IN V16_plain add_plain(V16_plain a, V16_plain b) { EACH16(a.f[i] += b.f[i];) return a; }
IN float tree(const float *s) {
    float a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = s[i] + s[i + 8];
    for (int i = 0; i < 4; i++) b[i] = a[i] + a[i + 4];
    float c0 = b[0] + b[2], c1 = b[1] + b[3];
    return c0 + c1;
}
IN void totals4_plain(const V16_plain *v, float *out) { for (int i = 0; i < 4; i++) out[i] = tree(v[i].f); }

#if defined(__x86_64__)
/* ---- AVX2: two registers ---- */

typedef struct { __m256 a, b; } V16_avx2;
T2 IN V16_avx2 zero_avx2(void) { return (V16_avx2){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
T2 IN V16_avx2 load_avx2(const float *p) { return (V16_avx2){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
T2 IN V16_avx2 some_avx2(const float *p, i64 n) {
    float f[16] __attribute__((aligned(32)));
    EACH16(f[i] = i < n ? p[i] : 0;)
    return load_avx2(f);
}
T2 IN __m256 wide8(const u16 *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
T2 IN V16_avx2 wide_avx2(const u16 *p) { return (V16_avx2){wide8(p), wide8(p + 8)}; }
T2 IN void store_avx2(float *p, V16_avx2 v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
T2 IN V16_avx2 all_avx2(float x) { return (V16_avx2){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
T2 IN V16_avx2 fma_avx2(V16_avx2 a, V16_avx2 b, V16_avx2 c) {
    return (V16_avx2){_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
T2 IN V16_avx2 add_avx2(V16_avx2 a, V16_avx2 b) { return (V16_avx2){_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
T2 IN void totals4_avx2(const V16_avx2 *v, float *out) {
    __m256 e[4];
    UNROLL for (int i = 0; i < 4; i++) e[i] = _mm256_add_ps(v[i].a, v[i].b);
    __m256 p = _mm256_add_ps(_mm256_permute2f128_ps(e[0], e[1], 0x20), _mm256_permute2f128_ps(e[0], e[1], 0x31));
    __m256 q = _mm256_add_ps(_mm256_permute2f128_ps(e[2], e[3], 0x20), _mm256_permute2f128_ps(e[2], e[3], 0x31));
    __m256d pd = _mm256_castps_pd(p), qd = _mm256_castps_pd(q); /* sums 0 2 | 1 3, two numbers of each */
    __m256 r = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(pd, qd)), _mm256_castpd_ps(_mm256_unpackhi_pd(pd, qd)));
    r = _mm256_add_ps(r, _mm256_movehdup_ps(r));
    __m128 lo = _mm256_castps256_ps128(r), hi = _mm256_extractf128_ps(r, 1);
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm_shuffle_ps(lo, lo, 0x08), _mm_shuffle_ps(hi, hi, 0x08)));
}
#endif

#if defined(HAS512)
/* ---- AVX-512: one register ---- */

typedef __m512 V16_avx512;
T512 IN __m512 zero_avx512(void) { return _mm512_setzero_ps(); }
T512 IN __m512 load_avx512(const float *p) { return _mm512_loadu_ps(p); }
T512 IN __m512 some_avx512(const float *p, i64 n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
T512 IN __m512 wide_avx512(const u16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
T512 IN void store_avx512(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
T512 IN __m512 all_avx512(float x) { return _mm512_set1_ps(x); }
T512 IN __m512 fma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
T512 IN __m512 add_avx512(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
T512 IN void totals4_avx512(const __m512 *v, float *out) {
    __m512 p = _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x44), _mm512_shuffle_f32x4(v[0], v[1], 0xee));
    __m512 q = _mm512_add_ps(_mm512_shuffle_f32x4(v[2], v[3], 0x44), _mm512_shuffle_f32x4(v[2], v[3], 0xee));
    __m512 r = _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x88), _mm512_shuffle_f32x4(p, q, 0xdd));
    r = _mm512_add_ps(r, _mm512_shuffle_ps(r, r, 0x4e));
    r = _mm512_add_ps(r, _mm512_shuffle_ps(r, r, 0xb1)); /* every number of a quarter is the total of the quarter */
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, r)));
}
#endif

#if defined(__aarch64__)
/* ---- NEON: four registers ---- */

typedef struct { float32x4_t f[4]; } V16_neon;
#define EACH4(...) UNROLL for (int i = 0; i < 4; i++) { __VA_ARGS__ }
IN V16_neon zero_neon(void) { V16_neon v; EACH4(v.f[i] = vdupq_n_f32(0);) return v; }
IN V16_neon load_neon(const float *p) { V16_neon v; EACH4(v.f[i] = vld1q_f32(p + 4 * i);) return v; }
IN V16_neon some_neon(const float *p, i64 n) {
    float f[16];
    EACH16(f[i] = i < n ? p[i] : 0;)
    return load_neon(f);
}
IN V16_neon wide_neon(const u16 *p) {
    V16_neon v;
    EACH4(v.f[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));)
    return v;
}
IN void store_neon(float *p, V16_neon v) { EACH4(vst1q_f32(p + 4 * i, v.f[i]);) }
IN V16_neon all_neon(float x) { V16_neon v; EACH4(v.f[i] = vdupq_n_f32(x);) return v; }
IN V16_neon fma_neon(V16_neon a, V16_neon b, V16_neon c) { EACH4(c.f[i] = vfmaq_f32(c.f[i], a.f[i], b.f[i]);) return c; }
IN V16_neon add_neon(V16_neon a, V16_neon b) { EACH4(a.f[i] = vaddq_f32(a.f[i], b.f[i]);) return a; }
IN void totals4_neon(const V16_neon *v, float *out) {
    for (int i = 0; i < 4; i++) {
        float32x4_t a = vaddq_f32(v[i].f[0], v[i].f[2]), b = vaddq_f32(v[i].f[1], v[i].f[3]), c = vaddq_f32(a, b);
        float32x2_t d = vadd_f32(vget_low_f32(c), vget_high_f32(c));
        out[i] = vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
    }
}
#endif
