/* The AVX-512 instructions that native.c uses, one number at a time in C: so that its AVX-512 kernels are tested on
 * machines without them. What each does is Intel's description of it. */
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define EMULATED
#define T512 __attribute__((target("avx2,fma")))
#define __m512i V512i
#define __m512 V512
#define __m512bh V512bh
#define __mmask16 unsigned short
#define EM static inline __attribute__((always_inline, target("avx2,fma")))

typedef long long V512i __attribute__((vector_size(64)));
typedef float V512 __attribute__((vector_size(64)));
typedef short V512bh __attribute__((vector_size(64)));
typedef union { V512i i; V512 f; V512bh h; unsigned char b[64]; unsigned short w[32]; unsigned d[16]; unsigned long long q[8]; float s[16]; } U;

EM V512i e_load(const void *p) { U u; memcpy(&u, p, 64); return u.i; }
EM void e_store(void *p, V512i v) { memcpy(p, &v, 64); }
EM V512 e_load_ps(const float *p) { U u; memcpy(&u, p, 64); return u.f; }
EM void e_store_ps(float *p, V512 v) { memcpy(p, &v, 64); }
EM V512 e_zero(void) { U u; memset(&u, 0, 64); return u.f; }
EM V512i e_set1_16(short v) { U u; for (int i = 0; i < 32; i++) u.w[i] = (unsigned short)v; return u.i; }
EM V512i e_set1_32(int v) { U u; for (int i = 0; i < 16; i++) u.d[i] = (unsigned)v; return u.i; }
EM V512i e_set_32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d, int c, int b, int a) {
    int v[16] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
    return e_load(v);
}
EM V512i e_8_to_32(__m128i a) { unsigned char b[16]; memcpy(b, &a, 16); U u; for (int i = 0; i < 16; i++) u.d[i] = b[i]; return u.i; }
EM V512i e_8_to_16(__m256i a) { unsigned char b[32]; memcpy(b, &a, 32); U u; for (int i = 0; i < 32; i++) u.w[i] = b[i]; return u.i; }
EM V512i e_shl_32(V512i a, int n) { U u = {a}; for (int i = 0; i < 16; i++) u.d[i] <<= n; return u.i; }
EM V512i e_shr_16(V512i a, int n) { U u = {a}; for (int i = 0; i < 32; i++) u.w[i] >>= n; return u.i; }
EM __m128i e_maskz_8(unsigned k, const void *p) { /* what the mask hides is not read */
    unsigned char b[16] = {0};
    for (int i = 0; i < 16; i++) if (k >> i & 1) b[i] = ((const unsigned char *)p)[i];
    __m128i v; memcpy(&v, b, 16); return v;
}
EM V512i e_perm_16(V512i idx, V512i a) { U x = {idx}, y = {a}, u; for (int i = 0; i < 32; i++) u.w[i] = y.w[x.w[i] & 31]; return u.i; }
EM V512i e_perm_8(V512i idx, V512i a) { U x = {idx}, y = {a}, u; for (int i = 0; i < 64; i++) u.b[i] = y.b[x.b[i] & 63]; return u.i; }
EM V512 e_perm_ps(V512i idx, V512 a) { U x = {idx}, y, u; y.f = a; for (int i = 0; i < 16; i++) u.d[i] = y.d[x.d[i] & 15]; return u.f; }
EM V512 e_cast_128(__m128 a) { U u; memset(&u, 0xff, 64); memcpy(&u, &a, 16); return u.f; } /* the rest is undefined */
EM V512i e_cast_128i(__m128i a) { U u; memset(&u, 0xff, 64); memcpy(&u, &a, 16); return u.i; }
EM V512 e_as_ps(V512i a) { U u = {a}; return u.f; }
EM V512i e_insert(V512i a, __m128i b, int n) { U u = {a}; memcpy(u.b + 16 * n, &b, 16); return u.i; }
EM V512i e_or(V512i a, V512i b) { return a | b; }
EM V512 e_add(V512 a, V512 b) { return a + b; }
EM V512 e_fma(V512 a, V512 b, V512 c) { U x, y, z; x.f = a, y.f = b, z.f = c; for (int i = 0; i < 16; i++) z.s[i] = fmaf(x.s[i], y.s[i], z.s[i]); return z.f; }
EM float e_sum(V512 a) { U u; u.f = a; for (int h = 8; h; h /= 2) for (int i = 0; i < h; i++) u.s[i] += u.s[i + h]; return u.s[0]; }
EM V512i e_unpack_32(V512i a, V512i b, int high) {
    U x = {a}, y = {b}, u;
    for (int l = 0; l < 4; l++) for (int i = 0; i < 2; i++) u.d[4 * l + 2 * i] = x.d[4 * l + 2 * high + i], u.d[4 * l + 2 * i + 1] = y.d[4 * l + 2 * high + i];
    return u.i;
}
EM V512i e_unpack_64(V512i a, V512i b, int high) {
    U x = {a}, y = {b}, u;
    for (int l = 0; l < 4; l++) u.q[2 * l] = x.q[2 * l + high], u.q[2 * l + 1] = y.q[2 * l + high];
    return u.i;
}
EM unsigned e_test_16(V512i a, V512i b) { U x = {a & b}; unsigned k = 0; for (int i = 0; i < 32; i++) k |= (unsigned)(x.w[i] != 0) << i; return k; }
EM V512i e_mask_add_16(V512i src, unsigned k, V512i a, V512i b) {
    U s = {src}, x = {a}, y = {b};
    for (int i = 0; i < 32; i++) if (k >> i & 1) s.w[i] = (unsigned short)(x.w[i] + y.w[i]);
    return s.i;
}
EM float e_flush(float f) { return fabsf(f) < 1.17549435e-38f ? copysignf(0, f) : f; } /* vdpbf16ps knows no subnormals */
EM float e_wide(unsigned short h) { unsigned b = (unsigned)h << 16; float f; memcpy(&f, &b, 4); return e_flush(f); }
EM V512 e_dp(V512 acc, V512bh a, V512bh b) { /* the odd product first */
    U x, y, z;
    z.f = acc, x.h = a, y.h = b;
    for (int i = 0; i < 16; i++) {
        z.s[i] = e_flush(fmaf(e_wide(x.w[2 * i + 1]), e_wide(y.w[2 * i + 1]), e_flush(z.s[i])));
        z.s[i] = e_flush(fmaf(e_wide(x.w[2 * i]), e_wide(y.w[2 * i]), z.s[i]));
    }
    return z.f;
}

#define _mm512_load_si512 e_load
#define _mm512_loadu_si512 e_load
#define _mm512_store_si512 e_store
#define _mm512_load_ps e_load_ps
#define _mm512_store_ps e_store_ps
#define _mm512_setzero_ps e_zero
#define _mm512_set1_epi16 e_set1_16
#define _mm512_set1_epi32 e_set1_32
#define _mm512_set_epi32 e_set_32
#define _mm512_cvtepu8_epi32 e_8_to_32
#define _mm512_cvtepu8_epi16 e_8_to_16
#define _mm512_slli_epi32 e_shl_32
#define _mm512_srli_epi16 e_shr_16
#define _mm_maskz_loadu_epi8 e_maskz_8
#define _mm512_permutexvar_epi16 e_perm_16
#define _mm512_permutexvar_epi8 e_perm_8
#define _mm512_permutexvar_ps e_perm_ps
#define _mm512_castps128_ps512 e_cast_128
#define _mm512_castsi128_si512 e_cast_128i
#define _mm512_castsi512_ps e_as_ps
#define _mm512_inserti32x4 e_insert
#define _mm512_or_si512 e_or
#define _mm512_add_ps e_add
#define _mm512_fmadd_ps e_fma
#define _mm512_reduce_add_ps e_sum
#define _mm512_unpacklo_epi32(a, b) e_unpack_32(a, b, 0)
#define _mm512_unpackhi_epi32(a, b) e_unpack_32(a, b, 1)
#define _mm512_unpacklo_epi64(a, b) e_unpack_64(a, b, 0)
#define _mm512_unpackhi_epi64(a, b) e_unpack_64(a, b, 1)
#define _mm512_test_epi16_mask e_test_16
#define _mm512_mask_add_epi16 e_mask_add_16
#define _mm512_dpbf16_ps e_dp
