/* SSE and SSE2 on floating point, under every rounding mode of MXCSR. Left out: RCPSS and RSQRTSS
 * (approximations differ) and the exception flags of MXCSR (translators do not keep them all). */
#include "check.h"

#include <string.h>
#include <xmmintrin.h>

typedef float v4f __attribute__((vector_size(16)));
typedef double v2d __attribute__((vector_size(16)));

/* Finite, of any sign, zero and denormal at times; the exponents meet so that sums round. */
static double number(void) {
    uint64_t bits = rnd() & 0x800FFFFFFFFFFFFFu, kind = rnd() % 32;
    double d;
    if (kind == 0)
        bits &= 1ull << 63;
    else if (kind != 1)
        bits |= (1023 - 40 + rnd() % 80) << 52;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static float number32(void) {
    uint32_t bits = (uint32_t)rnd() & 0x807FFFFFu, kind = (uint32_t)(rnd() % 32);
    float f;
    if (kind == 0)
        bits &= 1u << 31;
    else if (kind != 1)
        bits |= (uint32_t)(127 - 20 + rnd() % 40) << 23;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static v4f floats(void) { return (v4f){number32(), number32(), number32(), number32()}; }

static v2d doubles(void) { return (v2d){number(), number()}; }

#define OPERATION(op, type, make)                                                                  \
    do {                                                                                           \
        type a = make(), b = make();                                                               \
        __asm__ volatile(op " %1, %0" : "+x"(a) : "x"(b));                                         \
        mix_bytes(&a, sizeof a);                                                                   \
    } while (0)

#define ALL_FORMS(op)                                                                              \
    OPERATION(op "ps", v4f, floats);                                                               \
    OPERATION(op "ss", v4f, floats);                                                               \
    OPERATION(op "pd", v2d, doubles);                                                              \
    OPERATION(op "sd", v2d, doubles)

#define COMPARE(how)                                                                               \
    do {                                                                                           \
        v4f a = floats(), b = floats();                                                            \
        v2d c = doubles(), d = doubles();                                                          \
        b[1] = a[1];                                                                               \
        b[2] = __builtin_nanf("");                                                                 \
        d[0] = c[0];                                                                               \
        __asm__ volatile("cmpps $" #how ", %1, %0" : "+x"(a) : "x"(b));                            \
        __asm__ volatile("cmppd $" #how ", %1, %0" : "+x"(c) : "x"(d));                            \
        mix_bytes(&a, sizeof a);                                                                   \
        mix_bytes(&c, sizeof c);                                                                   \
    } while (0)

static void arithmetic(void) {
    ALL_FORMS("add");
    ALL_FORMS("sub");
    ALL_FORMS("mul");
    ALL_FORMS("div");
    ALL_FORMS("min");
    ALL_FORMS("max");
    ALL_FORMS("sqrt");
    OPERATION("andnps", v4f, floats);
    OPERATION("xorpd", v2d, doubles);
    OPERATION("unpcklps", v4f, floats);
    OPERATION("unpckhpd", v2d, doubles);
    OPERATION("movhlps", v4f, floats);
    OPERATION("movlhps", v4f, floats);
}

static void comparisons(void) {
    COMPARE(0);
    COMPARE(1);
    COMPARE(2);
    COMPARE(3);
    COMPARE(4);
    COMPARE(5);
    COMPARE(6);
    COMPARE(7);
    double a = number(), b = (rnd() & 3) ? number() : a;
    float c = number32(), d = (rnd() & 7) ? number32() : __builtin_nanf("");
    uint64_t flags;
    __asm__ volatile("comisd %2, %1\n\tpushfq\n\tpop %0" : "=r"(flags) : "x"(a), "x"(b) : "cc");
    mix(flags & FLAGS_ALL);
    __asm__ volatile("ucomiss %2, %1\n\tpushfq\n\tpop %0" : "=r"(flags) : "x"(c), "x"(d) : "cc");
    mix(flags & FLAGS_ALL);
}

static void conversions(void) {
    v4f a = floats(), r;
    v2d b = doubles(), s;
    double d = b[0];
    float f = a[0];
    int64_t wide;
    int32_t half;
    uint64_t word = edge();
    __asm__ volatile("cvtsd2si %1, %0" : "=r"(wide) : "x"(d));
    mix((uint64_t)wide);
    __asm__ volatile("cvttsd2si %1, %0" : "=r"(wide) : "x"(d));
    mix((uint64_t)wide);
    __asm__ volatile("cvtss2si %1, %0" : "=r"(half) : "x"(f));
    mix((uint32_t)half);
    __asm__ volatile("cvttsd2si %1, %0" : "=r"(half) : "x"(d * 4e9));
    mix((uint32_t)half);
    __asm__ volatile("cvtsi2sdq %1, %0" : "+x"(d) : "r"(word));
    __asm__ volatile("cvtsi2ssq %1, %0" : "+x"(f) : "r"(word));
    mix_bytes(&d, sizeof d);
    mix_bytes(&f, sizeof f);
    __asm__ volatile("cvtps2dq %1, %0" : "=x"(r) : "x"(a));
    mix_bytes(&r, sizeof r);
    __asm__ volatile("cvttps2dq %1, %0" : "=x"(r) : "x"(a));
    mix_bytes(&r, sizeof r);
    __asm__ volatile("cvtdq2ps %1, %0" : "=x"(r) : "x"(a));
    mix_bytes(&r, sizeof r);
    __asm__ volatile("cvtpd2ps %1, %0" : "=x"(r) : "x"(b));
    mix_bytes(&r, sizeof r);
    __asm__ volatile("cvtps2pd %1, %0" : "=x"(s) : "x"(a));
    mix_bytes(&s, sizeof s);
    __asm__ volatile("cvtpd2dq %1, %0" : "=x"(s) : "x"(b));
    mix_bytes(&s, sizeof s);
    __asm__ volatile("cvtdq2pd %1, %0" : "=x"(s) : "x"(a));
    mix_bytes(&s, sizeof s);
}

uint64_t check_vector_float(unsigned rounds) {
    unsigned before = _mm_getcsr();
    for (unsigned i = 0; i < rounds * 1000; i++)
        for (unsigned rounding = 0; rounding < 4; rounding++) {
            _mm_setcsr(0x1F80 | rounding << 13);
            arithmetic();
            comparisons();
            conversions();
            REQUIRE((_mm_getcsr() & 0x7FC0) == ((0x1F80 | rounding << 13) & 0x7FC0));
        }
    _mm_setcsr(before);
    return digest_end();
}
