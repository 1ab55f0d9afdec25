/* Gumbel noise from a counter-based generator: the number of a token depends on seed, position and token alone, so any
 * range of tokens can be computed alone, on any thread. Only operations that IEEE 754 defines are used, so the bits are
 * those of noise.py on every machine.
 *
 * The generator is Philox4x64-10 (Salmon et al. 2011) as in numpy: the block of tokens 4 b .. 4 b + 3 has the counter
 * (b + 1, position, 0, 0), because numpy increments the counter before each block. */

enum { NOISE_TOKENS = 256 }; /* computed at once; a multiple of 4 */

typedef struct { u64 seed, position; i64 n; double *out; int level; } Noise;

static void philox(u64 key0, u64 key1, u64 block, u64 position, u64 *out) {
    const u64 multiply0 = 0xD2E7470EE14C6C93ull, multiply1 = 0xCA5A826395121157ull;
    u64 c0 = block + 1, c1 = position, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        unsigned __int128 p0 = (unsigned __int128)multiply0 * c0, p1 = (unsigned __int128)multiply1 * c2;
        u64 n0 = (u64)(p1 >> 64) ^ c1 ^ key0, n2 = (u64)(p0 >> 64) ^ c3 ^ key1;
        c1 = (u64)p1, c3 = (u64)p0, c0 = n0, c2 = n2;
        key0 += 0x9E3779B97F4A7C15ull, key1 += 0xBB67AE8584CAA73Bull;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

IN double uniform(u64 raw) { /* ((raw >> 12) + 1/2) 2^-52, exactly: 1 + (raw >> 12) 2^-52 is a double */
    return double_of((raw >> 12) | 0x3ff0000000000000ull) - (1 - 0x1p-53);
}
IN void gumbel(const u64 *raw, double *out) {
    for (int i = 0; i < NOISE_TOKENS; i++) out[i] = -positive_logarithm(-positive_logarithm(uniform(raw[i])));
}
static void gumbel_plain(const u64 *raw, double *out) { gumbel(raw, out); }
#if defined(__x86_64__)
T2 static void gumbel_avx2(const u64 *raw, double *out) { gumbel(raw, out); }
#endif
#if defined(HAS512)
T512 static void gumbel_avx512(const u64 *raw, double *out) { gumbel(raw, out); }
#endif

/* The noise of n tokens from `first`, a multiple of 4. */
static void noise(const Noise *p, i64 first, i64 n, double *to) {
    u64 raw[NOISE_TOKENS];
    double out[NOISE_TOKENS];
    for (i64 at = 0; at < n; at += NOISE_TOKENS) {
        i64 m = min64(NOISE_TOKENS, n - at);
        for (i64 i = 0; i < NOISE_TOKENS; i += 4) {
            if (i < m) philox(p->seed, 0x6c65626d7547ull, (u64)(first + at + i) / 4, p->position, raw + i); /* "Gumbel" */
            else memset(raw + i, 0, 4 * sizeof(u64));
        }
#if defined(HAS512)
        if (p->level == AVX512) gumbel_avx512(raw, out);
        else
#endif
#if defined(__x86_64__)
        if (p->level >= AVX2) gumbel_avx2(raw, out);
        else
#endif
        gumbel_plain(raw, out);
        memcpy(to + at, out, sizeof(double) * (size_t)m);
    }
}

static void piece_noise(void *job, size_t piece) {
    Noise *p = job;
    i64 first = NOISE_TOKENS * (i64)piece;
    noise(p, first, min64(NOISE_TOKENS, p->n - first), p->out + first);
}
API void wb_noise(int level, int threads, u64 seed, u64 position, i64 n, double *out) {
    Noise p = {seed, position, n, out, level};
    each((n + NOISE_TOKENS - 1) / NOISE_TOKENS, n < 1 << 13 ? 1 : threads, piece_noise, &p);
}
