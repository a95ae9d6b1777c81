/* Shifts, rotates, multiplication and division (Intel SDM 2, which flags stay undefined). */
#include "check.h"

/* The flags that a shift by `count` (already masked) leaves defined. */
static uint64_t shift_flags(unsigned count, unsigned bits) {
    uint64_t mask = FLAG_SF | FLAG_ZF | FLAG_PF;
    if (count == 0)
        return FLAGS_ALL;
    if (count < bits)
        mask |= FLAG_CF;
    return count == 1 ? mask | FLAG_OF : mask;
}

static uint64_t rotate_flags(unsigned count) {
    if (count == 0)
        return FLAGS_ALL;
    return count == 1 ? FLAGS_ALL : FLAGS_ALL & ~FLAG_OF;
}

#define BY_CL(op, type, flags)                                                                     \
    do {                                                                                           \
        type a = (type)edge();                                                                     \
        uint8_t count = (uint8_t)rnd();                                                            \
        unsigned size = sizeof(type) * 8, masked = count & (size == 64 ? 63 : 31);                 \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        (void)size;                                                                                \
        __asm__ volatile(WITH_FLAGS(op " %%cl, %[a]")                                              \
                         : [a] "+q"(a), [f] "+q"(f)                                                \
                         : "c"(count)                                                              \
                         : "cc", "memory");                                                        \
        mix(a);                                                                                    \
        mix(f & (flags));                                                                          \
    } while (0)

#define BY_ONE(op, type, flags)                                                                    \
    do {                                                                                           \
        type a = (type)edge();                                                                     \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile(WITH_FLAGS(op " $1, %[a]\n\t" op " $1, %[a]")                             \
                         : [a] "+q"(a), [f] "+q"(f)                                                \
                         :                                                                         \
                         : "cc", "memory");                                                        \
        mix(a);                                                                                    \
        mix(f & (flags));                                                                          \
    } while (0)

#define SIZES(op, flags, one)                                                                      \
    BY_CL(op, uint8_t, flags);                                                                     \
    BY_CL(op, uint16_t, flags);                                                                    \
    BY_CL(op, uint32_t, flags);                                                                    \
    BY_CL(op, uint64_t, flags);                                                                    \
    BY_ONE(op, uint8_t, one);                                                                      \
    BY_ONE(op, uint16_t, one);                                                                     \
    BY_ONE(op, uint32_t, one);                                                                     \
    BY_ONE(op, uint64_t, one)

#define DOUBLE(op, type, limit)                                                                    \
    do {                                                                                           \
        type a = (type)edge(), b = (type)edge();                                                   \
        uint8_t count = (uint8_t)(rnd() % (limit));                                                \
        uint64_t f = rnd() & FLAGS_ALL;                                                            \
        __asm__ volatile(WITH_FLAGS(op " %%cl, %[b], %[a]")                                        \
                         : [a] "+r"(a), [f] "+r"(f)                                                \
                         : [b] "r"(b), "c"(count)                                                  \
                         : "cc", "memory");                                                        \
        mix(a);                                                                                    \
        mix(f & shift_flags(count, sizeof(type) * 8));                                             \
    } while (0)

uint64_t check_shifts(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 2000; i++) {
        SIZES("shl", shift_flags(masked, size), FLAGS_LOGIC);
        SIZES("shr", shift_flags(masked, size), FLAGS_LOGIC);
        SIZES("sar", shift_flags(masked, 64), FLAGS_LOGIC);
        SIZES("rol", rotate_flags(masked), FLAGS_ALL);
        SIZES("ror", rotate_flags(masked), FLAGS_ALL);
        SIZES("rcl", rotate_flags(masked), FLAGS_ALL);
        SIZES("rcr", rotate_flags(masked), FLAGS_ALL);
        DOUBLE("shld", uint16_t, 16);
        DOUBLE("shld", uint32_t, 32);
        DOUBLE("shld", uint64_t, 64);
        DOUBLE("shrd", uint16_t, 16);
        DOUBLE("shrd", uint32_t, 32);
        DOUBLE("shrd", uint64_t, 64);
    }
    return digest_end();
}

#define WIDE(op, type)                                                                             \
    do {                                                                                           \
        type low = (type)edge(), high = 0, by = (type)edge();                                      \
        uint64_t f = 0;                                                                            \
        __asm__ volatile(WITH_FLAGS(op " %[by]")                                                   \
                         : "+a"(low), "+d"(high), [f] "+r"(f)                                      \
                         : [by] "r"(by)                                                            \
                         : "cc", "memory");                                                        \
        mix(low);                                                                                  \
        mix(high);                                                                                 \
        mix(f & (FLAG_CF | FLAG_OF));                                                              \
    } while (0)

#define TWO_OPERANDS(type)                                                                         \
    do {                                                                                           \
        type a = (type)edge(), b = (type)edge(), c;                                                \
        uint64_t f = 0;                                                                            \
        __asm__ volatile(WITH_FLAGS("imul %[b], %[a]")                                             \
                         : [a] "+r"(a), [f] "+r"(f)                                                \
                         : [b] "r"(b)                                                              \
                         : "cc", "memory");                                                        \
        __asm__("imul $-77, %1, %0" : "=r"(c) : "r"(b) : "cc");                                    \
        mix(a);                                                                                    \
        mix(c);                                                                                    \
        mix(f & (FLAG_CF | FLAG_OF));                                                              \
    } while (0)

/* Quotients that fit: the high half is below the divisor. */
#define DIVIDE(type)                                                                               \
    do {                                                                                           \
        type by = (type)(edge() | 1), high = (type)(edge() % by), low = (type)edge();              \
        __asm__("div %[by]" : "+a"(low), "+d"(high) : [by] "r"(by) : "cc");                        \
        mix(low);                                                                                  \
        mix(high);                                                                                 \
    } while (0)

#define DIVIDE_SIGNED(type, extend)                                                                \
    do {                                                                                           \
        type by = (type)(edge() | 2), low = (type)edge(), high;                                    \
        if (by == (type)-1)                                                                        \
            by = 3;                                                                                \
        __asm__(extend "\n\tidiv %[by]" : "+a"(low), "=&d"(high) : [by] "r"(by) : "cc");           \
        mix((uint64_t)low);                                                                        \
        mix((uint64_t)high);                                                                       \
    } while (0)

static void bytes(void) {
    uint16_t a = (uint16_t)edge(), b;
    uint8_t by = (uint8_t)(rnd() | 1);
    __asm__("mul %b1" : "+a"(a) : "q"(by) : "cc");
    mix(a);
    __asm__("imul %b1" : "+a"(a) : "q"(by) : "cc");
    mix(a);
    b = (uint16_t)(by * (rnd() & 0xFF) + rnd() % by);
    __asm__("div %b1" : "+a"(b) : "q"(by) : "cc");
    mix(b);
    b = (uint16_t)(int16_t)(int8_t)rnd();
    by |= 0x40;
    by &= 0x7F;
    __asm__("idiv %b1" : "+a"(b) : "q"(by) : "cc");
    mix(b);
}

uint64_t check_multiply(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 5000; i++) {
        WIDE("mul", uint16_t);
        WIDE("mul", uint32_t);
        WIDE("mul", uint64_t);
        WIDE("imul", uint16_t);
        WIDE("imul", uint32_t);
        WIDE("imul", uint64_t);
        TWO_OPERANDS(uint16_t);
        TWO_OPERANDS(uint32_t);
        TWO_OPERANDS(uint64_t);
        DIVIDE(uint16_t);
        DIVIDE(uint32_t);
        DIVIDE(uint64_t);
        DIVIDE_SIGNED(int16_t, "cwtd");
        DIVIDE_SIGNED(int32_t, "cltd");
        DIVIDE_SIGNED(int64_t, "cqto");
        bytes();
    }
    return digest_end();
}
