/* Convolutions that read few channels, as a network's first does: a line of a window lies in memory as it is, and
   the sum goes over the window's lines; with bias and ReLU while a line of the result is in the cache. Libraries
   are slow here: three channels fill no vector. With bfloat16 a line of an odd length takes one value more, times
   zero: a pixel that is not finite is then seen from one window farther. */
#include <string.h>

#include "product.h"

/* What a convolution reads and writes; the same as `_Direct` in direct.py. */
struct direct {
    const pixel *maps;   /* (images, height, width, channels) */
    const pixel *packed; /* (high * each, padded) as product.h has it: `each` are wide * channels, filled up */
    const float *bias;   /* (out) */
    pixel *result;       /* (images, down, across, out) */
    pixel *framed;       /* room for an image and what is around it, and a value more */
    float *products;     /* room for (across, padded) */
    long images, height, width, channels, out, padded, high, wide, each, down, across, above, left, stride, relu;
};

/* An image with zeros around it. */
static void frame(const struct direct *call, const pixel *image, long line) {
    long begin = call->left * call->channels, length = call->width * call->channels;
    pixel *to = call->framed;
    memset(to, 0, call->above * line * sizeof(pixel));
    to += call->above * line;
    for (long y = 0; y < call->height; y++, to += line, image += length) {
        memset(to, 0, begin * sizeof(pixel));
        memcpy(to + begin, image, length * sizeof(pixel));
        memset(to + begin + length, 0, (line - begin - length) * sizeof(pixel));
    }
    memset(to, 0, (call->above * line + TOGETHER - 1) * sizeof(pixel));
}

void convolve_directly(const struct direct *call) {
    long line = (call->width + 2 * call->left) * call->channels;
    struct depth window = {call->high, call->each, line};
    for (long image = 0; image < call->images; image++) {
        frame(call, call->maps + image * call->height * call->width * call->channels, line);
        pixel *to = call->result + image * call->down * call->across * call->out;
        for (long y = 0; y < call->down; y++, to += call->across * call->out) {
            product(call->framed + y * call->stride * line, call->across, call->stride * call->channels, window,
                    call->packed, call->products, call->padded);
            for (long x = 0; x < call->across; x++)
                for (long c = 0; c < call->out; c += WIDE) {
                    vec value = load_float(call->products + x * call->padded + c) + load_float(call->bias + c);
                    store(to + x * call->out + c, call->relu ? cut_off(value) : value);
                }
        }
    }
}
