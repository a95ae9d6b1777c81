/* Integer ALU: every result and every defined flag, in four sizes (Intel SDM 2). */
#include "check.h"

#define BINARY(op, type, mask)                                                                     \
    do {                                                                                           \
        type a = (type)edge(), b = (type)edge();                                                   \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile(WITH_FLAGS(op " %[b], %[a]")                                              \
                         : [a] "+q"(a), [f] "+q"(f)                                                \
                         : [b] "q"(b)                                                              \
                         : "cc", "memory");                                                        \
        mix(a);                                                                                    \
        mix(f & (mask));                                                                           \
    } while (0)

#define UNARY(op, type)                                                                            \
    do {                                                                                           \
        type a = (type)edge();                                                                     \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile(WITH_FLAGS(op " %[a]") : [a] "+q"(a), [f] "+q"(f) : : "cc", "memory");    \
        mix(a);                                                                                    \
        mix(f & FLAGS_ALL);                                                                        \
    } while (0)

/* The destination in memory: a read-modify-write is not the same translation. */
#define IN_MEMORY(op, suffix, type, mask)                                                          \
    do {                                                                                           \
        volatile type a = (type)edge();                                                            \
        type b = (type)edge();                                                                     \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile("mov %[at], %%rdi\n\t" WITH_FLAGS(op suffix " %[b], (%%rdi)")             \
                         : [f] "+q"(f)                                                             \
                         : [at] "r"(&a), [b] "q"(b)                                                \
                         : "rdi", "cc", "memory");                                                 \
        mix(a);                                                                                    \
        mix(f & (mask));                                                                           \
    } while (0)

#define FOUR(macro, op, mask)                                                                      \
    macro(op, uint8_t, mask);                                                                      \
    macro(op, uint16_t, mask);                                                                     \
    macro(op, uint32_t, mask);                                                                     \
    macro(op, uint64_t, mask)
#define FOUR_UNARY(op)                                                                             \
    UNARY(op, uint8_t);                                                                            \
    UNARY(op, uint16_t);                                                                           \
    UNARY(op, uint32_t);                                                                           \
    UNARY(op, uint64_t)
#define FOUR_MEMORY(op, mask)                                                                      \
    IN_MEMORY(op, "b", uint8_t, mask);                                                             \
    IN_MEMORY(op, "w", uint16_t, mask);                                                            \
    IN_MEMORY(op, "l", uint32_t, mask);                                                            \
    IN_MEMORY(op, "q", uint64_t, mask)

static void arithmetic(void) {
    FOUR(BINARY, "add", FLAGS_ALL);
    FOUR(BINARY, "adc", FLAGS_ALL);
    FOUR(BINARY, "sub", FLAGS_ALL);
    FOUR(BINARY, "sbb", FLAGS_ALL);
    FOUR(BINARY, "cmp", FLAGS_ALL);
    FOUR(BINARY, "and", FLAGS_LOGIC);
    FOUR(BINARY, "or", FLAGS_LOGIC);
    FOUR(BINARY, "xor", FLAGS_LOGIC);
    FOUR(BINARY, "test", FLAGS_LOGIC);
    FOUR(BINARY, "xadd", FLAGS_ALL);
    FOUR(BINARY, "xchg", FLAGS_ALL);
    FOUR_UNARY("inc");
    FOUR_UNARY("dec");
    FOUR_UNARY("neg");
    FOUR_UNARY("not");
    FOUR_MEMORY("add", FLAGS_ALL);
    FOUR_MEMORY("adc", FLAGS_ALL);
    FOUR_MEMORY("sub", FLAGS_ALL);
    FOUR_MEMORY("sbb", FLAGS_ALL);
    FOUR_MEMORY("xor", FLAGS_LOGIC);
    FOUR_MEMORY("xadd", FLAGS_ALL);
    FOUR_MEMORY("lock xadd", FLAGS_ALL);
}

#define COMPARE_EXCHANGE(type)                                                                     \
    do {                                                                                           \
        type target = (type)edge(), with = (type)rnd(), expected = (rnd() & 1) ? target : (type)1; \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile(WITH_FLAGS("cmpxchg %[w], %[t]")                                          \
                         : [t] "+q"(target), [f] "+q"(f), "+a"(expected)                           \
                         : [w] "q"(with)                                                           \
                         : "cc", "memory");                                                        \
        mix(target);                                                                               \
        mix(expected);                                                                             \
        mix(f & FLAGS_ALL);                                                                        \
    } while (0)

#define CONDITION(cc)                                                                              \
    do {                                                                                           \
        uint64_t f = rnd() & FLAGS_ALL, moved = rnd(), source = rnd(), jumped = 0;                 \
        uint8_t set;                                                                               \
        __asm__ volatile("push %q[f]\n\tpopfq\n\tset" cc " %[s]\n\tcmov" cc                        \
                         " %[src], %[m]\n\tj" cc " 1f\n\tmov $77, %[j]\n\t1:"                      \
                         : [s] "=&q"(set), [m] "+&r"(moved), [j] "+&r"(jumped)                     \
                         : [f] "r"(f), [src] "r"(source)                                           \
                         : "cc", "memory");                                                        \
        mix(set);                                                                                  \
        mix(moved);                                                                                \
        mix(jumped);                                                                               \
    } while (0)

static void conditions(void) {
    COMPARE_EXCHANGE(uint8_t);
    COMPARE_EXCHANGE(uint16_t);
    COMPARE_EXCHANGE(uint32_t);
    COMPARE_EXCHANGE(uint64_t);
    CONDITION("o");
    CONDITION("no");
    CONDITION("b");
    CONDITION("ae");
    CONDITION("e");
    CONDITION("ne");
    CONDITION("be");
    CONDITION("a");
    CONDITION("s");
    CONDITION("ns");
    CONDITION("p");
    CONDITION("np");
    CONDITION("l");
    CONDITION("ge");
    CONDITION("le");
    CONDITION("g");
}

#define BIT(op)                                                                                    \
    do {                                                                                           \
        uint64_t a = edge(), f = 0, words[4] = {rnd(), rnd(), rnd(), rnd()};                       \
        int64_t index = (int64_t)(rnd() % 256) - 128;                                              \
        __asm__ volatile(WITH_FLAGS(op " %[i], %[a]")                                              \
                         : [a] "+r"(a), [f] "+q"(f)                                                \
                         : [i] "r"(index)                                                          \
                         : "cc", "memory");                                                        \
        mix(a);                                                                                    \
        mix(f & FLAG_CF);                                                                          \
        __asm__ volatile("mov %[at], %%rdi\n\t" WITH_FLAGS(op " %[i], (%%rdi)")                    \
                         : [f] "+q"(f)                                                             \
                         : [at] "r"(words + 2), [i] "r"(index)                                     \
                         : "rdi", "cc", "memory");                                                 \
        mix(f & FLAG_CF);                                                                          \
        mix_bytes(words, sizeof words);                                                            \
    } while (0)

static void bits(void) {
    BIT("bt");
    BIT("bts");
    BIT("btr");
    BIT("btc");
    uint64_t a = edge() | 1ull << (rnd() & 63), low, high, swapped = a;
    __asm__("bsf %1, %0" : "=r"(low) : "r"(a) : "cc");
    __asm__("bsr %1, %0" : "=r"(high) : "r"(a) : "cc");
    __asm__("bswap %0" : "+r"(swapped));
    mix(low);
    mix(high);
    mix(swapped);
    uint32_t swapped32 = (uint32_t)a;
    __asm__("bswap %0" : "+r"(swapped32));
    mix(swapped32);
}

static void widen(void) {
    uint64_t a = edge(), b, c, d, e;
    __asm__("movsbq %b1, %0" : "=r"(b) : "q"(a));
    __asm__("movswq %w1, %0" : "=r"(c) : "r"(a));
    __asm__("movslq %k1, %0" : "=r"(d) : "r"(a));
    __asm__("movzwl %w1, %k0" : "=r"(e) : "r"(a));
    mix(b ^ c << 1 ^ d << 2 ^ e << 3);
    __asm__("cbtw\n\tcwtl\n\tcltq\n\tcqto" : "+a"(a), "=d"(b));
    mix(a ^ b);
    __asm__("lea 0x1234(%1,%2,8), %0" : "=r"(c) : "r"(d), "r"(e));
    __asm__("lea -5(%k1,%k2,4), %k0" : "=r"(d) : "r"(a), "r"(e));
    mix(c);
    mix(d);
    uint64_t f = rnd() & FLAGS_ALL;
    __asm__ volatile(WITH_FLAGS("lahf\n\txor $0x55, %%ah\n\tsahf\n\tcmc")
                     : [f] "+r"(f)
                     :
                     : "rax", "cc", "memory");
    mix(f & FLAGS_ALL);
    static const unsigned char table[256] = {[3] = 9, [77] = 1, [255] = 200};
    __asm__("xlatb" : "+a"(a) : "b"(table) : "memory");
    mix(a & 0xFF);
}

uint64_t check_integer(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 2000; i++) {
        arithmetic();
        conditions();
        bits();
        widen();
    }
    return digest_end();
}
