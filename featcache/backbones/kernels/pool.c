/* Max pooling of maps (images, height, width, channels), channels a multiple of 16. */
#include "vectors.h"

void pool(const pixel *maps, long images, long height, long width, long channels, long window, long stride, long around,
          pixel *result, long down, long across) {
    for (long n = 0; n < images; n++, maps += height * width * channels)
        for (long y = 0; y < down; y++) {
            long top = y * stride - around, bottom = top + window < height ? top + window : height;
            for (long x = 0; x < across; x++, result += channels) {
                long left = x * stride - around, right = left + window < width ? left + window : width;
                for (long c = 0; c < channels; c += WIDE) {
                    const pixel *first = maps + ((top > 0 ? top : 0) * width + (left > 0 ? left : 0)) * channels + c;
                    vec most = load(first);
                    for (long i = top > 0 ? top : 0; i < bottom; i++)
                        for (long j = left > 0 ? left : 0; j < right; j++)
                            most = larger(most, load(maps + (i * width + j) * channels + c));
                    store(result + c, most);
                }
            }
        }
}
