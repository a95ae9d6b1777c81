/* rewriter MEGABYTES RATE: rewrites that much memory for ever, at RATE MB/s (0: as fast as it can),
 * verifying what it wrote before. Prints how many eighths of a megabyte it has written: each one if
 * it keeps to a rate, which tells what it does in a tenth of a second, else each 32nd, for printing
 * shall cost it little. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WORDS (1u << 14) /* of a block: an eighth of a megabyte */
#define BLOCKS 8u        /* of a megabyte */
#define SELDOM 32u

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Pages of its own: the C library's beginnings, which else lie beside it, have CPUID, and are
 * translated where the host cannot trap that. */
__attribute__((section("rewriter"), aligned(4096)))
int main(int argc, char **argv)
{
    uint64_t megabytes = argc > 1 ? strtoull(argv[1], NULL, 10) : 50;
    double rate = argc > 2 ? atof(argv[2]) : 0, start = now();
    uint64_t blocks = megabytes * BLOCKS, done = 0;
    uint64_t *memory = calloc(blocks, WORDS * sizeof(uint64_t));
    if (!memory)
        return 1;
    for (uint64_t pass = 1;; pass++) {
        for (uint64_t block = 0; block < blocks; block++) {
            uint64_t *p = memory + block * WORDS;
            for (uint64_t i = 0; i < WORDS; i++) {
                uint64_t expected = pass == 1 ? 0 : (block * WORDS + i) * 0x9E3779B97F4A7C15u + pass - 1;
                if (p[i] != expected) {
                    printf("BAD at %llu\n", (unsigned long long)(block * WORDS + i));
                    return 2;
                }
                p[i] = (block * WORDS + i) * 0x9E3779B97F4A7C15u + pass;
            }
            if (++done % (rate > 0 ? 1 : SELDOM) == 0) {
                printf("w %llu\n", (unsigned long long)done);
                fflush(stdout);
            }
            double ahead = rate > 0 ? start + done / (BLOCKS * rate) - now() : 0;
            if (ahead > 0)
                usleep((useconds_t)(ahead * 1e6));
        }
    }
}
