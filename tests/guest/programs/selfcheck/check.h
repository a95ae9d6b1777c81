/* A check that a CPU loses nothing: each section runs instructions whose result the manuals
 * define, and folds every result into a digest. The same binary must print the same text on
 * any x86-64, real or translated; what a manual leaves undefined never enters a digest. */
#ifndef SELFCHECK_H
#define SELFCHECK_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t (*check_fn)(unsigned rounds);

/* Sections: the digest of `rounds` rounds. Each starts from the same seed. */
uint64_t check_integer(unsigned rounds);
uint64_t check_shifts(unsigned rounds);
uint64_t check_multiply(unsigned rounds);
uint64_t check_legacy(unsigned rounds);
uint64_t check_x87(unsigned rounds);
uint64_t check_vector_int(unsigned rounds);
uint64_t check_vector_float(unsigned rounds);
uint64_t check_strings(unsigned rounds);
uint64_t check_locks(unsigned rounds);
uint64_t check_faults(unsigned rounds);
uint64_t check_traps(unsigned rounds);
uint64_t check_memory(unsigned rounds);
uint64_t check_signals(unsigned rounds);
uint64_t check_timers(unsigned rounds);
uint64_t check_steps(unsigned rounds);
uint64_t check_processes(unsigned rounds);
uint64_t check_pipes(unsigned rounds);
uint64_t check_calls(unsigned rounds);
uint64_t check_code(unsigned rounds);

/* How this program was started, for the section that starts it again. */
extern const char *program_path;

/* A word into the digest. */
void mix(uint64_t value);
/* Bytes into the digest. */
void mix_bytes(const void *bytes, size_t count);
/* Begin a digest and the random sequence; read the digest. */
void digest_start(uint64_t seed);
uint64_t digest_end(void);
/* The next number of the sequence; `edge` prefers the values where carries and signs turn. */
uint64_t rnd(void);
uint64_t edge(void);

/* Ends the program with a line that names the section's file and line. */
_Noreturn void broken(const char *file, int line, const char *what);
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            broken(__FILE__, __LINE__, #condition);                                                \
    } while (0)

#define FLAG_CF 0x001u
#define FLAG_PF 0x004u
#define FLAG_AF 0x010u
#define FLAG_ZF 0x040u
#define FLAG_SF 0x080u
#define FLAG_OF 0x800u
#define FLAGS_ALL (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)
#define FLAGS_LOGIC (FLAGS_ALL & ~FLAG_AF)
#define PAGE 4096u

/* Instruction text that sets the flags before and reads them after; operand `f` holds them. */
#define WITH_FLAGS(text) "push %q[f]\n\tpopfq\n\t" text "\n\tpushfq\n\tpop %q[f]"

#endif
