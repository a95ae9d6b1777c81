/* What user code can see of its processor: every fault, trap, signal and mapping, printed as
 * plain lines. The same binary must print the same text on any x86-64 and any Linux, native or in
 * a VM; whatever depends on the processor's model, on time or on addresses is left out. */
#ifndef RING3_H
#define RING3_H

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

/* Sections. Each may run again and again in one process. */
void ring3_privileged(void);
void ring3_undefined(void);
void ring3_int_n(void);
void ring3_popf(void);
void ring3_pages(void);
void ring3_addresses(void);
void ring3_mappings(void);
void ring3_large(void);
void ring3_stack(void);
void ring3_fixups(void);
void ring3_contexts(void);
void ring3_nested(void);
void ring3_x87(void);
void ring3_sse(void);
void ring3_fpu_switch(void);
void ring3_steps(void);
void ring3_breakpoints(void);
void ring3_tracing(void);
void ring3_watch(void);
void ring3_threads(void);
void ring3_bases(void);
void ring3_futex(void);
void ring3_jit(void);
void ring3_aliases(void);
void ring3_segments(void);
void ring3_ldt(void);
void ring3_compat(void);
void ring3_vsyscall(void);
void ring3_clocks(void);
void ring3_forks(void);
void ring3_jumps(void);

/* What processors do and translators need not: no part of a comparison with one. */
void ring3_exact_alignment(void);
void ring3_exact_compat(void);
void ring3_exact_int_6(void);
void ring3_exact_instructions(void);
void ring3_exact_segments(void);
void ring3_exact_stack(void);
void ring3_exact_x87(void);
void ring3_exact_sse(void);
void ring3_exact_watch(void);

/* A line of the section's text, without its end. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The last signal that TRY caught; `signal` is 0 if there was none. */
struct caught {
    int signal, code;
    uint64_t address;
    greg_t regs[NGREG];
};
extern struct caught caught;
extern sigjmp_buf caught_back;
extern volatile sig_atomic_t caught_armed;

/* Runs statements; a fault in them ends them and is noted in `caught`. No local variable changes
 * between the two, so none can be clobbered. */
#pragma GCC diagnostic ignored "-Wclobbered"
#define TRY(...)                                                                                   \
    do {                                                                                           \
        caught.signal = 0;                                                                         \
        if (!sigsetjmp(caught_back, 1)) {                                                          \
            caught_armed = 1;                                                                      \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
        caught_armed = 0;                                                                          \
    } while (0)

/* A line about `caught`: signal, si_code, trap, error code, and the address less `base`. */
void say_caught(const char *name, uint64_t base);

/* "SIGSEGV" and the like. */
const char *signal_name(int number);

/* Catch faults on a stack of their own, as every section starts with. */
void catch_faults(void);

/* Where `run_code` puts its bytes: the start of a page that can be written and run. */
#define CODE_AT 0x20000000ul
/* Runs bytes with all registers but RSP zero; faults end it as TRY does. Gives RAX. */
uint64_t run_code(const void *bytes, size_t count);

/* Keep the storm's timers away for code that bears no signal; not nested. */
void quiet_begin(void);
void quiet_end(void);

/* A word in shared memory that says whose turn it is. */
void turn_wait(uint32_t *turn, uint32_t wanted);
void turn_pass(uint32_t *turn);

/* Ends the process with a line that names file and line. */
_Noreturn void broken(const char *file, int line, const char *what);
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            broken(__FILE__, __LINE__, #condition);                                                \
    } while (0)

/* FNV-1a over bytes. */
uint64_t digest(const void *bytes, size_t count);

#define PAGE 4096ul
/* How this program was started, and the 32-bit program that lies beside it. */
extern const char *program_path;

#endif
