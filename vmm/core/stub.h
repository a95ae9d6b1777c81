/*
 * The stub: what runs guest user code. Knows neither guests' page tables nor the engine.
 *
 * A stub is two processes in one address space that holds guest pages, and a window of a few
 * pages of ours. The *runner* executes guest code; whatever traps in it becomes a signal, whose
 * handler asks the VMM by a system call that its seccomp filter turns into a notification: while
 * it waits the kernel holds it, which guest code cannot feign. The *mapper* makes the mappings
 * that the VMM wrote down on a page that is read-only there; it uses registers alone.
 *
 * The window, from its base:
 *
 *     page 0      text        r-x  handler, resume, mapper
 *     page 1      commands    r--  the mapper's; the VMM writes them
 *     page 2      registers   rw-  what the runner resumes with: hostile
 *     pages 3-8   signals     rw-  the runner's signal stack: hostile
 */
#ifndef RV_STUB_H
#define RV_STUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STUB_PAGE 4096u
#define STUB_COMMANDS 1u
#define STUB_REGISTERS 2u
#define STUB_SIGNALS 3u
#define STUB_PAGES 9u
#define STUB_BYTES (STUB_PAGES * STUB_PAGE)
#define STUB_SIGNAL_BYTES ((STUB_PAGES - STUB_SIGNALS) * STUB_PAGE)
#define STUB_USER_END 0x7ffffffff000u /* of what Linux lets a process map */

/* A system call for the mapper. */
struct rv_stub_command {
    uint64_t number, args[6], unused;
};
#define STUB_MAX_COMMANDS 63u

struct rv_stub_commands {
    uint64_t count, unused[7];
    struct rv_stub_command list[STUB_MAX_COMMANDS];
};

/* The registers page. The text of the stub knows these offsets. */
struct rv_stub_registers {
    uint64_t gpr[16]; /* in the numbering of instructions; rsp is in the frame of IRET */
    uint64_t rip, cs, rflags, rsp, ss;
    uint64_t fs_base, gs_base;
    uint64_t ds, es, fs, gs; /* selectors, told only */
    uint64_t reload; /* not 0: load ds, es, fs and gs, too */
    uint64_t stack; /* where a signal that comes in the handler has its frame: below the first one */
    uint64_t unused[3];
    uint8_t fx[512] __attribute__((aligned(64))); /* XSAVE: legacy region and header */
    uint64_t xstate[8];
};
_Static_assert(sizeof(struct rv_stub_commands) == STUB_PAGE, "a page of commands");
_Static_assert(__builtin_offsetof(struct rv_stub_registers, fx) == 256, "known to the text");

/* Why the runner stands still. */
struct rv_stub_trap {
    int signal;       /* 0: nothing has happened since it was resumed */
    uint32_t arch;    /* SIGSYS: AUDIT_ARCH_* */
    uint64_t call_at; /* SIGSYS: where the call was made */
    uint64_t vector, error, cr2; /* of the exception behind another signal */
    uint64_t gpr[16], rip, cs, rflags;
    uint8_t fx[512];
};

struct rv_stub {
    uint64_t base;    /* of the window */
    int listener;     /* seccomp notifications of both processes */
    int runner, mapper;
    int runner_fd;    /* a pidfd */
    bool traps_cpuid; /* CPUID traps, so any page may be executed */
    uint64_t runner_ask, mapper_ask; /* notifications that wait for an answer; 0 for none */
    struct rv_stub_commands *commands; /* the window, as the VMM sees it */
    struct rv_stub_registers *registers;
    uint8_t *signals;
    uint64_t frame, info, fx; /* offsets in `signals`: the first frame's ucontext_t, siginfo_t, FPU */
};

/* The process that forks stubs: small, single-threaded, and confined already. */
struct rv_stub_maker {
    int pid, socket;
};

/* Start a maker of stubs that map the memfd `ram_fd`. NULL with a line in `why` where the machine
 * or the container does not let one work. */
struct rv_stub_maker *rv_stub_maker_start(int ram_fd, char *why, size_t why_bytes);
void rv_stub_maker_stop(struct rv_stub_maker *maker);

/* An empty address space with the window at `base`. NULL when it cannot be had. With `trap_cpuid`
 * CPUID traps where the processor can do that; in a virtual machine, switches take longer then. */
struct rv_stub *rv_stub_new(struct rv_stub_maker *maker, uint64_t base, bool trap_cpuid);
void rv_stub_free(struct rv_stub *stub);

/* Have the mapper perform what `commands` lists. 0, or -1 when one failed or the stub is gone. */
int rv_stub_map(struct rv_stub *stub);

/* Resume the runner with what `registers` holds and wait until it traps. 0, or -1: it is gone. */
int rv_stub_run(struct rv_stub *stub, struct rv_stub_trap *trap);

/* Any thread: make the runner trap, now or when it is resumed next, unless it has been `told`. If it is
 * gone, whoever waits for it finds out. */
void rv_stub_interrupt(struct rv_stub *stub, bool told);

/* stub_text.c: the text page, and where the addresses of its system calls lie in it. */
extern const uint8_t rv_stub_text[], rv_stub_handler[], rv_stub_runner_asked[],
    rv_stub_mapper[], rv_stub_mapper_asked[], rv_stub_mapper_called[], rv_stub_text_end[];

/* What the maker's descriptors are, in it and in its children. */
enum { MAKER_SOCKET, MAKER_RAM, MAKER_TEXT, MAKER_DESCRIPTORS };
#define STUB_RAM_FD MAKER_RAM

#endif
