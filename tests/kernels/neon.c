/* The kernels for ARM beside exact sums: prints the largest error of each form, in units of the largest value. */
#include "../../workbench/kernels/native.c"
#include <stdio.h>

static double at(u8 code, u8 scale) { return ldexp(FP4[code], scale - 127); }

int main(void) {
    double worst[4] = {0};
    enum { OUT = 45, ROWS = 9 };
    for (i64 groups = 1; groups < 12; groups += 5) {
        i64 in = 32 * groups, ends[] = {0, 0, ROWS};
        static u8 codes[OUT * 16 * 16], scales[OUT * 16];
        static float x[ROWS * 512], y[ROWS * OUT], bias[OUT];
        static u16 xh[ROWS * 512], w[OUT * 512], yh[ROWS * OUT];
        for (i64 i = 0; i < OUT * groups * 16; i++) codes[i] = (u8)(rand() >> 8);
        for (i64 i = 0; i < OUT * groups; i++) scales[i] = (u8)(118 + (rand() >> 8) % 8);
        for (i64 i = 0; i < ROWS * in; i++) xh[i] = narrow(x[i] = (float)rand() / (float)RAND_MAX - .5f);
        for (i64 i = 0; i < OUT * in; i++) w[i] = narrow((float)rand() / (float)RAND_MAX - .5f);
        for (i64 i = 0; i < OUT; i++) bias[i] = (float)i / 10;
        for (int form = 0; form < 3; form++) {
            double error = 0, largest = 0;
            if (form < 2) wb_linear_mxfp4(NEON, 1, 0, form, x, ends, 1, codes, OUT * groups * 16, groups * 16, scales, OUT * groups, groups, bias, OUT, OUT, groups, y);
            else wb_linear_bf16(NEON, 1, xh, 4, w, in, NULL, in, OUT, yh);
            for (i64 r = 0; r < (form < 2 ? ROWS : 4); r++)
                for (i64 o = 0; o < OUT; o++) {
                    double sum = form < 2 ? bias[o] : 0, slack = 0;
                    for (i64 k = 0; k < in; k++) {
                        u8 c = codes[(o * groups + k / 32) * 16 + k % 32 / 2];
                        sum += form < 2 ? x[r * in + k] * at(k % 2 ? c >> 4 : c & 15, scales[o * groups + k / 32]) : (double)wide(xh[r * in + k]) * wide(w[o * in + k]);
                    }
                    if (form == 2) slack = fabs(sum) / 256; /* half a step of bf16 */
                    error = fmax(error, fabs((form < 2 ? y[r * OUT + o] : wide(yh[r * OUT + o])) - sum) - slack);
                    largest = fmax(largest, fabs(sum));
                }
            worst[form] = fmax(worst[form], error / largest);
        }
        for (i64 o = 0; o < groups; o++) { /* the tests on x86 show every code and scale */
            static float n[32];
            wb_dequantise(NEON, 1, 0, codes + 16 * o, scales + o, 1, n);
            for (int k = 0; k < 32; k++) {
                u8 c = codes[16 * o + k / 2];
                if (n[k] != at(k % 2 ? c >> 4 : c & 15, scales[o])) worst[3] = 1;
            }
        }
    }
    printf("%.3g %.3g %.3g %.3g\n", worst[0], worst[1], worst[2], worst[3]);
    return !wb_runs(NEON);
}
