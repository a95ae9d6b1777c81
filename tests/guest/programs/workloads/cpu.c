/* Work of the processor alone: what direct execution is for. */
#include "workloads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t rotr32(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* FIPS 180-4, over a block that is its own result. */
uint64_t cpu_sha256(unsigned scale) {
    static uint32_t k[64];
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (unsigned i = 0; i < 64; i++)
        k[i] = (uint32_t)(fabs(sin(i + 1)) * 4294967296.0);
    for (unsigned block = 0; block < 1600000 / scale; block++) {
        uint32_t w[64], v[8];
        for (unsigned i = 0; i < 16; i++)
            w[i] = h[i & 7] + i + block;
        for (unsigned i = 16; i < 64; i++) {
            uint32_t s0 = (uint32_t)(rotr32(w[i - 15], 7) ^ rotr32(w[i - 15], 18)) ^ w[i - 15] >> 3;
            uint32_t s1 = (uint32_t)(rotr32(w[i - 2], 17) ^ rotr32(w[i - 2], 19)) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        memcpy(v, h, sizeof v);
        for (unsigned i = 0; i < 64; i++) {
            uint32_t s1 = (uint32_t)(rotr32(v[4], 6) ^ rotr32(v[4], 11) ^ rotr32(v[4], 25));
            uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
            uint32_t s0 = (uint32_t)(rotr32(v[0], 2) ^ rotr32(v[0], 13) ^ rotr32(v[0], 22));
            uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += t1;
            v[0] = t1 + t2;
        }
        for (unsigned i = 0; i < 8; i++)
            h[i] += v[i];
    }
    return (uint64_t)h[0] << 32 | h[7];
}

uint64_t cpu_sieve(unsigned scale) {
    enum { SIEVES = 8 };
    size_t limit = 20000000 / scale;
    uint64_t count = 0;
    uint8_t *composite = malloc(limit + 1);
    for (unsigned times = 0; times < SIEVES; times++) {
        memset(composite, 0, limit + 1);
        for (size_t i = 2; i <= limit; i++) {
            if (composite[i])
                continue;
            count++;
            for (size_t j = i * i; j <= limit; j += i)
                composite[j] = 1;
        }
    }
    free(composite);
    return count;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

uint64_t cpu_quicksort(unsigned scale) {
    size_t count = 6000000 / scale;
    uint32_t *numbers = malloc(count * sizeof *numbers), x = 12345;
    for (size_t i = 0; i < count; i++)
        numbers[i] = x = x * 1664525 + 1013904223;
    qsort(numbers, count, sizeof *numbers, compare);
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i += 1000)
        sum = sum * 31 + numbers[i];
    free(numbers);
    return sum;
}

/* A bytecode loop with a switch: indirect jumps that no one predicts well. */
uint64_t cpu_interpreter(unsigned scale) {
    static uint8_t code[256];
    uint64_t a = 1, b = 2, sum = 0;
    for (unsigned i = 0; i < sizeof code; i++)
        code[i] = (uint8_t)((i * 7 + i / 5) % 8);
    for (uint64_t n = 0; n < 500000000 / scale; n++) {
        switch (code[n & 255]) {
        case 0: a += b; break;
        case 1: b ^= a; break;
        case 2: a = a << 1 | a >> 63; break;
        case 3: sum += a & 0xFF; break;
        case 4: b += 3; break;
        case 5: a -= sum; break;
        case 6: b = b << 3 | b >> 61; break;
        default: sum ^= b;
        }
    }
    return sum ^ a ^ b;
}

uint64_t cpu_nbody(unsigned scale) {
    enum { BODIES = 5 };
    double p[BODIES][3], v[BODIES][3], m[BODIES];
    for (int i = 0; i < BODIES; i++) {
        m[i] = 1.0 / (i + 1);
        for (int d = 0; d < 3; d++) {
            p[i][d] = (i * 3 + d) * 0.7 - 3;
            v[i][d] = (d - 1) * 0.1 * i;
        }
    }
    for (unsigned step = 0; step < 14000000 / scale; step++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++) {
                double d[3], square = 0.01;
                for (int k = 0; k < 3; k++) {
                    d[k] = p[i][k] - p[j][k];
                    square += d[k] * d[k];
                }
                double pull = 0.001 / (square * sqrt(square));
                for (int k = 0; k < 3; k++) {
                    v[i][k] -= d[k] * m[j] * pull;
                    v[j][k] += d[k] * m[i] * pull;
                }
            }
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                p[i][k] += 0.001 * v[i][k];
    }
    uint64_t bits;
    memcpy(&bits, &p[2][1], sizeof bits);
    return bits;
}

uint64_t cpu_matmul(unsigned scale) {
    enum { N = 256 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = i - j;
            b[i][j] = i * 0.5 + j;
        }
    for (unsigned times = 0; times < (224 + scale - 1) / scale; times++)
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++)
                for (int j = 0; j < N; j++)
                    c[i][j] += a[i][k] * b[k][j];
    uint64_t bits;
    memcpy(&bits, &c[17][200], sizeof bits);
    return bits;
}

uint64_t cpu_chase(unsigned scale) {
    size_t count = (64u << 20) / sizeof(uint32_t);
    uint32_t *next = malloc(count * sizeof *next), at = 0;
    for (size_t i = 0; i < count; i++)
        next[i] = (uint32_t)((i * 16777213u + 8388617u) % count);
    uint64_t sum = 0;
    for (unsigned i = 0; i < 8000000 / scale; i++) {
        at = next[at];
        sum += at;
    }
    free(next);
    return sum;
}

uint64_t cpu_copy(unsigned scale) {
    size_t count = 64u << 20;
    uint8_t *from = malloc(count), *to = malloc(count);
    memset(from, 7, count);
    for (unsigned i = 0; i < (80 + scale - 1) / scale; i++) {
        from[i] = (uint8_t)i;
        memcpy(to, from, count);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    uint64_t sum = to[0] + (uint64_t)to[count - 1];
    free(from);
    free(to);
    return sum;
}
