/* scribble HOW: writes into 16 MiB without end, after having written all of it once.
 *
 * "mixed": forwards, backwards, in strides and at random, in lengths at random, in two processes
 * that share some of it and copy the rest on write, with parts given back and mapped anew.
 * "sparse": one page of 16. Says "ready" when all has been written once. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 4096u
#define PAGE 4096u

/* In pages of their own: the C library's beginnings beside them have CPUID, and so stay in the
 * translator where the host cannot trap that. */
#define BY_ITSELF __attribute__((noinline, aligned(4096), section(".text.scribble")))

static uint64_t seed = 88172645463325252u;

BY_ITSELF static unsigned chosen(unsigned below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)(seed >> 20) % below;
}

/* Computes for so long that it is worth running natively. */
BY_ITSELF static void write_page(uint8_t *memory, unsigned page)
{
    uint64_t *at = (uint64_t *)(memory + (size_t)(page % PAGES) * PAGE);
    for (unsigned i = 0, word = chosen(PAGE / 8); i < PAGE; i++, word++)
        at[word % (PAGE / 8)] += at[(word + 1) % (PAGE / 8)] * 6364136223846793005u + i;
}

BY_ITSELF static void mixed(uint8_t *memory)
{
    for (;;) {
        unsigned first = chosen(PAGES), count = 1u << chosen(11), step = 1 + (chosen(4) == 0) * chosen(9);
        switch (chosen(16)) {
        case 0:
            if (madvise(memory + (size_t)first * PAGE, (size_t)(1 + count % (PAGES - first)) * PAGE,
                        chosen(2) ? MADV_DONTNEED : MADV_FREE))
                exit(2);
            break;
        case 1:
        case 2:
            for (unsigned i = count; i--;)
                write_page(memory, first + i * step);
            break;
        case 3:
            for (unsigned i = 0; i < count; i++)
                write_page(memory, chosen(PAGES));
            break;
        default:
            for (unsigned i = 0; i < count; i++)
                write_page(memory, first + i * step);
        }
    }
}

BY_ITSELF static void sparse(uint8_t *memory)
{
    for (unsigned page = 0;; page += 16)
        write_page(memory, page);
}

BY_ITSELF int main(int argc, char **argv)
{
    uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (argc != 2 || memory == MAP_FAILED)
        return 1;
    memset(memory, 1, PAGES * PAGE);
    puts("ready");
    fflush(stdout);
    if (!strcmp(argv[1], "sparse"))
        sparse(memory);
    if (fork() == 0)
        seed = 1234567;
    mixed(memory);
}
