/* 3 x 3 convolutions with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

   backbones/winograd.py says how it goes and why with these points: 0, ±√½, ±√2. Here tiles are transformed in registers,
   a block of them at a time, as many as a core's cache holds; bias, addend, ReLU and the largest of 2 x 2 pixels
   are had while a tile is transformed back. Maps are (images, height, width, channels), channels multiples
   of 16. A value beyond 1e37 may become infinite on the way. */
#include "product.h"

enum { OUT = 4, IN = 6, PLACES = IN * IN };
static const float A = 0.70710678118654752440f, B = 1.41421356237309504880f;

/* What a convolution reads and writes; the same as `_Call` in winograd.py. */
struct call {
    const pixel *maps;   /* (images, height, width, channels) */
    const pixel *packed; /* 36 times (channels, width) as product.h has it */
    const float *bias;   /* (out) */
    const pixel *addend; /* of the shape of the result before pooling, or null */
    pixel *result;       /* (images, height', width', out) */
    pixel *tiles;        /* room for 36 times (block, channels) and `gap` */
    float *products;     /* room for 36 times (block, width) and `gap`, and one more `width` */
    const pixel *zeros;  /* as many as there are channels, in or out */
    long images, height, width, channels, out, padded, above, left, block, relu, pool;
};

/* Between the places of a block, so that they do not all fall on the same lines of the cache. */
enum { GAP = 80 };

INLINE void transform(const vec d[IN], vec t[IN]) {
    vec p = d[4] - 2.0f * d[2], q = A * (d[3] - 2.0f * d[1]);
    vec r = d[4] - 0.5f * d[2], s = B * (d[3] - 0.5f * d[1]);
    t[0] = d[0] - 2.5f * d[2] + d[4];
    t[1] = p + q;
    t[2] = p - q;
    t[3] = r + s;
    t[4] = r - s;
    t[5] = d[1] - 2.5f * d[3] + d[5];
}

INLINE void transform_back(const vec m[IN], vec y[OUT]) {
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = A * q + B * s;
    y[2] = 0.5f * p + 2.0f * r;
    y[3] = (0.5f * A) * q + (2.0f * B) * s + m[5];
}

static void forth(const pixel *const at[PLACES], long channels, pixel *tiles, long stride) {
    for (long c = 0; c < channels; c += WIDE) {
        vec half[IN][IN], t[IN], d[IN];
        for (int j = 0; j < IN; j++) {
            for (int i = 0; i < IN; i++) d[i] = load(at[IN * i + j] + c);
            transform(d, t);
            for (int i = 0; i < IN; i++) half[i][j] = t[i];
        }
        for (int i = 0; i < IN; i++) {
            transform(half[i], t);
            for (int j = 0; j < IN; j++) store(tiles + (IN * i + j) * stride + c, t[j]);
        }
    }
}

/* One tile's products to its 4 x 4 pixels, or to the 2 x 2 that are the largest of four. */
static void back(const struct call *call, const float *products, long stride, const pixel *const plus[OUT * OUT],
                 pixel *const to[OUT * OUT]) {
    for (long c = 0; c < call->out; c += WIDE) {
        vec half[OUT][IN], y[OUT][OUT], m[IN], t[OUT];
        for (int j = 0; j < IN; j++) {
            for (int i = 0; i < IN; i++) m[i] = load_float(products + (IN * i + j) * stride + c);
            transform_back(m, t);
            for (int i = 0; i < OUT; i++) half[i][j] = t[i];
        }
        vec bias = load_float(call->bias + c);
        for (int i = 0; i < OUT; i++) {
            transform_back(half[i], t);
            for (int j = 0; j < OUT; j++) {
                y[i][j] = t[j] + bias;
                if (call->addend) y[i][j] += load(plus[OUT * i + j] + c);
                if (call->relu) y[i][j] = cut_off(y[i][j]);
            }
        }
        if (call->pool)
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++)
                    store(to[OUT * i + j] + c, larger(larger(y[2 * i][2 * j], y[2 * i][2 * j + 1]),
                                                      larger(y[2 * i + 1][2 * j], y[2 * i + 1][2 * j + 1])));
        else
            for (int i = 0; i < OUT; i++)
                for (int j = 0; j < OUT; j++) store(to[OUT * i + j] + c, y[i][j]);
    }
}

void convolve(const struct call *call) {
    long high = call->height + 2 * call->above - 2, wide = call->width + 2 * call->left - 2; /* of the result */
    long down = (high + OUT - 1) / OUT, across = (wide + OUT - 1) / OUT, all = call->images * down * across;
    long stride = call->block * call->channels + GAP, after = call->block * call->padded + GAP;
    long side = call->pool ? OUT / 2 : OUT, bottom = call->pool ? high / 2 : high, right = call->pool ? wide / 2 : wide;
    pixel *nowhere = (pixel *)(call->products + PLACES * after);
    for (long first = 0; first < all; first += call->block) {
        long count = all - first < call->block ? all - first : call->block;
        for (long t = 0; t < count; t++) {
            long image = (first + t) / (down * across), place = (first + t) % (down * across);
            long y = place / across * OUT - call->above, x = place % across * OUT - call->left;
            const pixel *at[PLACES];
            for (int i = 0; i < IN; i++)
                for (int j = 0; j < IN; j++) {
                    int inside = y + i >= 0 && y + i < call->height && x + j >= 0 && x + j < call->width;
                    long pixels = (image * call->height + y + i) * call->width + x + j;
                    at[IN * i + j] = inside ? call->maps + pixels * call->channels : call->zeros;
                }
            forth(at, call->channels, call->tiles + t * call->channels, stride);
        }
        for (long p = 0; p < PLACES; p++)
            product(call->tiles + p * stride, count, call->channels, (struct depth){1, call->channels, 0},
                    call->packed + p * call->channels * call->padded, call->products + p * after, call->padded);
        for (long t = 0; t < count; t++) {
            long image = (first + t) / (down * across), place = (first + t) % (down * across);
            long y = place / across, x = place % across;
            const pixel *plus[OUT * OUT];
            pixel *to[OUT * OUT];
            for (int i = 0; i < OUT; i++)
                for (int j = 0; j < OUT; j++) {
                    int inside = side * y + i < bottom && side * x + j < right;
                    long pixels = (image * bottom + side * y + i) * right + side * x + j;
                    to[OUT * i + j] = inside ? call->result + pixels * call->out : nowhere;
                    int known = call->addend && OUT * y + i < high && OUT * x + j < wide;
                    pixels = (image * high + OUT * y + i) * wide + OUT * x + j;
                    plus[OUT * i + j] = known ? call->addend + pixels * call->out : call->zeros;
                }
            back(call, call->products + t * call->padded, after, plus, to);
        }
    }
}
