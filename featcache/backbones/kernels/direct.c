/* Convolutions that read few channels, as a network's first does: every window laid out as a line, then one
   product; with bias and ReLU while the result is in the cache. Libraries are slow here: three channels fill no
   vector. */
#include <string.h>

#include "product.h"

/* What a convolution reads and writes; the same as `_Direct` in convolutions.py. */
struct direct {
    const pixel *maps;   /* (images, height, width, channels) */
    const pixel *packed; /* (depth, padded) as product.h has it */
    const float *bias;   /* (out) */
    pixel *result;       /* (images, height', width', out) */
    pixel *windows;      /* room for (block, depth) */
    float *products;     /* room for (block, padded) */
    long images, height, width, channels, out, padded, depth, high, wide, down, across, above, left, stride, block, relu;
};

/* The window whose corner is at (y, x), line by line: (high, wide, channels), and what fills `depth` up. */
static void lay_out(const struct direct *call, const pixel *image, long y, long x, pixel *window) {
    long line = call->wide * call->channels;
    for (long i = 0; i < call->high; i++, window += line) {
        const pixel *from = image + ((y + i) * call->width + x) * call->channels;
        if (y + i < 0 || y + i >= call->height)
            memset(window, 0, line * sizeof(pixel));
        else if (x >= 0 && x + call->wide <= call->width)
            memcpy(window, from, line * sizeof(pixel));
        else
            for (long j = 0; j < line; j++) {
                long column = x + j / call->channels;
                window[j] = column >= 0 && column < call->width ? from[j] : 0;
            }
    }
    for (long j = call->high * line; j < call->depth; j++) *window++ = 0;
}

void convolve_directly(const struct direct *call) {
    long every = call->down * call->across, all = call->images * every;
    for (long first = 0; first < all; first += call->block) {
        long count = all - first < call->block ? all - first : call->block;
        for (long t = 0; t < count; t++) {
            long image = (first + t) / every, place = (first + t) % every;
            lay_out(call, call->maps + image * call->height * call->width * call->channels,
                    place / call->across * call->stride - call->above, place % call->across * call->stride - call->left,
                    call->windows + t * call->depth);
        }
        product(call->windows, count, call->depth, call->packed, call->products, call->padded);
        for (long t = 0; t < count; t++)
            for (long c = 0; c < call->out; c += WIDE) {
                vec value = load_float(call->products + t * call->padded + c) + load_float(call->bias + c);
                store(call->result + (first + t) * call->out + c, call->relu ? cut_off(value) : value);
            }
    }
}
