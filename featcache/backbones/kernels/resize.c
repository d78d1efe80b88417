/* Pillow's resize of 8-bit images, to the byte: weights of 22 bits, two passes, rounded to bytes after each.

   Weights and places come from taps.py, the crop from resize_plan.py: only what is in the crop is computed.
   Across, lines are taken by LINES: turned on their side, so that a column of each is one vector. Vectors are of
   one length for every processor; compilers cut them to what it has. */
#include <stdint.h>
#include <string.h>

enum { LINES = 16, CHANNELS = 3, BITS = 22 };

typedef uint8_t bytes __attribute__((vector_size(LINES), aligned(1), may_alias));

/* The same as `_Pass` in resizing.py. */
struct pass {
    const int32_t *first;  /* (size): the first source pixel of each */
    const int32_t *weight; /* (size, taps) */
    long size, taps;
};

/* out = LINES bytes, of each `taps` bytes `step` apart; loops of a fixed length, which compilers make vectors of. */
static inline __attribute__((always_inline)) void mix(const int32_t *weight, long taps, const uint8_t *from, long step,
                                                      uint8_t *out) {
    int32_t total[LINES];
    for (int r = 0; r < LINES; r++) total[r] = 1 << (BITS - 1);
    for (long k = 0; k < taps; k++)
        for (int r = 0; r < LINES; r++) total[r] += weight[k] * from[k * step + r];
    for (int r = 0; r < LINES; r++) {
        int32_t value = total[r] >> BITS;
        value = value < 0 ? 0 : value;
        out[r] = value > 255 ? 255 : value;
    }
}

/* Lines of `length` bytes, `step` apart, of which the first is number `top`: line `to` is the sum of `taps` lines
   from `first` on. */
static void down(const struct pass *pass, long top, const uint8_t *from, long step, long length, uint8_t *to, long next) {
    for (long y = 0; y < pass->size; y++, to += next) {
        const int32_t *weight = pass->weight + y * pass->taps;
        const uint8_t *lines = from + (pass->first[y] - top) * step;
        long x = 0;
        for (; x + LINES <= length; x += LINES) mix(weight, pass->taps, lines + x, step, to + x);
        for (; x < length; x++) {
            int32_t total = 1 << (BITS - 1);
            for (long k = 0; k < pass->taps; k++) total += weight[k] * lines[k * step + x];
            total >>= BITS;
            to[x] = total < 0 ? 0 : total > 255 ? 255 : total;
        }
    }
}

#ifdef __clang__
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define LOW(a, b) __builtin_shuffle(a, b, (bytes){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#define HIGH(a, b) __builtin_shuffle(a, b, (bytes){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31})
#endif

/* Turn LINES lines of LINES bytes on their side, in place: line by line it is dealt like cards, four times. */
static inline __attribute__((always_inline)) void turn(bytes block[LINES]) {
    for (int deal = 0; deal < 4; deal++) {
        bytes next[LINES];
        for (int i = 0; i < LINES / 2; i++) {
            next[2 * i] = LOW(block[i], block[i + LINES / 2]);
            next[2 * i + 1] = HIGH(block[i], block[i + LINES / 2]);
        }
        for (int i = 0; i < LINES; i++) block[i] = next[i];
    }
}

/* `length` columns of up to LINES lines, `step` bytes apart, to vectors of a column each. */
static void turn_columns(const uint8_t *from, long lines, long step, long length, bytes *to) {
    for (long x = 0; x < length; x += LINES) {
        bytes block[LINES];
        long most = length - x < LINES ? length - x : LINES;
        for (long r = 0; r < LINES; r++) {
            const uint8_t *line = from + (r < lines ? r : 0) * step + x;
            if (most == LINES)
                block[r] = *(const bytes *)line;
            else
                memcpy(&block[r], line, most);
        }
        turn(block);
        memcpy(to + x, block, most * sizeof(bytes));
    }
}

/* And back: vectors of a column each to `length` columns of some lines. */
static void turn_back(const bytes *from, long length, uint8_t *to, long lines, long next) {
    for (long x = 0; x < length; x += LINES) {
        bytes block[LINES];
        long most = length - x < LINES ? length - x : LINES;
        for (long c = 0; c < LINES; c++) block[c] = from[x + (c < most ? c : 0)];
        turn(block);
        for (long r = 0; r < lines; r++) memcpy(to + r * next + x, &block[r], most);
    }
}

/* Lines of pixels, `step` bytes apart, to as many of `size` pixels, `next` bytes apart. `room` holds the columns
   that count of LINES lines, and those that are made of them. */
static void across(const struct pass *pass, const uint8_t *from, long count, long step, uint8_t *to, long next,
                   bytes *room) {
    long left = pass->first[0] * CHANNELS, right = (pass->first[pass->size - 1] + pass->taps) * CHANNELS;
    bytes *made = room + right - left;
    for (long y = 0; y < count; y += LINES) {
        long lines = count - y < LINES ? count - y : LINES;
        turn_columns(from + y * step + left, lines, step, right - left, room);
        for (long x = 0; x < pass->size; x++) {
            const int32_t *weight = pass->weight + x * pass->taps;
            const bytes *columns = room + pass->first[x] * CHANNELS - left;
            for (long c = 0; c < CHANNELS; c++)
                mix(weight, pass->taps, (const uint8_t *)(columns + c), CHANNELS * sizeof(bytes), (uint8_t *)(made + x * CHANNELS + c));
        }
        turn_back(made, pass->size * CHANNELS, to + y * next, lines, next);
    }
}

/* An image of (height, width, 3) to (down->size, across->size, 3) at `to`, whose lines are `next` bytes apart.
   `middle` holds what is between the passes, `room` a turned block. */
void resize(const uint8_t *image, long width, const struct pass *d, const struct pass *a, long down_first, uint8_t *to,
            long next, uint8_t *middle, bytes *room) {
    long step = width * CHANNELS, narrow = a->size * CHANNELS;
    if (down_first) {
        down(d, 0, image, step, step, middle, step);
        across(a, middle, d->size, step, to, next, room);
        return;
    }
    long top = d->first[0], bottom = d->first[d->size - 1] + d->taps; /* only these lines count */
    across(a, image + top * step, bottom - top, step, middle, narrow, room);
    down(d, top, middle, narrow, narrow, to, next);
}
