/* MMX and SSE2 on integers. */
#include "check.h"

#include <emmintrin.h>
#include <string.h>

static __m128i random_vector(void) {
    uint64_t words[2] = {edge(), edge()};
    __m128i v;
    memcpy(&v, words, sizeof v);
    return v;
}

static void mix_vector(__m128i v) {
    uint64_t words[2];
    memcpy(words, &v, sizeof words);
    mix(words[0]);
    mix(words[1]);
}

#define PACKED(op)                                                                                 \
    do {                                                                                           \
        __m128i a = random_vector(), b = random_vector();                                          \
        uint64_t c = rnd(), d = rnd();                                                             \
        __asm__ volatile(op " %1, %0" : "+x"(a) : "x"(b));                                         \
        mix_vector(a);                                                                             \
        __asm__ volatile("movq %0, %%mm1\n\tmovq %1, %%mm6\n\t" op " %%mm6, %%mm1\n\tmovq %%mm1, %0" \
                         : "+m"(c)                                                                 \
                         : "m"(d)                                                                  \
                         : "mm1", "mm6");                                                          \
        mix(c);                                                                                    \
    } while (0)

#define WIDE_ONLY(op)                                                                              \
    do {                                                                                           \
        __m128i a = random_vector(), b = random_vector();                                          \
        __asm__ volatile(op " %1, %0" : "+x"(a) : "m"(b));                                         \
        mix_vector(a);                                                                             \
    } while (0)

/* By the low 64 bits of a register, and by a constant. */
#define SHIFT(op, by)                                                                              \
    do {                                                                                           \
        __m128i a = random_vector(), count = _mm_cvtsi64_si128((int64_t)(rnd() % 80));             \
        __asm__ volatile(op " %1, %0" : "+x"(a) : "x"(count));                                     \
        mix_vector(a);                                                                             \
        __asm__ volatile(op " $" #by ", %0" : "+x"(a));                                            \
        mix_vector(a);                                                                             \
    } while (0)

#define SHUFFLE(op, how)                                                                           \
    do {                                                                                           \
        __m128i a = random_vector(), b = random_vector();                                          \
        __asm__ volatile(op " $" #how ", %1, %0" : "+x"(a) : "x"(b));                              \
        mix_vector(a);                                                                             \
    } while (0)

static void packed(void) {
    PACKED("paddb");
    PACKED("paddw");
    PACKED("paddd");
    PACKED("paddq");
    PACKED("psubb");
    PACKED("psubw");
    PACKED("psubd");
    PACKED("psubq");
    PACKED("paddsb");
    PACKED("paddsw");
    PACKED("paddusb");
    PACKED("paddusw");
    PACKED("psubsb");
    PACKED("psubsw");
    PACKED("psubusb");
    PACKED("psubusw");
    PACKED("pmullw");
    PACKED("pmulhw");
    PACKED("pmulhuw");
    PACKED("pmuludq");
    PACKED("pmaddwd");
    PACKED("psadbw");
    PACKED("pavgb");
    PACKED("pavgw");
    PACKED("pminub");
    PACKED("pmaxub");
    PACKED("pminsw");
    PACKED("pmaxsw");
    PACKED("pcmpeqb");
    PACKED("pcmpeqw");
    PACKED("pcmpeqd");
    PACKED("pcmpgtb");
    PACKED("pcmpgtw");
    PACKED("pcmpgtd");
    PACKED("pand");
    PACKED("pandn");
    PACKED("por");
    PACKED("pxor");
    PACKED("packsswb");
    PACKED("packssdw");
    PACKED("packuswb");
    PACKED("punpcklbw");
    PACKED("punpcklwd");
    PACKED("punpckldq");
    PACKED("punpckhbw");
    PACKED("punpckhwd");
    PACKED("punpckhdq");
    WIDE_ONLY("punpcklqdq");
    WIDE_ONLY("punpckhqdq");
}

static void moved(void) {
    SHIFT("psllw", 3);
    SHIFT("pslld", 17);
    SHIFT("psllq", 63);
    SHIFT("psrlw", 15);
    SHIFT("psrld", 31);
    SHIFT("psrlq", 33);
    SHIFT("psraw", 16);
    SHIFT("psrad", 5);
    SHUFFLE("pshufd", 0x1B);
    SHUFFLE("pshuflw", 0x93);
    SHUFFLE("pshufhw", 0x4E);
    SHUFFLE("shufps", 0xC6);
    SHUFFLE("shufpd", 0x01);
    __m128i a = random_vector(), b = random_vector();
    unsigned mask;
    __asm__ volatile("pslldq $5, %0\n\tpsrldq $3, %1\n\tpor %1, %0" : "+x"(a), "+x"(b));
    mix_vector(a);
    __asm__("pmovmskb %1, %0" : "=r"(mask) : "x"(b));
    mix(mask);
    __asm__("pextrw $6, %1, %0" : "=r"(mask) : "x"(b));
    mix(mask);
    __asm__("pinsrw $3, %1, %0" : "+x"(a) : "r"(mask));
    mix_vector(a);
    __asm__("movmskps %1, %0" : "=r"(mask) : "x"(b));
    mix(mask);
}

/* Stores that go round the cache, and the byte-masked one. */
static void stores(void) {
    static __attribute__((aligned(16))) uint8_t target[64];
    __m128i a = random_vector(), b = random_vector();
    __asm__ volatile("movntdq %[a], (%[t])\n\tmovntiq %[r], 16(%[t])\n\tmovq %[b], 24(%[t])\n\t"
                     "movhps %[a], 32(%[t])\n\tmovss %[b], 40(%[t])\n\tsfence\n\t"
                     "lea 44(%[t]), %%rdi\n\tmaskmovdqu %[b], %[a]"
                     :
                     : [a] "x"(a), [b] "x"(b), [t] "r"(target), [r] "r"(rnd())
                     : "rdi", "memory");
    mix_bytes(target, sizeof target);
}

uint64_t check_vector_int(unsigned rounds) {
    for (unsigned i = 0; i < rounds * 800; i++) {
        packed();
        moved();
        stores();
    }
    __asm__ volatile("emms");
    return digest_end();
}
