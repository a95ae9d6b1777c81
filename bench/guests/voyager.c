/* voyager MEGABYTES: keeps checksummed pages and a clock, and says with each line how they are.
 *
 * Each turn checks 64 pages picked at random, writes them anew, and prints
 *     v TURN MAX_GAP_US
 * with the longest time between two looks at the clock since the last line; between two turns it
 * sleeps for 20 ms. A page whose checksum
 * is wrong, or a clock that runs backwards, prints BAD and ends it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512u /* of a page; the last is the checksum of the others */
#define PAGES_A_TURN 64

static uint64_t state = 88172645463325252u;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t sum(const uint64_t *page)
{
    uint64_t s = 14695981039346656037u;
    for (unsigned i = 0; i < WORDS - 1; i++)
        s = (s ^ page[i]) * 1099511628211u;
    return s;
}

static void fill(uint64_t *page)
{
    uint64_t seed = next();
    for (unsigned i = 0; i < WORDS - 1; i++)
        page[i] = seed * (i + 1) ^ (i & 3 ? 0 : next());
    page[WORDS - 1] = sum(page);
}

static int64_t look(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int argc, char **argv)
{
    uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 32) * 256;
    uint64_t *memory = malloc(pages * WORDS * sizeof(uint64_t));
    if (!memory)
        return 1;
    for (uint64_t i = 0; i < pages; i++)
        fill(memory + i * WORDS);
    int64_t mono = look(CLOCK_MONOTONIC), wall = look(CLOCK_REALTIME), gap = 0;
    for (uint64_t turn = 1;; turn++) {
        for (int i = 0; i < PAGES_A_TURN; i++) {
            uint64_t number = next() % pages, *page = memory + number * WORDS;
            if (page[WORDS - 1] != sum(page)) {
                printf("BAD page %llu\n", (unsigned long long)number);
                return 2;
            }
            fill(page);
            int64_t m = look(CLOCK_MONOTONIC), w = look(CLOCK_REALTIME);
            if (m < mono || w < wall) {
                printf("BAD clock %lld %lld\n", (long long)(m - mono), (long long)(w - wall));
                return 3;
            }
            gap = m - mono > gap ? m - mono : gap;
            mono = m;
            wall = w;
        }
        printf("v %llu %lld\n", (unsigned long long)turn, (long long)(gap / 1000));
        fflush(stdout);
        gap = 0;
        usleep(20000);
    }
}
