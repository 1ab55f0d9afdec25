/* The AVX-512 instructions that native.c uses, in C for one number at a time, so that its AVX-512 kernels are tested on
 * machines without them. Each follows Intel's description. */
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define EMULATED
#define T512 __attribute__((target("avx2,fma")))
#define __m512i V512i
#define __m512 V512
#define __m512bh V512bh
#define __mmask16 unsigned short
#define __mmask32 unsigned
#define EM static inline __attribute__((always_inline, target("avx2,fma")))

typedef long long V512i __attribute__((vector_size(64)));
typedef float V512 __attribute__((vector_size(64)));
typedef short V512bh __attribute__((vector_size(64)));
typedef union { V512i i; V512 f; V512bh h; unsigned char b[64]; unsigned short w[32]; unsigned d[16]; float s[16]; } U;

EM V512i e_load(const void *p) { U u; memcpy(&u, p, 64); return u.i; }
EM void e_store(void *p, V512i v) { memcpy(p, &v, 64); }
EM V512 e_load_ps(const float *p) { U u; memcpy(&u, p, 64); return u.f; }
EM void e_store_ps(float *p, V512 v) { memcpy(p, &v, 64); }
/* masked elements are not read */
EM V512 e_maskz_ps(unsigned k, const float *p) { U u; for (int i = 0; i < 16; i++) u.s[i] = k >> i & 1 ? p[i] : 0; return u.f; }
EM V512i e_maskz_16(unsigned k, const void *p) { U u; for (int i = 0; i < 32; i++) u.w[i] = k >> i & 1 ? ((const unsigned short *)p)[i] : 0; return u.i; }
EM __m256i e_maskz_8(unsigned k, const void *p) {
    unsigned char b[32];
    for (int i = 0; i < 32; i++) b[i] = k >> i & 1 ? ((const unsigned char *)p)[i] : 0;
    __m256i v; memcpy(&v, b, 32); return v;
}
EM V512 e_zero(void) { U u; memset(&u, 0, 64); return u.f; }
EM V512i e_zero_i(void) { U u; memset(&u, 0, 64); return u.i; }
EM V512 e_set1_ps(float v) { U u; for (int i = 0; i < 16; i++) u.s[i] = v; return u.f; }
EM V512i e_set1_16(short v) { U u; for (int i = 0; i < 32; i++) u.w[i] = (unsigned short)v; return u.i; }
EM V512i e_set1_32(int v) { U u; for (int i = 0; i < 16; i++) u.d[i] = (unsigned)v; return u.i; }
EM V512i e_16_to_32(__m256i a) { unsigned short w[16]; memcpy(w, &a, 32); U u; for (int i = 0; i < 16; i++) u.d[i] = w[i]; return u.i; }
EM V512i e_8_to_16(__m256i a) { unsigned char b[32]; memcpy(b, &a, 32); U u; for (int i = 0; i < 32; i++) u.w[i] = b[i]; return u.i; }
EM V512i e_shl_32(V512i a, int n) { U u = {a}; for (int i = 0; i < 16; i++) u.d[i] <<= n; return u.i; }
EM V512i e_shl_16(V512i a, int n) { U u = {a}; for (int i = 0; i < 32; i++) u.w[i] = (unsigned short)(u.w[i] << n); return u.i; }
EM V512i e_shr_16(V512i a, int n) { U u = {a}; for (int i = 0; i < 32; i++) u.w[i] >>= n; return u.i; }
EM V512i e_sub_16(V512i a, V512i b) { U x = {a}, y = {b}; for (int i = 0; i < 32; i++) x.w[i] = (unsigned short)(x.w[i] - y.w[i]); return x.i; }
EM V512i e_perm_16(V512i idx, V512i a) { U x = {idx}, y = {a}, u; for (int i = 0; i < 32; i++) u.w[i] = y.w[x.w[i] & 31]; return u.i; }
EM V512i e_mask_add_16(V512i src, unsigned k, V512i a, V512i b) {
    U s = {src}, x = {a}, y = {b};
    for (int i = 0; i < 32; i++) if (k >> i & 1) s.w[i] = (unsigned short)(x.w[i] + y.w[i]);
    return s.i;
}
EM V512i e_s8_to_16(__m256i a) { signed char b[32]; memcpy(b, &a, 32); U u; for (int i = 0; i < 32; i++) u.w[i] = (unsigned short)(short)b[i]; return u.i; }
EM V512i e_dp_16(V512i acc, V512i a, V512i b) { /* two products of signed 16-bit numbers, and their sum */
    U z = {acc}, x = {a}, y = {b};
    for (int i = 0; i < 16; i++) z.d[i] += (unsigned)((short)x.w[2 * i] * (short)y.w[2 * i]) + (unsigned)((short)x.w[2 * i + 1] * (short)y.w[2 * i + 1]);
    return z.i;
}
EM V512 e_as_ps(V512i a) { U u = {a}; return u.f; }
EM __m128 e_first(V512 a) { __m128 v; memcpy(&v, &a, 16); return v; }
EM V512i e_insert(V512i a, __m256i b, int n) { U u = {a}; memcpy(u.b + 32 * n, &b, 32); return u.i; }
EM V512i e_first_i(__m256i a) { U u; memset(&u, 0xee, 64); memcpy(u.b, &a, 32); return u.i; } /* the rest is undefined */
EM V512i e_four(__m128i a) { U u; for (int i = 0; i < 4; i++) memcpy(u.b + 16 * i, &a, 16); return u.i; }
EM V512i e_set1_8(char v) { U u; memset(&u, v, 64); return u.i; }
EM V512i e_pick_8(V512i a, V512i idx) { U x = {a}, y = {idx}, u; for (int i = 0; i < 64; i++) u.b[i] = y.b[i] & 0x80 ? 0 : x.b[i / 16 * 16 + (y.b[i] & 15)]; return u.i; }
EM V512i e_unpack_8(V512i a, V512i b, int half) {
    U x = {a}, y = {b}, u;
    for (int i = 0; i < 64; i++) u.b[i] = (i % 2 ? y.b : x.b)[i / 16 * 16 + half * 8 + i % 16 / 2];
    return u.i;
}
EM V512i e_or(V512i a, V512i b) { return a | b; }
EM V512i e_and(V512i a, V512i b) { return a & b; }
EM V512 e_add(V512 a, V512 b) { return a + b; }
EM V512 e_fma(V512 a, V512 b, V512 c) { U x, y, z; x.f = a, y.f = b, z.f = c; for (int i = 0; i < 16; i++) z.s[i] = fmaf(x.s[i], y.s[i], z.s[i]); return z.f; }
EM V512 e_quarters(V512 a, V512 b, int n) { /* two of a, two of b */
    U x, y, u;
    x.f = a, y.f = b;
    for (int i = 0; i < 4; i++) memcpy(u.s + 4 * i, (i < 2 ? x.s : y.s) + 4 * (n >> 2 * i & 3), 16);
    return u.f;
}
EM V512 e_within(V512 a, V512 b, int n) { /* of every quarter two of a, two of b */
    U x, y, u;
    x.f = a, y.f = b;
    for (int i = 0; i < 16; i++) u.s[i] = (i % 4 < 2 ? x.s : y.s)[i / 4 * 4 + (n >> i % 4 * 2 & 3)];
    return u.f;
}
EM V512 e_compress(unsigned k, V512 a) { U x, u; int n = 0; x.f = a; memset(&u, 0, 64); for (int i = 0; i < 16; i++) if (k >> i & 1) u.s[n++] = x.s[i]; return u.f; }
EM float e_flush(float f) { return fabsf(f) < 1.17549435e-38f ? copysignf(0, f) : f; } /* vdpbf16ps flushes subnormals */
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
#define _mm512_storeu_si512 e_store
#define _mm512_loadu_ps e_load_ps
#define _mm512_storeu_ps e_store_ps
#define _mm512_maskz_loadu_ps e_maskz_ps
#define _mm512_maskz_loadu_epi16 e_maskz_16
#define _mm256_maskz_loadu_epi8 e_maskz_8
#define _mm512_setzero_ps e_zero
#define _mm512_setzero_si512 e_zero_i
#define _mm512_set1_ps e_set1_ps
#define _mm512_set1_epi16 e_set1_16
#define _mm512_set1_epi32 e_set1_32
#define _mm512_cvtepu16_epi32 e_16_to_32
#define _mm512_cvtepu8_epi16 e_8_to_16
#define _mm512_cvtepi8_epi16 e_s8_to_16
#define _mm512_dpwssd_epi32 e_dp_16
#define _mm512_slli_epi32 e_shl_32
#define _mm512_slli_epi16 e_shl_16
#define _mm512_srli_epi16 e_shr_16
#define _mm512_sub_epi16 e_sub_16
#define _mm512_permutexvar_epi16 e_perm_16
#define _mm512_mask_add_epi16 e_mask_add_16
#define _mm512_castsi512_ps e_as_ps
#define _mm512_castps512_ps128 e_first
#define _mm512_inserti64x4 e_insert
#define _mm512_castsi256_si512 e_first_i
#define _mm512_broadcast_i32x4 e_four
#define _mm512_set1_epi8 e_set1_8
#define _mm512_shuffle_epi8 e_pick_8
#define _mm512_unpacklo_epi8(a, b) e_unpack_8(a, b, 0)
#define _mm512_unpackhi_epi8(a, b) e_unpack_8(a, b, 1)
#define _mm512_or_si512 e_or
#define _mm512_and_si512 e_and
#define _mm512_add_ps e_add
#define _mm512_fmadd_ps e_fma
#define _mm512_shuffle_f32x4 e_quarters
#define _mm512_shuffle_ps e_within
#define _mm512_maskz_compress_ps e_compress
#define _mm512_dpbf16_ps e_dp
