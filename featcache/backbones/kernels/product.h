/* Products of matrices of which the second is packed: its columns in panels of PANEL, a panel's lines one after
   the other (with bfloat16 pairs of lines, their values in turn), filled up with zeros. ROWS x PANEL sums stay
   in registers (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 2008). */
#ifndef PRODUCT_H
#define PRODUCT_H

#include "vectors.h"

/* What a sum goes over: some parts of so many values, `between` their beginnings. */
struct depth {
    long parts, each, between;
};

#define ROWS_OF_PRODUCT(N)                                                                                    \
    static void product_##N(const pixel *left, long step, struct depth d, const pixel *panel, float *out, long width) { \
        vec sums[N][COLUMNS];                                                                                 \
        UNROLLED for (int r = 0; r < N; r++)                                                                  \
            UNROLLED for (int n = 0; n < COLUMNS; n++) sums[r][n] = (vec){0};                                 \
        for (long part = 0; part < d.parts; part++, left += d.between)                                        \
            for (long c = 0; c < d.each; c += TOGETHER, panel += PANEL * TOGETHER) {                          \
                operand line[COLUMNS];                                                                        \
                UNROLLED for (int n = 0; n < COLUMNS; n++) line[n] = take(panel + n * WIDE * TOGETHER);       \
                UNROLLED for (int r = 0; r < N; r++) {                                                        \
                    operand one = spread(left + r * step + c);                                                \
                    UNROLLED for (int n = 0; n < COLUMNS; n++) sums[r][n] = add_product(sums[r][n], one, line[n]); \
                }                                                                                             \
            }                                                                                                 \
        UNROLLED for (int r = 0; r < N; r++)                                                                  \
            UNROLLED for (int n = 0; n < COLUMNS; n++) store_float(out + r * width + n * WIDE, sums[r][n]);   \
    }
ROWS_OF_PRODUCT(1)
ROWS_OF_PRODUCT(2)
ROWS_OF_PRODUCT(3)
ROWS_OF_PRODUCT(4)
ROWS_OF_PRODUCT(5)
ROWS_OF_PRODUCT(6)

/* out (rows, width) = left x packed; a line of `left` begins `step` values after the one before, `width` is a
   multiple of PANEL, each part of the depth one of TOGETHER. Every value is one sum from the first to the last,
   whichever lines are beside it. */
static void product(const pixel *left, long rows, long step, struct depth d, const pixel *packed, float *out, long width) {
    for (long n = 0; n < width; n += PANEL) {
        const pixel *panel = packed + n * d.parts * d.each;
        long t = 0;
        for (; t + ROWS <= rows; t += ROWS) product_6(left + t * step, step, d, panel, out + t * width + n, width);
        const pixel *rest = left + t * step;
        float *to = out + t * width + n;
        switch (rows - t) {
        case 1: product_1(rest, step, d, panel, to, width); break;
        case 2: product_2(rest, step, d, panel, to, width); break;
        case 3: product_3(rest, step, d, panel, to, width); break;
        case 4: product_4(rest, step, d, panel, to, width); break;
        case 5: product_5(rest, step, d, panel, to, width); break;
        }
    }
}

#endif
