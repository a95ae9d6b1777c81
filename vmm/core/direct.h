/*
 * Direct execution: guest user code on the processor itself, in a stub, instead of translated.
 *
 * The engine keeps the guest's kernel. Where it has gone to ring 3, the address space's record
 * says which world is faster for it; if that is the native one, the vCPU leaves the engine before
 * the first user instruction and resumes the registers in the space's stub. Whatever traps there
 * comes back: a page that the mirror can supply is supplied, everything else becomes the guest's
 * own exception, system call or interrupt, or is done again by the engine, which then judges.
 *
 * The vCPU's thread alone, except where it says otherwise.
 */
#ifndef RV_DIRECT_H
#define RV_DIRECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rv_vcpu;
struct rv_mirror;
struct rv_stub;
struct rv_stub_maker;

#define DIRECT_SPACES 8
#define DIRECT_RECORDS 64

/* What is known of the user code of one address space. Times are ticks of the host's TSC. */
struct rv_record {
    uint64_t cr3;
    int64_t missed;       /* what its stays in the engine would have saved, by estimate */
    int64_t credit;       /* what its native stays have saved, up to a limit; gone, it is translated */
    int64_t won;          /* what they have saved since it went native */
    int64_t toll;         /* average of what native stays took besides user code; 0: not known */
    int64_t stay;         /* average of a stay in the engine, as far as that is still known */
    uint32_t wait;        /* stays to translate, whatever they miss */
    uint32_t failures;    /* how often in a row its credit was used up */
    uint32_t watched;     /* so many stays more in the engine are all timed */
    uint32_t quiet;       /* `looks` when there was nothing to choose; 0: there may be */
    int64_t beside;       /* what it stayed in the engine for a CPUID on its pages; forgotten slowly */
    bool needs_cpuid;     /* that was more than a stub costs: one that traps CPUID is better */
};

struct rv_direct {
    /* What each way to ring 3 and back looks at, together. */
    struct rv_record *here;  /* of the address space whose user code runs or ran last */
    uint64_t entered;        /* when ring 3 was entered in the engine, or 0: not measured */
    uint64_t beside_since;   /* when user code went to the engine for a CPUID on its page, or 0 */
    uint32_t looks;          /* how many there have been, and one */
    uint32_t entries;
    bool in_ring3;           /* 64-bit user code runs in the engine */
    bool interrupted;        /* a native stay: it goes on unless the guest's kernel comes between */
    bool go;                 /* leave the engine before the next user instruction */
    bool stay_goes_on;       /* a native stay was interrupted, but not by the guest */
    struct rv_stub_maker *maker;
    struct rv_mirror *spaces[DIRECT_SPACES]; /* most recently used first */
    struct rv_record records[DIRECT_RECORDS];
    uint64_t write_epoch;    /* grows when no page may be writable in any stub */
    uint8_t *open_pages;     /* a bit a page of RAM: perhaps writable in some stub */
    bool cannot_trap_cpuid;  /* the processor: such pages stay in the engine */
    uint64_t ticks_a_us;
    int64_t stub_ticks;      /* what it took to make a stub, on average */
    uint32_t look_entries;   /* `entries` when a look was asked for; it comes unless 0 */
    uint32_t look;           /* a look is due: other threads write it */
    int64_t look_cpu_ns;     /* CPU time of the vCPU's thread when it was asked for */
    uint32_t tick_entries;   /* `entries` at the last hardware interrupt */
    int64_t tick_cpu_ns;
    uint32_t idle_looks;     /* in a row that found nothing */
    uint32_t coin;           /* not 0: the world is chosen at random (tests) */
    uint64_t stay_began, stay_running, stay_runs; /* of the native stay that is on */
    /* The page fault that the guest got last, and not yet came back from. */
    struct {
        struct rv_mirror *space; /* NULL: none */
        uint64_t address;
        bool write, fetch;
    } fault;
    struct rv_stub *running; /* the stub while it runs, or NULL: other threads read it */
    bool signalled; /* the runner has been interrupted since it was resumed */
    unsigned false_starts; /* in a row: it trapped before user code ran, and nobody wanted that */
    /* For the census: ticks, and numbers of stays and of traps */
    uint64_t native_ticks, switching_ticks, stays, traps;
};

/* Be ready to execute directly; `ram_fd` is the memfd behind RAM. 0, or -1 with a line in `why`. */
int rv_direct_start(struct rv_vcpu *v, int ram_fd, uint64_t tsc_hz, char *why, size_t why_bytes);
void rv_direct_stop(struct rv_vcpu *v);

/* Forget all mirrors: RAM, or the vCPU's state, is another one now. */
void rv_direct_forget(struct rv_vcpu *v);

/* The vCPU has left the engine for user code: run it. When it returns, the engine goes on. */
void rv_direct_run(struct rv_vcpu *v);

/* The engine has left ring 3, if it was there. */
void rv_direct_ring0(struct rv_vcpu *v);

/* A hardware interrupt is about to be delivered. */
void rv_direct_ticked(struct rv_vcpu *v);

/* The time for a look at user code that stays long has come: any thread; and, on the vCPU's, in
 * the engine between two blocks: whether to leave for the native world now. */
void rv_direct_look(struct rv_vcpu *v);
bool rv_direct_stays_long(struct rv_vcpu *v);

/* A stub may write this page of RAM from now on; and: no stub may, until it asks again. */
void rv_direct_opened(struct rv_vcpu *v, uint64_t page);
void rv_direct_close(struct rv_vcpu *v, uint64_t page);
void rv_direct_close_all(struct rv_vcpu *v);

/* Put the pages that stubs may write now into a bitmap, unless it is NULL; how many they are. */
size_t rv_direct_mark_open(const struct rv_vcpu *v, uint8_t *bitmap);

/* Any thread: if user code runs natively, have it come back. */
void rv_direct_interrupt(struct rv_vcpu *v);

/* ringdown.c, interposed (see engine.h): the ways down to ring 3. */
void rv_sysret(void *env, int dflag);
void rv_sysexit(void *env, int dflag);
void rv_iret(void *env, int shift, int next);

#endif
