/* worker RATE: computes for ever, and dirties RATE megabytes a second beside that (0: nothing but its
 * stack). Prints a line for each unit of work, which is always the same: so lines a second are its
 * speed. Checks the pages it wrote before it writes them again. Its code has pages to itself: on a
 * processor that cannot trap CPUID, pages with that instruction, as the C library has, are translated. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PAGES 8192u /* of the memory that is dirtied in turn */
#define WORDS 512u  /* of a page */
#define PIECES 200u /* of work between two lines */

#define APART __attribute__((noinline, section(".worker"), aligned(4096)))

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

APART static uint64_t work(uint64_t s)
{
    for (int i = 0; i < 20000; i++) {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
    }
    return s;
}

APART int main(int argc, char **argv)
{
    double rate = argc > 1 ? atof(argv[1]) : 0, began = now();
    uint64_t *memory = calloc(PAGES, WORDS * sizeof(uint64_t)), state = 88172645463325252u;
    uint64_t written = 0;
    if (!memory)
        return 1;
    for (uint64_t line = 1;; line++) {
        for (unsigned i = 0; i < PIECES; i++) {
            state = work(state);
            while (rate > 0 && written * 4096.0 < (now() - began) * rate * 1e6) {
                uint64_t *page = memory + written % PAGES * WORDS, turn = written / PAGES;
                for (unsigned k = 0; k < WORDS; k += 8) {
                    if (page[k] != (turn ? written - PAGES + k : 0)) {
                        printf("BAD page %llu\n", (unsigned long long)(written % PAGES));
                        return 2;
                    }
                    page[k] = written + k;
                }
                written++;
            }
        }
        printf("w %llu %llx\n", (unsigned long long)line, (unsigned long long)state);
        fflush(stdout);
    }
}
