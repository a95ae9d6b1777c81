#define _GNU_SOURCE
#include "vcpu.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "chipmem.h"
#include "codepages.h"
#include "direct.h"
#include "dirtylog.h"
#include "flags.h"
#include "jumpcache.h"

/* TCG's address width (its CPUID leaf 0x80000008): everything below is RAM or open bus. */
#define PHYSICAL_LIMIT ((uint64_t)1 << 40)
/* Translated code. Measured: booting Debian makes 35 MB, and with a buffer of 16 MB, where all is
 * made anew when it is full, takes a tenth longer. An idle machine gives it back: rv_vcpu_trim. */
#define CODE_BUFFER_BYTES (64u << 20)


_Thread_local struct rv_vcpu *rv_current;

const int64_t rv_lateness_bounds_ns[] = {500000, 2000000, 10000000, 50000000, 200000000};

static uc_err map_memory(struct rv_vcpu *v)
{
    uint64_t end = 0;
    uc_err err = UC_ERR_OK;
    for (int i = 0; i < v->region_count && !err; i++) {
        struct rv_region *r = &v->regions[i];
        err = (uc_err)rv_chipmem_map(v, end, r->gpa);
        if (!err)
            err = rv_engine.uc_mem_map_ptr(v->uc, r->gpa, r->bytes, UC_PROT_ALL, v->ram + r->offset);
        end = r->gpa + r->bytes;
    }
    if (!err)
        err = (uc_err)rv_chipmem_map(v, end, PHYSICAL_LIMIT);
    for (int i = 0; i < v->region_count && !err; i++) {
        struct rv_region *r = &v->regions[i];
        r->ram_addr = rv_engine.ram_addr_from_host(v->uc, v->ram + r->offset);
    }
    return err;
}

/* Code that runs a few hundred times a second is out of the caches each time. With large pages, at
 * least its addresses are not. */
static void use_large_pages(const struct rv_vcpu *v)
{
    void *tcg = RV_AT(v->uc, UC_TCG, void *);
    uintptr_t first = RV_AT(tcg, TCG_CODE_BUFFER, uintptr_t), page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t end = first + RV_AT(tcg, TCG_CODE_BUFFER_BYTES, size_t);
    first &= ~(page - 1);
    (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
}

static uc_err open_engine(struct rv_vcpu *v)
{
    uc_err err = rv_engine.uc_open(UC_ARCH_X86, UC_MODE_64, &v->uc);
    if (!err)
        err = rv_engine.uc_ctl(v->uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), CODE_BUFFER_BYTES);
    /* No address at which to stop: the set of exits is in use, and empty. */
    if (!err)
        err = rv_engine.uc_ctl(v->uc, UC_CTL_WRITE(UC_CTL_UC_USE_EXITS, 1), 1);
    if (!err)
        err = map_memory(v);
    if (err)
        return err;
    RV_AT(v->uc, UC_NO_EXIT_REQUEST, uint8_t) = 1;
    v->cpu = rv_cpu_of(v->uc);
    v->env = rv_env_of(v->uc);
    use_large_pages(v);
    if (rv_codepages_attach(v) || rv_jumpcache_attach(v) ||
        rv_collapse_attach(&v->filling.collapse, v->ram, v->ram_bytes))
        return UC_ERR_NOMEM;
    err = (uc_err)rv_exceptions_attach(v);
    return err ? err : (uc_err)rv_cpuid_attach(v);
}

struct rv_vcpu *rv_vcpu_new(uint8_t *ram, uint64_t ram_bytes, const struct rv_region *regions,
                            int region_count, char *why, size_t why_bytes)
{
    struct rv_vcpu *v = calloc(1, sizeof(*v));
    if (!v) {
        snprintf(why, why_bytes, "out of memory");
        return NULL;
    }
    v->ram = ram;
    v->ram_bytes = ram_bytes;
    v->region_count = region_count;
    memcpy(v->regions, regions, (size_t)region_count * sizeof(*regions));
    v->deadline_ns = v->linger_ns = v->look_ns = v->alarm_until_ns = RV_NO_DEADLINE;
    v->tick.deadline_ns = RV_NO_DEADLINE;
    v->pending_vector = RV_NO_VECTOR;
    pthread_mutex_init(&v->lock, NULL);
    pthread_mutex_init(&v->runner_lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&v->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    uc_err err = open_engine(v);
    if (err) {
        snprintf(why, why_bytes, "Unicorn cannot make this vCPU: %s", rv_engine.uc_strerror(err));
    } else if (rv_alarm_start(v)) {
        snprintf(why, why_bytes, "cannot start the vCPU's alarm thread: %s", strerror(errno));
    } else {
        rv_vcpu_reset(v);
        return v;
    }
    rv_vcpu_free(v);
    return NULL;
}

void rv_vcpu_free(struct rv_vcpu *v)
{
    rv_alarm_stop(v);
    rv_direct_stop(v);
    if (v->uc)
        rv_engine.uc_close(v->uc);
    rv_codepages_detach(v);
    rv_jumpcache_detach(v);
    rv_collapse_detach(&v->filling.collapse);
    rv_dirtylog_stop(v);
    rv_census_free(&v->census);
    pthread_cond_destroy(&v->wake);
    pthread_mutex_destroy(&v->lock);
    pthread_mutex_destroy(&v->runner_lock);
    free(v->cpuid);
    free(v);
}

static void flush_code(struct rv_vcpu *v)
{
    memset(v->io_sites, 0, sizeof(v->io_sites));
    rv_jumpcache_forget(v);
    rv_engine.tb_flush(v->cpu);
}

void rv_vcpu_reset(struct rv_vcpu *v)
{
    rv_direct_forget(v);
    rv_collapse_forget(&v->filling.collapse);
    rv_engine.cpu_reset(v->cpu);
    /* The engine starts user-mode programs too, with these on; a processor does not. */
    rv_engine.update_cr4(v->env, 0);
    rv_engine.set_a20(v->cpu, 1);
    flush_code(v);
    rv_engine.tlb_flush(v->cpu);
    v->halted = v->triple_fault = v->gave_up = false;
    v->pending_vector = RV_NO_VECTOR;
    __atomic_store_n(&v->nmi, 0, __ATOMIC_SEQ_CST);
    rv_vcpu_set_tsc(v, 0);
}

size_t rv_vcpu_code_bytes(const struct rv_vcpu *v)
{
    void *tcg = RV_AT(v->uc, UC_TCG, void *);
    return (size_t)(RV_AT(tcg, TCG_CODE_NEXT, char *) - RV_AT(tcg, TCG_CODE_BUFFER, char *));
}

void rv_vcpu_trim(struct rv_vcpu *v)
{
    void *tcg = RV_AT(v->uc, UC_TCG, void *);
    flush_code(v);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t next = RV_AT(tcg, TCG_CODE_NEXT, uintptr_t);
    uintptr_t end = RV_AT(tcg, TCG_CODE_BUFFER, uintptr_t) + RV_AT(tcg, TCG_CODE_BUFFER_BYTES, size_t);
    uintptr_t first = (next + page - 1) & ~(page - 1), last = end & ~(page - 1);
    if (first < last)
        madvise((void *)first, last - first, MADV_DONTNEED);
    malloc_trim(0);
}

uint64_t rv_vcpu_tsc(const struct rv_vcpu *v)
{
    return v->tsc_runs ? __rdtsc() + RV_AT(v->env, ENV_TSC_OFFSET, uint64_t) : v->frozen_tsc;
}

void rv_vcpu_set_tsc(struct rv_vcpu *v, uint64_t tsc)
{
    v->frozen_tsc = tsc;
    RV_AT(v->env, ENV_TSC_OFFSET, uint64_t) = tsc - __rdtsc();
}

void rv_vcpu_run_tsc(struct rv_vcpu *v, bool runs)
{
    uint64_t tsc = rv_vcpu_tsc(v);
    v->tsc_runs = runs;
    rv_vcpu_set_tsc(v, tsc);
    rv_tick_run(v, runs);
}

void rv_vcpu_ask(struct rv_vcpu *v)
{
    __atomic_or_fetch(&RV_AT(v->cpu, CPU_INTERRUPT_REQUEST, uint32_t), CPU_INTERRUPT_HARD,
                      __ATOMIC_SEQ_CST);
    uint16_t *decrementer = RV_AT(v->cpu, CPU_ICOUNT_DECR, uint16_t *);
    __atomic_store_n(decrementer + 1, 0xffff, __ATOMIC_SEQ_CST);
    rv_direct_interrupt(v);
}

static void wake_up(struct rv_vcpu *v)
{
    rv_vcpu_ask(v);
    pthread_mutex_lock(&v->lock);
    pthread_cond_signal(&v->wake);
    pthread_mutex_unlock(&v->lock);
}

void rv_vcpu_kick(struct rv_vcpu *v)
{
    __atomic_or_fetch(&v->stop, RV_STOP_KICK, __ATOMIC_SEQ_CST);
    wake_up(v);
}

void rv_vcpu_set_intr(struct rv_vcpu *v, bool level)
{
    uint32_t was = __atomic_exchange_n(&v->intr, level, __ATOMIC_SEQ_CST);
    if (!level)
        return;
    if (!was)
        __atomic_store_n(&v->intr_since_ns, rv_now_ns(), __ATOMIC_RELAXED);
    if (!was && rv_current != v)
        wake_up(v);
    else
        rv_vcpu_ask(v);
}

void rv_vcpu_note_taken(struct rv_vcpu *v)
{
    int64_t since = __atomic_exchange_n(&v->intr_since_ns, 0, __ATOMIC_RELAXED);
    if (!since)
        return;
    rv_lateness_count(&v->intr_late, rv_now_ns() - since);
}

void rv_vcpu_raise_nmi(struct rv_vcpu *v)
{
    __atomic_store_n(&v->nmi, 1, __ATOMIC_SEQ_CST);
    wake_up(v);
}

void rv_vcpu_set_deadline(struct rv_vcpu *v, int64_t deadline_ns)
{
    pthread_mutex_lock(&v->lock);
    bool earlier = deadline_ns < v->deadline_ns;
    __atomic_store_n(&v->deadline_ns, deadline_ns, __ATOMIC_SEQ_CST);
    rv_alarm_rearm_locked(v);
    if (earlier && rv_current != v)
        pthread_cond_signal(&v->wake);
    pthread_mutex_unlock(&v->lock);
}

void rv_vcpu_linger(struct rv_vcpu *v, int64_t ns)
{
    pthread_mutex_lock(&v->lock);
    v->linger_ns = rv_now_ns() + ns;
    rv_alarm_rearm_locked(v);
    pthread_mutex_unlock(&v->lock);
}

void rv_vcpu_look(struct rv_vcpu *v, int64_t ns)
{
    pthread_mutex_lock(&v->lock);
    v->look_ns = rv_now_ns() + ns;
    rv_alarm_rearm_locked(v);
    pthread_mutex_unlock(&v->lock);
}

static bool deadline_passed(struct rv_vcpu *v)
{
    int64_t deadline = __atomic_load_n(&v->deadline_ns, __ATOMIC_SEQ_CST);
    return deadline != RV_NO_DEADLINE && rv_now_ns() >= deadline;
}

static bool interruptible(const struct rv_vcpu *v)
{
    return RV_AT(v->env, ENV_EFLAGS, uint64_t) & RFLAGS_IF;
}

static bool nmi_blocked(const struct rv_vcpu *v)
{
    return RV_AT(v->env, ENV_HFLAGS2, uint32_t) & HF2_NMI;
}

/* Sleep in HLT. 0 when the vCPU runs on, or why the machine is needed. */
static enum rv_exit sleep_halted(struct rv_vcpu *v)
{
    enum rv_exit exit = 0;
    pthread_mutex_lock(&v->lock);
    rv_alarm_rest_locked(v);
    for (;;) {
        uint32_t stop = __atomic_load_n(&v->stop, __ATOMIC_SEQ_CST);
        if (stop & RV_STOP_KICK) {
            exit = RV_EXIT_KICK;
            break;
        }
        if (__atomic_load_n(&v->nmi, __ATOMIC_SEQ_CST) && !nmi_blocked(v))
            break;
        if (!interruptible(v)) {
            exit = RV_EXIT_HALTED;
            break;
        }
        (void)rv_tick_look_locked(v, rv_now_ns());
        if (__atomic_load_n(&v->intr, __ATOMIC_SEQ_CST))
            break;
        if (deadline_passed(v)) {
            exit = RV_EXIT_DEADLINE;
            break;
        }
        int64_t next_ns = v->deadline_ns < v->tick.deadline_ns ? v->deadline_ns
                                                               : v->tick.deadline_ns;
        if (next_ns == RV_NO_DEADLINE) {
            pthread_cond_wait(&v->wake, &v->lock);
        } else {
            struct timespec until = {.tv_sec = next_ns / 1000000000,
                                     .tv_nsec = next_ns % 1000000000};
            pthread_cond_timedwait(&v->wake, &v->lock, &until);
        }
    }
    pthread_mutex_unlock(&v->lock);
    return exit;
}

static void set_running(struct rv_vcpu *v, bool running)
{
    pthread_mutex_lock(&v->lock);
    v->running = running;
    if (running)
        rv_alarm_rearm_locked(v);
    else
        v->linger_ns = RV_NO_DEADLINE;
    pthread_mutex_unlock(&v->lock);
}

static enum rv_exit stopped(struct rv_vcpu *v)
{
    uint32_t stop = __atomic_exchange_n(&v->stop, 0, __ATOMIC_SEQ_CST);
    if (stop & RV_STOP_KICK)
        return RV_EXIT_KICK;
    return deadline_passed(v) ? RV_EXIT_DEADLINE : 0;
}

/* In the engine and, where user code runs directly, out of it and back. */
static enum rv_exit run_guest(struct rv_vcpu *v)
{
    uc_err err;
    set_running(v, true);
    for (;;) {
        rv_vcpu_ask(v);
        err = rv_engine.uc_emu_start(v->uc, RV_AT(v->env, ENV_EIP, uint64_t), 0, 0, 0);
        if (err || v->triple_fault || v->gave_up || !v->direct || !v->direct->go)
            break;
        rv_direct_run(v);
    }
    set_running(v, false);
    v->board.left(v->board.opaque);
    if (v->triple_fault)
        return RV_EXIT_TRIPLE_FAULT;
    if (v->gave_up)
        return RV_EXIT_ENGINE;
    if (err) {
        snprintf(v->why, sizeof(v->why), "the translator gave up: %s", rv_engine.uc_strerror(err));
        return RV_EXIT_ENGINE;
    }
    v->halted = RV_AT(v->cpu, CPU_HALTED, uint32_t);
    if (v->halted)
        rv_census_count(&v->census, RV_HLT, 0, rv_linear_rip(v) - 1);
    return 0;
}

enum rv_exit rv_vcpu_run(struct rv_vcpu *v)
{
    enum rv_exit exit = v->broken ? RV_EXIT_ENGINE : stopped(v);
    rv_current = v;
    while (!exit) {
        if (v->halted) {
            exit = sleep_halted(v);
            if (exit)
                break;
            v->halted = false;
        }
        exit = run_guest(v);
        if (!exit)
            exit = stopped(v);
    }
    rv_current = NULL;
    if (exit == RV_EXIT_KICK)
        __atomic_and_fetch(&v->stop, ~(uint32_t)RV_STOP_KICK, __ATOMIC_SEQ_CST);
    return exit;
}
