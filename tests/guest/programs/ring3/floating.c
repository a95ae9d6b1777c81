/* x87 and SSE: modes, exceptions that become signals, and who keeps whose registers. */
#define _GNU_SOURCE
#include "ring3.h"

#include <sched.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const double numbers[] = {1.0 / 3, -2.0 / 3, 1e308, -1e308, 4.9e-324, 2.2e-308, 1e-310,
                                 0.1,     2.5,      -3.5,  1e18,   -0.0,     0x1.fffffffffffffp-1};
#define NUMBERS (sizeof numbers / sizeof *numbers)

/* Every rounding mode and precision. */
void ring3_x87(void) {
    for (unsigned mode = 0; mode < 16; mode++) {
        uint16_t control = (uint16_t)(0x7F | (mode & 3) << 10 | (mode >> 2) << 8);
        uint64_t results[NUMBERS][3];
        if ((mode >> 2) == 1)
            continue; /* a reserved precision */
        memset(results, 0, sizeof results);
        for (size_t i = 0; i < NUMBERS; i++) {
            double a = numbers[i], b = numbers[(i + 5) % NUMBERS];
            long long whole;
            __asm__ volatile("fninit\n\tfldcw %4\n\tfldl %2\n\tfldl %3\n\tfdivrp\n\tfldl %2\n\t"
                             "faddp\n\tfstpl %0\n\tfldl %2\n\tfistpll %1\n\tfnstsw %%ax\n\tfninit"
                             : "=m"(results[i][0]), "=m"(whole), "+m"(a), "+m"(b)
                             : "m"(control)
                             : "ax", "memory");
            results[i][1] = (uint64_t)whole;
        }
        say("x87 control %#x %016llx", control, (unsigned long long)digest(results, sizeof results));
    }
}

/* Each exception unmasked. */
void ring3_exact_x87(void) {
    static const struct {
        const char *name;
        uint16_t control;
    } exceptions[] = {{"invalid", 0x37E}, {"denormal", 0x37D},  {"zero divide", 0x37B},
                      {"overflow", 0x377}, {"underflow", 0x36F}, {"precision", 0x35F}};
    for (size_t i = 0; i < sizeof exceptions / sizeof *exceptions; i++) {
        double tiny = 4.9e-324, big = 1e308, zero = 0, one = 1, three = 3, out = 0;
        TRY(__asm__ volatile("fninit\n\tfldcw %0\n\tfldl %4\n\tfdivl %3\n\tfwait\n\tfstp %%st\n\t"
                             : : "m"(exceptions[i].control), "m"(tiny), "m"(big), "m"(zero),
                                 "m"(one) : "memory"));
        say_caught("1 / 0", (uint64_t)caught.regs[REG_RIP]);
        TRY(__asm__ volatile("fninit\n\tfldcw %0\n\tfldl %1\n\tfdivl %1\n\tfwait"
                             : : "m"(exceptions[i].control), "m"(zero) : "memory"));
        say_caught("    0 / 0", (uint64_t)caught.regs[REG_RIP]);
        TRY(__asm__ volatile("fninit\n\tfldcw %0\n\tfldl %1\n\tfdivl %2\n\tfwait"
                             : : "m"(exceptions[i].control), "m"(one), "m"(three) : "memory"));
        say_caught("    1 / 3", (uint64_t)caught.regs[REG_RIP]);
        TRY(__asm__ volatile("fninit\n\tfldcw %0\n\tfldl %1\n\tfwait"
                             : : "m"(exceptions[i].control), "m"(tiny) : "memory"));
        say_caught("    a denormal number", (uint64_t)caught.regs[REG_RIP]);
        TRY(__asm__ volatile("fninit\n\tfldcw %1\n\tfldl %2\n\tfmull %2\n\tfstpl %0\n\tfwait"
                             : "+m"(out) : "m"(exceptions[i].control), "m"(big) : "memory"));
        say_caught("    overflow", (uint64_t)caught.regs[REG_RIP]);
        TRY(__asm__ volatile("fninit\n\tfldcw %0\n\tfldl %1\n\tfld %%st\n\tfaddp\n\tfwait\n\tfldz\n\tfldz\n\t"
                             "fldz\n\tfldz\n\tfldz\n\tfldz\n\tfldz\n\tfldz\n\tfldz\n\tfldz\n\tfwait"
                             : : "m"(exceptions[i].control), "m"(one) : "memory"));
        say_caught("    a full stack", (uint64_t)caught.regs[REG_RIP]);
        uint16_t status;
        __asm__ volatile("fninit\n\tfldl %1\n\tfdivl %2\n\tfldl %3\n\tfaddp\n\tfnstsw %0\n\tfninit"
                         : "=m"(status) : "m"(one), "m"(three), "m"(tiny) : "memory");
        say("    flags, all masked: %#x", status & 0x3Fu);
        say("    all of these with %s unmasked", exceptions[i].name);
    }
}

static void sse_mode(uint32_t mxcsr) {
    uint32_t usual = 0x1F80;
    double results[NUMBERS][2];
    for (size_t i = 0; i < NUMBERS; i++) {
        double a = numbers[i], b = numbers[(i + 5) % NUMBERS];
        __asm__ volatile("ldmxcsr %4\n\tmovsd %2, %%xmm0\n\tmulsd %3, %%xmm0\n\tmovsd %%xmm0, %0\n\t"
                         "movsd %2, %%xmm0\n\tdivsd %3, %%xmm0\n\taddsd %2, %%xmm0\n\t"
                         "movsd %%xmm0, %1\n\tldmxcsr %5"
                         : "=m"(results[i][0]), "=m"(results[i][1])
                         : "m"(a), "m"(b), "m"(mxcsr), "m"(usual)
                         : "xmm0");
    }
    say("mxcsr %#x %016llx", mxcsr, (unsigned long long)digest(results, sizeof results));
}

/* Every rounding mode, with denormal operands and without. */
void ring3_sse(void) {
    for (uint32_t mode = 0; mode < 8; mode++)
        sse_mode(0x1F80 | (mode & 3) << 13 | (mode & 4 ? 0x40 : 0));
}

/* Flushing to zero, and each exception unmasked. */
void ring3_exact_sse(void) {
    static const struct {
        const char *name;
        uint32_t mxcsr;
    } exceptions[] = {{"invalid", 0x1F00},  {"denormal", 0x1E80},  {"zero divide", 0x1D80},
                      {"overflow", 0x1B80}, {"underflow", 0x1780}, {"precision", 0x0F80}};
    uint32_t usual = 0x1F80, bad = 0x10000 | 0x1F80;
    for (uint32_t mode = 0; mode < 8; mode++)
        sse_mode(0x9F80 | (mode & 3) << 13 | (mode & 4 ? 0x40 : 0));
    for (size_t i = 0; i < sizeof exceptions / sizeof *exceptions; i++) {
        double tiny = 4.9e-324, big = 1e308, zero = 0, one = 1, three = 3;
#define SSE(name, first, second, operation)                                                        \
    do {                                                                                           \
        TRY(__asm__ volatile("ldmxcsr %0\n\tmovsd %1, %%xmm1\n\t" operation " %2, %%xmm1"          \
                             :                                                                     \
                             : "m"(exceptions[i].mxcsr), "m"(first), "m"(second)                   \
                             : "xmm1", "memory"));                                                 \
        __asm__ volatile("ldmxcsr %0" : : "m"(usual));                                             \
        say_caught(name, (uint64_t)caught.regs[REG_RIP]);                                          \
    } while (0)
        say("unmasked: %s", exceptions[i].name);
        SSE("    1 / 0", one, zero, "divsd");
        SSE("    0 / 0", zero, zero, "divsd");
        SSE("    1 / 3", one, three, "divsd");
        SSE("    denormal + 1", one, tiny, "addsd");
        SSE("    overflow", big, big, "mulsd");
        SSE("    underflow", tiny, three, "divsd");
        SSE("    root of -1e308", one, big, "subsd");
    }
    TRY(__asm__ volatile("ldmxcsr %0" : : "m"(bad)));
    say_caught("mxcsr with a reserved bit", 0);
    __asm__ volatile("ldmxcsr %0" : : "m"(usual));
}

static void compute(uint64_t seed, uint8_t *image) {
    uint32_t usual = 0x1F80;
    __asm__ volatile("ldmxcsr %0" : : "m"(usual));
    __asm__ volatile("fninit\n\tmovq %0, %%xmm0\n\tmovq %%xmm0, %%xmm5\n\tmovq %%xmm0, %%xmm11\n\t"
                     "paddq %%xmm0, %%xmm5\n\tpaddq %%xmm5, %%xmm11\n\t"
                     "push %0\n\tfildll (%%rsp)\n\tfld1\n\tfldpi\n\tfldl2e\n\tpop %0"
                     : "+r"(seed)
                     :
                     : "xmm0", "xmm5", "xmm11", "memory");
    for (int i = 0; i < 4; i++) {
        sched_yield();
        /* Left in the registers across the system call, which C code here must not use. */
        __asm__ volatile("paddq %%xmm5, %%xmm0\n\tpaddq %%xmm11, %%xmm5\n\tfadd %%st(3), %%st"
                         :
                         :
                         : "xmm0", "xmm5", "memory");
    }
    __asm__ volatile("fxsave64 (%0)\n\tfninit\n\tldmxcsr %1" : : "r"(image), "m"(usual) : "memory");
    /* Not ours: exception flags (ring3_exact_x87), pointers to the last x87 instruction, and
     * registers that C code uses. */
    image[2] = 0;
    image[3] &= (uint8_t)~2u; /* C1: how the last result was rounded, which translated code does not tell */
    for (int xmm = 0; xmm < 16; xmm++)
        if (xmm != 0 && xmm != 5 && xmm != 11)
            memset(image + 160 + xmm * 16, 0, 16);
    memset(image + 6, 0, 18);
    memset(image + 28, 0, 4);
    for (int st = 0; st < 8; st++)
        memset(image + 32 + st * 16 + (st < 4 ? 10 : 0), 0, st < 4 ? 6 : 16);
    memset(image + 416, 0, 96);
}

/* Several processes that all keep numbers in x87 and SSE registers while they take turns. */
void ring3_fpu_switch(void) {
    enum { AT_ONCE = 4 };
    static uint8_t image[512] __attribute__((aligned(16)));
    pid_t pids[AT_ONCE];
    quiet_begin();
    for (int p = 0; p < AT_ONCE; p++) {
        pids[p] = fork();
        REQUIRE(pids[p] >= 0);
        if (pids[p] == 0) {
            static uint8_t first[512];
            for (int turn = 0; turn < 12; turn++) {
                memset(image, 0, sizeof image);
                compute((uint64_t)p * 0x0101010101 + 3, image);
                if (turn == 0)
                    memcpy(first, image, sizeof image);
                if (memcmp(first, image, sizeof image))
                    _exit(255);
            }
            _exit((int)(digest(image, sizeof image) % 251));
        }
    }
    for (int p = 0; p < AT_ONCE; p++) {
        int status = -1;
        REQUIRE(waitpid(pids[p], &status, 0) == pids[p] && WIFEXITED(status));
        say("process %d: %d", p, WEXITSTATUS(status));
    }
    quiet_end();
    /* What FXRSTOR puts in comes out again; a new process starts with the parent's. */
    static uint8_t in[512] __attribute__((aligned(16))), out[512] __attribute__((aligned(16)));
    __asm__ volatile("fninit\n\tfxsave64 (%0)" : : "r"(in) : "memory");
    for (int i = 160; i < 416; i++)
        in[i] = (uint8_t)(i * 7);
    for (int st = 0; st < 8; st++)
        for (int i = 0; i < 10; i++)
            in[32 + st * 16 + i] = (uint8_t)(st * 16 + i + 1);
    in[4] = 0xFF;
    __asm__ volatile("fxrstor64 (%0)\n\tfxsave64 (%1)\n\tfninit" : : "r"(in), "r"(out)
                     : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    for (int st = 0; st < 8; st++)
        memset(out + 32 + st * 16 + 10, 0, 6);
    say("restored and saved %016llx", (unsigned long long)digest(out + 32, 384));
    __asm__ volatile("fninit");
}
