/* 1 x 1 convolutions: one product for all pixels, with bias, addend and ReLU while its sums are in the cache. */
#include <string.h>

#include "product.h"

/* What a convolution reads and writes; the same as `_Pointwise` in pointwise.py. */
struct pointwise {
    const pixel *maps;   /* (images, height, width, channels) */
    const pixel *packed; /* (channels, padded) as product.h has it */
    const float *bias;   /* (out) */
    const pixel *addend; /* of the shape of the result, or null */
    pixel *result;       /* (images, down, across, out) */
    pixel *chosen;       /* room for (block, channels) where the stride is not 1 */
    float *products;     /* room for (block, PANEL) */
    long images, height, width, channels, out, padded, down, across, stride, block, relu;
};

void convolve_pixels(const struct pointwise *call) {
    long every = call->down * call->across, all = call->images * every, size = call->channels * sizeof(pixel);
    struct depth depth = {1, call->channels, 0};
    for (long first = 0; first < all; first += call->block) {
        long count = all - first < call->block ? all - first : call->block;
        const pixel *left = call->maps + first * call->channels;
        if (call->stride > 1) {
            for (long t = 0; t < count; t++) {
                long image = (first + t) / every, place = (first + t) % every;
                long y = place / call->across * call->stride, x = place % call->across * call->stride;
                long from = (image * call->height + y) * call->width + x;
                memcpy(call->chosen + t * call->channels, call->maps + from * call->channels, size);
            }
            left = call->chosen;
        }
        for (long n = 0; n < call->padded; n += PANEL) {
            long columns = call->out - n < PANEL ? call->out - n : PANEL;
            product(left, count, call->channels, depth, call->packed + n * call->channels, call->products, PANEL);
            for (long t = 0; t < count; t++)
                for (long c = 0; c < columns; c += WIDE) {
                    long place = (first + t) * call->out + n + c;
                    vec value = load_float(call->products + t * PANEL + c) + load_float(call->bias + n + c);
                    if (call->addend) value += load(call->addend + place);
                    store(call->result + place, call->relu ? cut_off(value) : value);
                }
        }
    }
}
