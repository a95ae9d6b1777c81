/* x87: the operations that IEEE 754 defines to the last bit, under every rounding and precision
 * control, the register stack, and FXSAVE. Left out: transcendental instructions (their last bits
 * differ between processors) and the exception summary (translators do not keep it). */
#include "check.h"

#include <string.h>

struct extended {
    uint64_t mantissa;
    uint16_t exponent;
    uint8_t pad[6];
};

/* A normal number, a zero, a denormal or an infinity. */
static struct extended number(void) {
    struct extended x = {rnd() | 1ull << 63, (uint16_t)(rnd() & 0x80FF), {0}};
    uint64_t kind = rnd() % 32;
    x.exponent += 0x3F80;
    if (kind == 0)
        x = (struct extended){0, x.exponent & 0x8000, {0}};
    else if (kind == 1)
        x = (struct extended){rnd() >> 1, 0, {0}};
    else if (kind == 2)
        x = (struct extended){1ull << 63, 0x7FFF | (x.exponent & 0x8000), {0}};
    else if (kind < 12)
        x.mantissa = (rnd() << 40) | 1ull << 63;
    return x;
}

static void mix_number(const struct extended *x) {
    mix(x->mantissa);
    mix(x->exponent);
}

static void control(uint16_t word) { __asm__ volatile("fldcw %0" : : "m"(word)); }

#define ARITHMETIC(op)                                                                             \
    do {                                                                                           \
        struct extended r = {0, 0, {0}};                                                           \
        __asm__ volatile("fldt %1\n\tfldt %2\n\t" op "\n\tfstpt %0"                                \
                         : "=m"(r)                                                                 \
                         : "m"(a), "m"(b)                                                          \
                         : "memory");                                                              \
        mix_number(&r);                                                                            \
    } while (0)

#define SINGLE(op)                                                                                 \
    do {                                                                                           \
        struct extended r = {0, 0, {0}};                                                           \
        __asm__ volatile("fldt %1\n\t" op "\n\tfstpt %0" : "=m"(r) : "m"(a) : "memory");           \
        mix_number(&r);                                                                            \
    } while (0)

static void arithmetic(void) {
    struct extended a = number(), b = number();
    ARITHMETIC("faddp");
    ARITHMETIC("fsubp");
    ARITHMETIC("fsubrp");
    ARITHMETIC("fmulp");
    ARITHMETIC("fdivp");
    ARITHMETIC("fdivrp");
    SINGLE("fabs\n\tfsqrt");
    SINGLE("fchs");
    SINGLE("fadd %%st(0), %%st");
}

static void conversions(void) {
    struct extended a = number(), r = {0, 0, {0}};
    int64_t wide = (int64_t)edge(), back = 0;
    int32_t half = (int32_t)wide;
    int16_t quarter = (int16_t)wide, small = 0;
    float f = 0;
    double d = 0;
    SINGLE("frndint");
    a.exponent = (a.exponent & 0x8000) | (uint16_t)(0x3FFF + rnd() % 62);
    a.mantissa |= 1ull << 63;
    __asm__ volatile("fildll %1\n\tfstpt %0" : "=m"(r) : "m"(wide) : "memory");
    mix_number(&r);
    __asm__ volatile("fildl %1\n\tfiadds %2\n\tfstpt %0"
                     : "=m"(r)
                     : "m"(half), "m"(quarter)
                     : "memory");
    mix_number(&r);
    __asm__ volatile("fldt %1\n\tfistpll %0" : "=m"(back) : "m"(a) : "memory");
    mix((uint64_t)back);
    __asm__ volatile("fldt %2\n\tfsts %0\n\tfstpl %1" : "=m"(f), "=m"(d) : "m"(a) : "memory");
    mix_bytes(&f, sizeof f);
    mix_bytes(&d, sizeof d);
    a.exponent = (a.exponent & 0x8000) | (uint16_t)(0x3FFF + rnd() % 14);
    __asm__ volatile("fldt %2\n\tfistl %1\n\tfistps %0"
                     : "=m"(small), "=m"(half)
                     : "m"(a)
                     : "memory");
    mix((uint16_t)small);
    mix((uint32_t)half);
    unsigned char decimal[10] = {0};
    wide = (int64_t)(rnd() % 999999999999999999u) - 499999999999999999;
    __asm__ volatile("fildll %1\n\tfbstp %0" : "=m"(decimal) : "m"(wide) : "memory");
    mix_bytes(decimal, sizeof decimal);
    __asm__ volatile("fbld %1\n\tfistpll %0" : "=m"(back) : "m"(decimal) : "memory");
    REQUIRE(back == wide);
}

static void comparisons(void) {
    struct extended a = number(), b = (rnd() & 3) ? number() : a;
    uint64_t flags;
    uint16_t status;
    __asm__ volatile("fldt %1\n\tfldt %2\n\tfcomip %%st(1), %%st\n\tpushfq\n\tpop %0\n\tfstp %%st(0)"
                     : "=r"(flags)
                     : "m"(a), "m"(b)
                     : "memory", "cc");
    mix(flags & (FLAG_CF | FLAG_PF | FLAG_ZF));
    __asm__ volatile("fldt %1\n\tfldt %2\n\tfucompp\n\tfnstsw %0"
                     : "=a"(status)
                     : "m"(a), "m"(b)
                     : "memory");
    mix(status & 0x4500);
    __asm__ volatile("fldt %1\n\tfxam\n\tfnstsw %0\n\tfstp %%st(0)"
                     : "=a"(status)
                     : "m"(a)
                     : "memory");
    mix(status & 0x4700);
}

struct __attribute__((aligned(16))) fx_area {
    uint16_t control, status;
    uint8_t tags, reserved;
    uint16_t opcode;
    uint64_t ip, dp;
    uint32_t mxcsr, mask;
    uint8_t st[8][16], xmm[16][16], rest[96];
};

/* Fill both register files, save, clear, restore, save again: nothing may be lost. */
static void save_restore(void) {
    static struct fx_area first, second;
    struct extended a = number(), b = number();
    uint8_t bytes[64];
    uint64_t seed = rnd();
    memset(&first, 0, sizeof first);
    memset(&second, 0, sizeof second);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(seed >> (i % 8 * 8) ^ i * 37);
    __asm__ volatile("fninit\n\tfldt %[a]\n\tfldt %[b]\n\tfld1\n\tfldz\n\tfld %%st(3)\n\tffree %%st(2)\n\t"
                     "fdecstp\n\tfincstp\n\tfxch %%st(3)\n\t"
                     "movdqu (%[m]), %%xmm0\n\tmovdqu 16(%[m]), %%xmm7\n\tmovdqu 32(%[m]), %%xmm8\n\t"
                     "movdqu 48(%[m]), %%xmm15\n\tfxsaveq %[one]\n\t"
                     "fninit\n\tpxor %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm8, %%xmm8\n\t"
                     "pxor %%xmm15, %%xmm15\n\tfxrstorq %[one]\n\tfxsaveq %[two]\n\tfninit"
                     : [one] "+m"(first), [two] "+m"(second)
                     : [a] "m"(a), [b] "m"(b), [m] "r"(bytes)
                     : "memory", "xmm0", "xmm7", "xmm8", "xmm15");
    REQUIRE(first.control == second.control && first.tags == second.tags);
    REQUIRE((first.status & 0x7D00) == (second.status & 0x7D00) && first.mxcsr == second.mxcsr);
    for (int i = 0; i < 8; i++)
        REQUIRE(!memcmp(first.st[i], second.st[i], 10));
    REQUIRE(!memcmp(first.xmm, second.xmm, sizeof first.xmm));
    mix(first.control);
    mix(first.tags);
    mix((first.status >> 11) & 7);
    for (int i = 0; i < 8; i++)
        if (first.tags >> i & 1)
            mix_bytes(first.st[(i - (first.status >> 11)) & 7], 10);
    mix_bytes(first.xmm[0], 16);
    mix_bytes(first.xmm[7], 32);
    mix_bytes(first.xmm[15], 16);
}

uint64_t check_x87(unsigned rounds) {
    static const uint16_t precisions[] = {0x000, 0x200, 0x300};
    for (unsigned i = 0; i < rounds * 1000; i++) {
        for (unsigned rounding = 0; rounding < 4; rounding++) {
            control((uint16_t)(0x7F | precisions[i % 3] | rounding << 10));
            arithmetic();
            control((uint16_t)(0x37F | rounding << 10));
            conversions();
        }
        comparisons();
        save_restore();
    }
    control(0x37F);
    return digest_end();
}
