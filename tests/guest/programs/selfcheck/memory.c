/* Demand paging, copy on write after fork, a stack that grows, mappings that move. */
#define _GNU_SOURCE
#include "check.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 256u

static void demand(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    uint8_t *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    for (unsigned i = 0; i < PAGES; i++) {
        uint64_t *word = (uint64_t *)(void *)(pages + i * PAGE + rnd() % 500 * 8);
        REQUIRE(*word == 0);
        *word = i * 3 + 1;
        mix(*word);
    }
    madvise(pages, PAGES * PAGE / 2, MADV_DONTNEED);
    uint64_t sum = 0;
    for (unsigned i = 0; i < PAGES * PAGE / 8; i++)
        sum += ((uint64_t *)(void *)pages)[i];
    mix(sum);
    uint8_t *moved = mremap(pages, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
    REQUIRE(moved != MAP_FAILED);
    mix_bytes(moved + (PAGES - 1) * PAGE, 2 * PAGE);
    munmap(moved, 2 * PAGES * PAGE);
}

/* The child's writes stay the child's; a shared page carries its digest back. */
static void copy_on_write(void) {
    int protection = PROT_READ | PROT_WRITE;
    uint64_t *private_words = mmap(NULL, 16 * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile uint64_t *answer = mmap(NULL, PAGE, protection, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(private_words != MAP_FAILED && answer != MAP_FAILED);
    for (unsigned i = 0; i < 16 * PAGE / 8; i++)
        private_words[i] = rnd();
    uint64_t before = private_words[777];
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < 16 * PAGE / 8; i++) {
            private_words[i] ^= i;
            sum = sum * 31 + private_words[i];
        }
        answer[0] = sum;
        _exit(0);
    }
    private_words[778] += 1;
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
    REQUIRE(private_words[777] == before);
    mix(answer[0]);
    mix_bytes(private_words, 16 * PAGE);
    munmap(private_words, 16 * PAGE);
    munmap((void *)answer, PAGE);
}

static __attribute__((noinline)) uint64_t descend(unsigned depth, uint64_t value) {
    volatile uint8_t frame[1500];
    frame[depth % sizeof frame] = (uint8_t)value;
    if (depth == 0)
        return value;
    uint64_t below = descend(depth - 1, value * 6364136223846793005u + 1);
    return below ^ frame[depth % sizeof frame];
}

/* Bytes written through a descriptor are there in the mapping, and the other way round. */
static void file_mapping(void) {
    int fd = memfd_create("selfcheck", 0);
    uint8_t chunk[1000];
    REQUIRE(fd >= 0 && ftruncate(fd, 8 * PAGE) == 0);
    uint8_t *view = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *copy = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    REQUIRE(view != MAP_FAILED && copy != MAP_FAILED);
    copy[5 * PAGE] = 0xEE;
    for (unsigned i = 0; i < 20; i++) {
        for (size_t b = 0; b < sizeof chunk; b++)
            chunk[b] = (uint8_t)rnd();
        off_t at = (off_t)(rnd() % (8 * PAGE - sizeof chunk));
        REQUIRE(pwrite(fd, chunk, sizeof chunk, at) == sizeof chunk);
        REQUIRE(!memcmp(view + at, chunk, sizeof chunk));
        view[at] ^= 1;
        REQUIRE(pread(fd, chunk, 1, at) == 1 && chunk[0] == view[at]);
    }
    REQUIRE(copy[5 * PAGE] == 0xEE);
    mix_bytes(view, 8 * PAGE);
    munmap(view, 8 * PAGE);
    munmap(copy, 8 * PAGE);
    close(fd);
}

uint64_t check_memory(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 3; i++) {
        demand();
        copy_on_write();
        file_mapping();
        /* 3 MiB of stack in a process of its own, so that each round grows it afresh. */
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0)
            _exit((int)(descend(2000, 0x1234) & 0x7F));
        int status = -1;
        REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
        mix((uint64_t)WEXITSTATUS(status));
    }
    return digest_end();
}
