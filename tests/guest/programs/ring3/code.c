/* Code that programs make while they run. */
#define _GNU_SOURCE
#include "ring3.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* mov eax, n; ret */
static void emit(uint8_t *at, uint32_t n) {
    at[0] = 0xB8;
    memcpy(at + 1, &n, 4);
    at[5] = 0xC3;
}

static uint32_t call(const uint8_t *at) {
    uint32_t (*function)(void) = (uint32_t(*)(void))(uint64_t)at;
    return function();
}

/* Writable and executable at once, then one after the other, then in a child's own copy. */
void ring3_jit(void) {
    uint8_t *area = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(area != MAP_FAILED);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 500; i++) {
        emit(area + i * 6, i);
        sum += call(area + i * 6);
        emit(area, i * 3);
        sum = sum * 31 + call(area);
    }
    say("written and run %016llx", (unsigned long long)sum);
    /* A loop that counts in its own immediate: 1: inc dword [rip+1]; nop; cmp eax, imm ... */
    static const uint8_t loop[] = {0x31, 0xC0,                         /* xor eax, eax */
                                   0xB9, 100,  0,    0,    0,          /* mov ecx, 100 */
                                   0xFF, 0x05, 1,    0,    0,    0,    /* 1: inc dword [rip+1] */
                                   0x05, 7,    0,    0,    0,          /* add eax, 7 */
                                   0xFF, 0xC9,                         /* dec ecx */
                                   0x75, 0xF1,                         /* jnz 1b */
                                   0xC3};
    memcpy(area, loop, sizeof loop);
    say("a loop that changes its own constant: %u", call(area));
    /* Across two pages, the second half rewritten. */
    for (uint32_t i = 0; i < 64; i++) {
        emit(area + PAGE - 3, 0x01010101 * i);
        sum = sum * 31 + call(area + PAGE - 3);
        area[PAGE] = (uint8_t)~i;
        sum = sum * 31 + call(area + PAGE - 3);
    }
    say("across two pages %016llx", (unsigned long long)sum);
    for (uint32_t i = 0; i < 50; i++) {
        mprotect(area, PAGE, PROT_READ | PROT_WRITE);
        emit(area + i, i);
        TRY(call(area + i));
        REQUIRE(caught.signal == SIGSEGV && caught.address == (uint64_t)area + i);
        mprotect(area, PAGE, PROT_READ | PROT_EXEC);
        sum = sum * 31 + call(area + i);
        TRY(emit(area + i, 1));
        REQUIRE(caught.signal == SIGSEGV);
    }
    say("write, then run %016llx", (unsigned long long)sum);
    mprotect(area, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    emit(area, 111);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        uint32_t before = call(area);
        emit(area, 22);
        _exit(before == 111 ? (int)call(area) : 255);
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("child %d, parent %u", WEXITSTATUS(status), call(area));
    /* Other code at the same address, by another mapping. */
    for (uint32_t i = 0; i < 20; i++) {
        REQUIRE(mmap(area, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area);
        emit(area, i);
        sum = sum * 31 + call(area);
    }
    say("mapped anew %016llx", (unsigned long long)sum);
    munmap(area, 8 * PAGE);
}
