/* Standard normals as torch draws them, four times as fast, in float32 on a CPU: see normals.py for its use.
   Loops are plain, so that any compiler can vectorize them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096 /* numbers drawn at a time: they stay in the cache */

/* The Mersenne Twister as torch keeps it: `left - 1` numbers remain before the next 624 are made. */
typedef struct {
    int32_t left;
    int32_t next;
    uint32_t words[624];
} twister;

static inline uint32_t twist(uint32_t u, uint32_t v) {
    return (((u & 0x80000000u) | (v & 0x7fffffffu)) >> 1) ^ ((0u - (v & 1u)) & 0x9908b0dfu);
}

static void refill(twister *t) {
    uint32_t *p = t->words;
    for (int k = 0; k < 227; k++) p[k] = p[k + 397] ^ twist(p[k], p[k + 1]);
    /* A word depends on the one 227 places before: blocks of 208 (a multiple of any vector's length) are independent. */
    for (int start = 227; start < 623; start += 208) {
        int stop = start + 208 < 623 ? start + 208 : 623;
        uint32_t fresh[208];
        for (int k = start; k < stop; k++) fresh[k - start] = p[k - 227] ^ twist(p[k], p[k + 1]);
        memcpy(p + start, fresh, sizeof(uint32_t) * (size_t)(stop - start));
    }
    p[623] = p[396] ^ twist(p[623], p[0]);
    t->left = 625;
    t->next = 0;
}

/* n numbers k / 2^24, k uniform on 0 ... 2^24 - 1, from 32 bits each. */
static void uniforms(twister *t, float *out, int64_t n) {
    while (n > 0) {
        if (t->left == 1) refill(t);
        int64_t take = t->left - 1 < n ? t->left - 1 : n;
        const uint32_t *words = t->words + t->next;
        for (int64_t i = 0; i < take; i++) {
            uint32_t y = words[i];
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c5680u;
            y ^= (y << 15) & 0xefc60000u;
            y ^= y >> 18;
            out[i] = (float)(int32_t)(y & 0xffffffu) * 0x1p-24f;
        }
        t->left -= (int32_t)take;
        t->next += (int32_t)take;
        out += take;
        n -= take;
    }
}

/* log x for x in (0, 1]: x = 2^e (1 + f) with 1 + f in [0.71, 1.41], and a series in f, to 1e-7 of itself. */
static inline float logarithm(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)e << 23;
    float m;
    memcpy(&m, &bits, 4);
    float f = m - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f - 0.5f * z + f * z * p + (float)e * 0.69314718f;
}

/* Pairs of uniforms become pairs of normals by Box and Muller's formula. */
static void box_muller(float *restrict first, float *restrict second, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float radius = sqrtf(-2.0f * logarithm(1.0f - first[i]));
        float turn = second[i];
        int32_t quarter = (int32_t)(4.0f * turn + 0.5f); /* 0 ... 4 */
        float a = 6.2831853f * (turn - 0.25f * (float)quarter), z = a * a;
        float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * a + a;
        float cosine = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z
            - 0.5f * z + 1.0f;
        float x = (quarter & 1) ? -sine : cosine, y = (quarter & 1) ? cosine : sine;
        first[i] = radius * ((quarter & 2) ? -x : x);
        second[i] = radius * ((quarter & 2) ? -y : y);
    }
}

/* As torch has it: of every sixteen numbers the first eight are paired with the last eight. */
static void normals_from(float *data, int64_t n) {
    float first[BLOCK / 2], second[BLOCK / 2];
    for (int64_t i = 0; i < n / 16; i++) {
        memcpy(first + 8 * i, data + 16 * i, 8 * sizeof(float));
        memcpy(second + 8 * i, data + 16 * i + 8, 8 * sizeof(float));
    }
    box_muller(first, second, n / 2);
    for (int64_t i = 0; i < n / 16; i++) {
        memcpy(data + 16 * i, first + 8 * i, 8 * sizeof(float));
        memcpy(data + 16 * i + 8, second + 8 * i, 8 * sizeof(float));
    }
}

/* n >= 16 standard normals. */
void normals(twister *t, float *out, int64_t n) {
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = n - start < BLOCK ? n - start : BLOCK;
        uniforms(t, out + start, size);
        normals_from(out + start, size - size % 16);
    }
    if (n % 16) { /* torch draws the last sixteen anew */
        uniforms(t, out + n - 16, 16);
        normals_from(out + n - 16, 16);
    }
}
