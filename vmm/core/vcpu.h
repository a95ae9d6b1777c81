/* One vCPU: an engine, its RAM, its run loop. Knows no Python. */
#ifndef RV_VCPU_H
#define RV_VCPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "census.h"
#include "engine.h"
#include "globals.h"
#include "largepages.h"
#include "tick.h"
#include "watch.h"

#define RV_MAX_REGIONS 8
#define RV_NO_DEADLINE INT64_MAX
#define RV_NO_VECTOR 256

/* Guest physical RAM [gpa, gpa + bytes), at `offset` of the host mapping. */
struct rv_region {
    uint64_t gpa, bytes, offset;
    uint64_t ram_addr; /* what the engine calls its first byte */
};

struct rv_cpuid_entry {
    uint32_t leaf, subleaf;
    uint32_t eax, ebx, ecx, edx;
};

/* An IN or OUT in translated code: the address its call returns to, and the guest's RIP. */
#define RV_IO_SITES 256
struct rv_io_site {
    uintptr_t retaddr;
    uint64_t rip;
};

/* Why rv_vcpu_run returned. */
enum rv_exit {
    RV_EXIT_DEADLINE = 1, /* the machine's next alarm is due */
    RV_EXIT_KICK,         /* rv_vcpu_kick was called */
    RV_EXIT_HALTED,       /* HLT with interrupts off: nothing can wake it */
    RV_EXIT_TRIPLE_FAULT,
    RV_EXIT_ENGINE, /* the engine refused to go on: rv_vcpu.why */
};

enum rv_msr_written { RV_MSR_NOT_OURS, RV_MSR_WRITTEN, RV_MSR_REFUSED /* #GP */ };

/* What the machine around the vCPU does; called on the vCPU's thread. */
struct rv_board {
    uint32_t (*port_in)(void *opaque, uint32_t port, int bytes);
    void (*port_out)(void *opaque, uint32_t port, int bytes, uint32_t value);
    uint32_t (*memory_in)(void *opaque, uint32_t offset); /* the word there on the chip's page */
    void (*memory_out)(void *opaque, uint32_t offset, uint32_t value);
    bool (*msr_in)(void *opaque, uint32_t index, uint64_t *value); /* false: not the board's */
    enum rv_msr_written (*msr_out)(void *opaque, uint32_t index, uint64_t value);
    bool (*priority_in)(void *opaque, uint32_t *value); /* CR8; false: not the board's */
    void (*priority_out)(void *opaque, uint32_t value);
    int (*acknowledge)(void *opaque); /* INTA: the vector, or -1 for none */
    void (*left)(void *opaque);       /* the guest does not run now: hand over what was held back */
    void *opaque;
};

struct rv_vcpu {
    uc_engine *uc;
    void *cpu, *env;
    uint8_t *ram;
    uint64_t ram_bytes;
    struct rv_region regions[RV_MAX_REGIONS];
    int region_count;
    uint64_t chip_page; /* where the board answers instead of open bus; 0 for nowhere */
    uint8_t *code_pages; /* a bit a page of RAM: holds translated code */
    struct rv_jumpcache *jumps;
    uint8_t *dirty_pages; /* the same: written since the last harvest; NULL while the log is off */
    struct rv_locals locals;
    struct rv_filling filling;
    struct rv_tick tick;
    struct rv_watch watch;
    struct rv_direct *direct; /* NULL: all is translated */
    struct rv_board board;
    struct rv_cpuid_entry *cpuid;
    int cpuid_count;
    struct rv_census census;
    struct rv_io_site io_sites[RV_IO_SITES];

    /* Shared with other threads: atomic access only. */
    uint32_t stop;      /* RV_STOP_* */
    uint32_t intr;      /* level of INTR */
    uint32_t nmi;       /* an NMI edge is pending */
    int64_t intr_since_ns; /* when INTR rose, or 0 */
    struct rv_lateness intr_late; /* how long interrupts waited for the guest to take them */
    int64_t deadline_ns; /* of the machine's next alarm, on CLOCK_MONOTONIC */
    int64_t linger_ns;   /* when the board wants `left` called at the latest */
    int64_t look_ns;     /* when the choice of the world is to be looked at */

    bool halted;
    bool triple_fault;
    bool gave_up; /* the engine could not go on; `why` says what it said */
    bool broken;  /* it gave up in the middle of something: never run it again */
    int pending_vector; /* an exception restored with the state, or RV_NO_VECTOR */
    uint32_t pending_error;
    bool pending_soft;
    uint64_t frozen_tsc;
    bool tsc_runs;
    char why[160];

    pthread_mutex_t runner_lock; /* held to signal the stub, or to leave it */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a halted vCPU waits here */
    pthread_t alarm;
    int alarm_fd;           /* the timer that the alarm thread waits for */
    int64_t alarm_until_ns; /* what it is set to */
    bool alarm_started, alarm_quit, running;
};

enum { RV_STOP_KICK = 1, RV_STOP_ALARM = 2 };

/* The vCPU that runs on this thread, for functions the engine calls without a context. */
extern _Thread_local struct rv_vcpu *rv_current __attribute__((tls_model("initial-exec")));

/* Where the guest stands: RIP with the base of CS. */
static inline uint64_t rv_linear_rip(const struct rv_vcpu *v)
{
    return RV_AT(v->env, ENV_SEGS + SEG_CS * 24 + 8, uint64_t) + RV_AT(v->env, ENV_EIP, uint64_t);
}

/* RAM is `ram_bytes` at `ram`, laid out by `regions`; everything else reads as ones and swallows
 * writes. NULL with a line in `why` on failure. */
struct rv_vcpu *rv_vcpu_new(uint8_t *ram, uint64_t ram_bytes, const struct rv_region *regions,
                            int region_count, char *why, size_t why_bytes);
void rv_vcpu_free(struct rv_vcpu *v);

/* Run until something needs the machine. The vCPU's thread alone. */
enum rv_exit rv_vcpu_run(struct rv_vcpu *v);

/* Any thread: rv_vcpu_run returns soon, now or when next called. */
void rv_vcpu_kick(struct rv_vcpu *v);

/* The next alarm, on CLOCK_MONOTONIC; RV_NO_DEADLINE for none. Any thread. */
void rv_vcpu_set_deadline(struct rv_vcpu *v, int64_t deadline_ns);

/* Make the engine look at `stop`, `intr` and `nmi` before its next block. Any thread. */
void rv_vcpu_ask(struct rv_vcpu *v);

/* Have `left` called within `ns` from now, however busy the guest. The vCPU's thread alone. */
void rv_vcpu_linger(struct rv_vcpu *v, int64_t ns);

/* Have the choice of the world looked at in `ns` from now (see direct.h). The vCPU's thread alone. */
void rv_vcpu_look(struct rv_vcpu *v, int64_t ns);

/* The level of INTR. Any thread. */
void rv_vcpu_set_intr(struct rv_vcpu *v, bool level);
void rv_vcpu_raise_nmi(struct rv_vcpu *v);
/* The guest takes the interrupt that INTR stands for. The vCPU's thread alone. */
void rv_vcpu_note_taken(struct rv_vcpu *v);

/* Bytes of translated code that are kept. Not while running. */
size_t rv_vcpu_code_bytes(const struct rv_vcpu *v);
/* Forget all translated code and give its memory back to the host. Not while running. */
void rv_vcpu_trim(struct rv_vcpu *v);

/* RESET pin: the architectural reset state, no translation kept. Not while running. */
void rv_vcpu_reset(struct rv_vcpu *v);

/* The guest's TSC stands still while it does not run. Not while running. */
void rv_vcpu_run_tsc(struct rv_vcpu *v, bool runs);
uint64_t rv_vcpu_tsc(const struct rv_vcpu *v);
void rv_vcpu_set_tsc(struct rv_vcpu *v, uint64_t tsc);

/* exceptions.c: install what delivers exceptions, system calls and interrupts. 0 or a uc_err. */
int rv_exceptions_attach(struct rv_vcpu *v);
/* cpuid.c. 0 or a uc_err. */
int rv_cpuid_attach(struct rv_vcpu *v);
/* Interposed (see engine.h): SYSCALL, and the engine's word for a triple fault. */
void rv_syscall(void *env, int bytes);
void rv_reset_request(void *uc);
/* surrender.c, interposed: where the engine would end the process, it ends the guest. */
void rv_cpu_abort(void *cpu, const char *format, ...);
void rv_process_abort(void);
void rv_process_exit(int status);
/* alarm.c */
int rv_alarm_start(struct rv_vcpu *v);
void rv_alarm_rearm_locked(struct rv_vcpu *v);
void rv_alarm_rest_locked(struct rv_vcpu *v);
void rv_alarm_stop(struct rv_vcpu *v);
int64_t rv_now_ns(void);

#endif
