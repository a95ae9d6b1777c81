/* fork and exec storms, pipes, and system calls by the thousand. */
#define _GNU_SOURCE
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_ONCE 5u

/* A frame of its own: the child of a vfork runs on its parent's stack. */
static __attribute__((noinline)) pid_t start(int shared, char *const *arguments,
                                             char *const *environment) {
    pid_t pid = shared ? vfork() : fork();
    if (pid == 0) {
        execve(program_path, arguments, environment);
        _exit(254);
    }
    return pid;
}

/* Each child is this program again, told a number on its command line and in its environment. */
static void execs(unsigned first) {
    pid_t pids[AT_ONCE];
    for (unsigned i = 0; i < AT_ONCE; i++) {
        char argument[16], variable[32];
        snprintf(argument, sizeof argument, "%u", first + i);
        snprintf(variable, sizeof variable, "SELFCHECK=%u", (first + i) * 3);
        char *const arguments[] = {(char *)(uintptr_t)program_path, "--child", argument, NULL};
        char *const environment[] = {variable, NULL};
        pids[i] = start(i & 1, arguments, environment);
        REQUIRE(pids[i] > 0);
    }
    for (unsigned i = 0; i < AT_ONCE; i++) {
        int status = -1;
        REQUIRE(waitpid(pids[i], &status, 0) == pids[i] && WIFEXITED(status));
        REQUIRE((unsigned)WEXITSTATUS(status) == (first + i) * 7 % 251);
        mix((uint64_t)status);
    }
}

/* A chain of generations: each process is the child of the last. */
static int generations(unsigned depth) {
    if (depth == 0)
        return 1;
    pid_t pid = fork();
    if (pid == 0)
        _exit(generations(depth - 1));
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return 255;
    return (WEXITSTATUS(status) * 3 + (int)depth) % 200;
}

uint64_t check_processes(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 4; i++) {
        execs(i * AT_ONCE);
        mix((uint64_t)generations(12));
    }
    return digest_end();
}

static void transfer(int fd, void *bytes, size_t count, int out) {
    uint8_t *at = bytes;
    while (count) {
        ssize_t n = out ? write(fd, at, count) : read(fd, at, count);
        REQUIRE(n > 0);
        at += n;
        count -= (size_t)n;
    }
}

/* Blocks go out, come back changed, and are compared; sizes below and above PIPE_BUF. */
uint64_t check_pipes(unsigned rounds) {
    static const size_t sizes[] = {1, 8, 100, 4096, 5000, 30000};
    static uint64_t block[30000 / 8 + 1], answer[30000 / 8 + 1];
    int out[2], in[2];
    unsigned turns = rounds * 300;
    REQUIRE(pipe(out) == 0 && pipe(in) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        uint8_t *bytes = (uint8_t *)block;
        for (unsigned i = 0; i < turns; i++) {
            size_t count = sizes[i % 6];
            transfer(out[0], block, count, 0);
            for (size_t b = 0; b < count; b++)
                bytes[b] = (uint8_t)(bytes[b] * 3 + b);
            transfer(in[1], block, count, 1);
        }
        _exit(0);
    }
    for (unsigned i = 0; i < turns; i++) {
        size_t count = sizes[i % 6];
        for (size_t w = 0; w <= count / 8; w++)
            block[w] = rnd();
        transfer(out[1], block, count, 1);
        transfer(in[0], answer, count, 0);
        for (size_t b = 0; b < count; b++)
            REQUIRE(((uint8_t *)answer)[b] == (uint8_t)(((uint8_t *)block)[b] * 3 + b));
        mix_bytes(answer, count);
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
    close(out[0]), close(out[1]), close(in[0]), close(in[1]);
    return digest_end();
}

/* Every system call must happen once, and give back every register but three. */
uint64_t check_calls(unsigned rounds) {
    int ends[2];
    char byte;
    pid_t parent = getppid();
    REQUIRE(pipe(ends) == 0);
    for (unsigned i = 0; i < rounds * 10000; i++) {
        register uint64_t rax __asm__("rax") = SYS_getppid;
        uint64_t rdx = i, rsi = ~0ull - i, r8 = i * 5, flags;
        register uint64_t r12 __asm__("r12") = i * 7;
        __asm__ volatile("mov %[r8], %%r8\n\tstc\n\tsyscall\n\tpushfq\n\tpop %[f]\n\tmov %%r8, %[r8]"
                         : "+r"(rax), "+d"(rdx), "+S"(rsi), [r8] "+D"(r8), [f] "=&b"(flags), "+r"(r12)
                         :
                         : "rcx", "r8", "r11", "cc", "memory");
        REQUIRE(rax == (uint64_t)parent && rdx == i && rsi == ~0ull - i && r8 == i * 5ull);
        REQUIRE(r12 == i * 7ull && (flags & FLAG_CF));
        if (i % 100 == 0) {
            byte = (char)i;
            REQUIRE(write(ends[1], &byte, 1) == 1);
        }
    }
    close(ends[1]);
    unsigned seen = 0;
    while (read(ends[0], &byte, 1) == 1)
        seen++;
    REQUIRE(seen == rounds * 100);
    close(ends[0]);
    mix(seen);
    return digest_end();
}
