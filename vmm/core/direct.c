#include "direct.h"

#include <linux/audit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "choice.h"
#include "exceptions.h"
#include "flags.h"
#include "mirror.h"
#include "vcpu.h"
#include "world.h"

#define VECTOR_DE 0
#define VECTOR_DB 1
#define VECTOR_BP 3
#define VECTOR_OF 4
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_MF 16
#define VECTOR_AC 17
#define VECTOR_XM 19
#define DR6_BS 0x4000u
#define EFER_NXE 0x800u
#define PML4_BYTES ((uint64_t)1 << 39)
/* Where windows are put: high in the lower half, where few programs map anything. */
#define FIRST_WINDOW_SLOT 64u
#define LAST_WINDOW_SLOT 250u
#define MOST_FALSE_STARTS 16u
#define OPCODE_INT3 0xccu
#define OPCODE_ICEBP 0xf1u
#define OPCODE_INT 0xcdu

/* What is to be done after a trap. */
enum next {
    NATIVE, /* resume the stub */
    ENGINE, /* the engine goes on from here: to deliver what is pending, or to do it itself */
};

/* --- Address spaces -------------------------------------------------------------------------- */

static void drop_space(struct rv_vcpu *v, int index)
{
    struct rv_direct *d = v->direct;
    d->fault.space = NULL;
    rv_mirror_free(d->spaces[index]);
    memmove(&d->spaces[index], &d->spaces[index + 1],
            (size_t)(DIRECT_SPACES - 1 - index) * sizeof(d->spaces[0]));
    d->spaces[DIRECT_SPACES - 1] = NULL;
}

/* A place for the window where the guest has nothing at all, or 0. */
static uint64_t place_window(struct rv_vcpu *v, uint64_t cr3)
{
    for (unsigned tries = 0; tries < LAST_WINDOW_SLOT - FIRST_WINDOW_SLOT; tries++) {
        unsigned slots = LAST_WINDOW_SLOT - FIRST_WINDOW_SLOT;
        uint64_t slot = FIRST_WINDOW_SLOT + (rv_choice_random(v->direct) + tries) % slots;
        uint64_t base = slot * PML4_BYTES +
                        ((uint64_t)(rv_choice_random(v->direct) & 0x3ffff) << 21);
        struct rv_walk w;
        if (rv_walk(v, cr3, base, false, false, &w) == WALK_FAULT && w.last == 0)
            return base;
    }
    return 0;
}

static bool shall_trap_cpuid(const struct rv_direct *d)
{
    return d->here->needs_cpuid && !d->cannot_trap_cpuid;
}

static struct rv_stub *make_stub(struct rv_direct *d, uint64_t base, bool trap_cpuid)
{
    uint64_t before = __rdtsc();
    struct rv_stub *stub = rv_stub_new(d->maker, base, trap_cpuid);
    int64_t took = (int64_t)(__rdtsc() - before);
    d->stub_ticks = d->stub_ticks ? d->stub_ticks + (took - d->stub_ticks) / 4 : took;
    return stub;
}

static struct rv_mirror *new_space(struct rv_vcpu *v, uint64_t cr3)
{
    struct rv_direct *d = v->direct;
    uint64_t base = place_window(v, cr3);
    bool trap_cpuid = shall_trap_cpuid(d);
    if (d->spaces[DIRECT_SPACES - 1]) {
        rv_choice_forget(d, d->spaces[DIRECT_SPACES - 1]->cr3);
        drop_space(v, DIRECT_SPACES - 1);
    }
    struct rv_stub *stub = base ? make_stub(d, base, trap_cpuid) : NULL;
    if (stub && trap_cpuid && !stub->traps_cpuid)
        d->cannot_trap_cpuid = true;
    struct rv_mirror *m = stub ? rv_mirror_new(v, stub, cr3) : NULL;
    if (!m && stub)
        rv_stub_free(stub);
    return m;
}

/* The space of `cr3`, first in the list now; NULL when it cannot be had. */
static struct rv_mirror *use_space(struct rv_vcpu *v, uint64_t cr3)
{
    struct rv_direct *d = v->direct;
    int i = 0;
    while (i < DIRECT_SPACES && d->spaces[i] && d->spaces[i]->cr3 != cr3)
        i++;
    struct rv_mirror *m = i < DIRECT_SPACES ? d->spaces[i] : NULL;
    if (m && m->stub->traps_cpuid != shall_trap_cpuid(d)) {
        drop_space(v, i);
        m = NULL;
    }
    if (!m) {
        m = new_space(v, cr3);
        if (!m)
            return NULL;
        i = DIRECT_SPACES - 1;
    }
    memmove(&d->spaces[1], &d->spaces[0], (size_t)i * sizeof(d->spaces[0]));
    d->spaces[0] = m;
    return m;
}

static void lose_space(struct rv_vcpu *v)
{
    drop_space(v, 0);
    rv_choice_ban(v->direct->here);
}

void rv_direct_forget(struct rv_vcpu *v)
{
    if (!v->direct)
        return;
    while (v->direct->spaces[0])
        drop_space(v, 0);
    memset(v->direct->records, 0, sizeof(v->direct->records));
    v->direct->here = NULL;
    v->direct->go = v->direct->in_ring3 = false;
    v->direct->interrupted = v->direct->stay_goes_on = false;
    v->direct->entered = v->direct->beside_since = 0;
    v->direct->look_entries = 0;
}

/* --- Traps ----------------------------------------------------------------------------------- */

static void raise_in_guest(struct rv_vcpu *v, int vector, uint32_t error)
{
    v->pending_vector = vector;
    v->pending_error = error;
    v->pending_soft = false;
}

static void page_fault(struct rv_vcpu *v, uint64_t address, uint32_t error)
{
    RV_AT(v->env, ENV_CR + 2 * 8, uint64_t) = address;
    raise_in_guest(v, VECTOR_PF, error);
}

/* A byte of guest code at `rip`, or -1. */
static int code_byte(struct rv_vcpu *v, uint64_t rip)
{
    struct rv_walk w;
    if (rip >> 47 || rv_walk(v, rv_choice_cr3(v), rip, false, false, &w) != WALK_MAPPED)
        return -1;
    uint64_t offset = rv_ram_offset(v, w.gpa);
    return offset == UINT64_MAX ? -1 : v->ram[offset + (rip & 0xfff)];
}

/* The engine shall execute the instruction of `bytes` bytes that has just trapped behind it. */
static enum next do_again(struct rv_vcpu *v, uint64_t bytes)
{
    RV_AT(v->env, ENV_EIP, uint64_t) -= bytes;
    return ENGINE;
}

/* Guest code has jumped into the window, where the guest has nothing. */
static bool inside_window(const struct rv_mirror *m, uint64_t rip)
{
    return rip - m->stub->base < STUB_BYTES;
}

/* Guest code has not run since the stub was resumed: an interrupt came first. The last instruction of
 * the handler has a stack of its own, so there the frame of the signal takes the place of a trap's. */
static bool came_first(const struct rv_mirror *m, const struct rv_stub_trap *trap)
{
    return !trap->signal || (trap->signal == SIGUSR1 && inside_window(m, trap->rip));
}

/* One signal more may come than was seen: it was under way when the runner trapped by itself. What
 * traps without end before user code runs is the handler, by what it was resumed with. */
static bool cannot_be_resumed(struct rv_direct *d, const struct rv_stub_trap *trap)
{
    d->false_starts = trap->signal || d->signalled ? 0 : d->false_starts + 1;
    return d->false_starts > MOST_FALSE_STARTS;
}

static enum next on_system_call(struct rv_vcpu *v, const struct rv_stub_trap *trap)
{
    uint64_t *gpr = &RV_AT(v->env, ENV_REGS, uint64_t);
    if (trap->call_at >> 63) { /* the vsyscall page: the host has fetched the return address */
        RV_AT(v->env, ENV_EIP, uint64_t) = trap->call_at;
        gpr[4] -= 8;
        return ENGINE;
    }
    if (trap->arch == AUDIT_ARCH_X86_64) {
        rv_syscall_at_rest(v);
        return ENGINE;
    }
    if (code_byte(v, trap->rip - 2) == OPCODE_INT)
        return do_again(v, 2);
    /* SYSENTER: the host has taken the stack from EBP, and brought us to a place of its own. */
    gpr[5] = gpr[4] & 0xffffffffu;
    rv_sysenter_at_rest(v);
    return ENGINE;
}

static enum next on_page_fault(struct rv_vcpu *v, struct rv_mirror *m, struct rv_stub_trap *trap)
{
    bool write = trap->error & PF_WRITE, fetch = trap->error & PF_FETCH;
    uint32_t error;
    /* The host has no CR2 to tell for a call into its vsyscall page. */
    uint64_t address = trap->rip >> 63 ? trap->rip : trap->cr2;
    if (address >> 47)
        return ENGINE;
    switch (rv_mirror_fault(m, address, write, fetch, &error)) {
    case MIRROR_DONE:
        return NATIVE;
    case MIRROR_FAULT:
        v->direct->fault.space = m;
        v->direct->fault.address = address;
        v->direct->fault.write = write;
        v->direct->fault.fetch = fetch;
        page_fault(v, address, error);
        return ENGINE;
    case MIRROR_LOST:
        lose_space(v);
        return ENGINE;
    case MIRROR_CPUID:
        rv_choice_beside_cpuid(v->direct);
        return ENGINE;
    case MIRROR_ODD:
        return ENGINE;
    }
    return ENGINE;
}

/* RDTSC, which stubs may not execute. */
static bool emulate_rdtsc(struct rv_vcpu *v, uint64_t rip)
{
    uint64_t *gpr = &RV_AT(v->env, ENV_REGS, uint64_t);
    if (code_byte(v, rip) != 0x0f || code_byte(v, rip + 1) != 0x31 ||
        RV_AT(v->env, ENV_CR + 4 * 8, uint64_t) & 4) /* CR4.TSD */
        return false;
    uint64_t tsc = rv_vcpu_tsc(v);
    gpr[0] = (uint32_t)tsc;
    gpr[2] = tsc >> 32;
    RV_AT(v->env, ENV_EIP, uint64_t) = rip + 2;
    return true;
}

static enum next on_trap(struct rv_vcpu *v, struct rv_mirror *m, struct rv_stub_trap *trap)
{
    if (trap->signal == SIGUSR1)
        return ENGINE;
    if (inside_window(m, trap->rip)) {
        bool nxe = RV_AT(v->env, ENV_EFER, uint64_t) & EFER_NXE;
        page_fault(v, trap->rip, PF_USER | (nxe ? PF_FETCH : 0));
        return ENGINE;
    }
    if (trap->signal == SIGSYS)
        return on_system_call(v, trap);
    switch (trap->vector) {
    case VECTOR_PF:
        return trap->signal == SIGSEGV ? on_page_fault(v, m, trap) : ENGINE;
    case VECTOR_DB:
        if (code_byte(v, trap->rip - 1) == OPCODE_ICEBP && !(trap->rflags & RFLAGS_TF))
            return do_again(v, 1);
        RV_AT(v->env, ENV_DR + 6 * 8, uint64_t) |= DR6_BS;
        raise_in_guest(v, VECTOR_DB, 0);
        return ENGINE;
    case VECTOR_BP:
        return do_again(v, code_byte(v, trap->rip - 1) == OPCODE_INT3 ? 1 : 2);
    case VECTOR_OF:
        return do_again(v, 2);
    case VECTOR_DE:
    case VECTOR_MF:
    case VECTOR_XM:
    case VECTOR_AC:
        raise_in_guest(v, (int)trap->vector, 0);
        return ENGINE;
    case VECTOR_GP:
        return emulate_rdtsc(v, trap->rip) ? NATIVE : ENGINE;
    default:
        return ENGINE;
    }
}

/* --- Running --------------------------------------------------------------------------------- */

static bool wanted(struct rv_vcpu *v)
{
    return __atomic_load_n(&v->stop, __ATOMIC_SEQ_CST) ||
           __atomic_load_n(&v->intr, __ATOMIC_SEQ_CST) ||
           __atomic_load_n(&v->nmi, __ATOMIC_SEQ_CST);
}

/* Run until a trap. False when something else is wanted of the vCPU, or the stub is gone. */
static bool resume(struct rv_vcpu *v, struct rv_mirror *m, struct rv_stub_trap *trap, bool *lost)
{
    struct rv_direct *d = v->direct;
    *lost = false;
    d->signalled = false; /* nobody else looks: there is no runner */
    __atomic_store_n(&d->running, m->stub, __ATOMIC_SEQ_CST);
    bool ran = !wanted(v);
    if (ran) {
        uint64_t before = __rdtsc();
        *lost = rv_stub_run(m->stub, trap);
        rv_choice_ran(m, __rdtsc() - before);
    }
    pthread_mutex_lock(&v->runner_lock);
    __atomic_store_n(&d->running, NULL, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&v->runner_lock);
    return ran && !*lost;
}

/* The page that this space's user code was not given last. */
static int supply(struct rv_direct *d, struct rv_mirror *m)
{
    bool ours = d->fault.space == m;
    d->fault.space = NULL;
    return ours ? rv_mirror_expect(m, d->fault.address, d->fault.write, d->fault.fetch) : 0;
}

void rv_direct_run(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    struct rv_stub_trap trap;
    d->go = false;
    d->here = rv_choice_record(d, rv_choice_cr3(v));
    if (!rv_world_native(v))
        return;
    struct rv_mirror *m = use_space(v, rv_choice_cr3(v));
    if (!m) {
        rv_choice_ban(d->here);
        return;
    }
    uint64_t switch_ticks = m->switch_ticks;
    rv_choice_begin(d);
    bool empty = !m->tables, lost = rv_mirror_sync(m) != 0;
    if (!lost && !empty && !m->tables && !d->coin) {
        rv_choice_forget(d, m->cr3);
        return; /* another program's page tables: it has to show that it is worth a stub */
    }
    lost = lost || supply(d, m) != 0;
    enum next next = lost ? ENGINE : NATIVE;
    if (!lost)
        rv_world_leave(v, m->stub->registers);
    bool died = false;
    while (next == NATIVE && resume(v, m, &trap, &died)) {
        struct rv_stub_registers *r = m->stub->registers;
        d->traps++;
        if (came_first(m, &trap)) { /* what it was resumed with, and the engine has, still holds */
            lost = cannot_be_resumed(d, &trap);
            break;
        }
        d->false_starts = 0;
        rv_world_enter(v, r, &trap);
        next = on_trap(v, m, &trap);
        if (next == NATIVE && !rv_world_native(v))
            next = ENGINE; /* it has set a flag, or is in a mode, that is the engine's */
        if (next == NATIVE)
            rv_world_leave(v, r);
    }
    if (died)
        raise_in_guest(v, VECTOR_GP, 0); /* its registers are gone: the program cannot go on */
    if (lost || died)
        lose_space(v);
    else
        d->interrupted = next == NATIVE || trap.signal == SIGUSR1;
    rv_choice_end(d, switch_ticks);
}

void rv_direct_interrupt(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    if (!d || !__atomic_load_n(&d->running, __ATOMIC_SEQ_CST))
        return;
    pthread_mutex_lock(&v->runner_lock);
    struct rv_stub *running = __atomic_load_n(&d->running, __ATOMIC_SEQ_CST);
    if (running) { /* one signal makes it trap; more would pile up in its handler */
        rv_stub_interrupt(running, d->signalled);
        d->signalled = true;
    }
    pthread_mutex_unlock(&v->runner_lock);
}

/* --- Pages that stubs may write -------------------------------------------------------------- */

void rv_direct_opened(struct rv_vcpu *v, uint64_t page)
{
    v->direct->open_pages[page >> 3] |= (uint8_t)(1u << (page & 7));
}

size_t rv_direct_mark_open(const struct rv_vcpu *v, uint8_t *bitmap)
{
    size_t bytes = ((size_t)(v->ram_bytes >> 12) + 7) / 8, count = 0;
    for (size_t i = 0, step; v->direct && i < bytes; i += step) {
        uint64_t open = 0;
        step = bytes - i < sizeof(open) ? bytes - i : sizeof(open);
        memcpy(&open, v->direct->open_pages + i, step);
        count += (size_t)__builtin_popcountll(open);
        for (size_t k = i; bitmap && open && k < i + step; k++)
            bitmap[k] |= v->direct->open_pages[k];
    }
    return count;
}

void rv_direct_close_all(struct rv_vcpu *v)
{
    if (!v->direct)
        return;
    if (v->dirty_pages) /* they may have stayed open since the log was read */
        rv_direct_mark_open(v, v->dirty_pages);
    v->direct->write_epoch++;
    memset(v->direct->open_pages, 0, (size_t)(v->ram_bytes >> 12) / 8 + 1);
}

void rv_direct_close(struct rv_vcpu *v, uint64_t page)
{
    if (v->direct && v->direct->open_pages[page >> 3] >> (page & 7) & 1)
        rv_direct_close_all(v);
}

/* --- Beginning and end ----------------------------------------------------------------------- */

int rv_direct_start(struct rv_vcpu *v, int ram_fd, uint64_t tsc_hz, char *why, size_t why_bytes)
{
    struct rv_direct *d = calloc(1, sizeof(*d));
    if (d)
        d->open_pages = calloc(1, (size_t)(v->ram_bytes >> 12) / 8 + 1);
    if (!d || !d->open_pages || rv_watch_start(v)) {
        snprintf(why, why_bytes, "out of memory");
    } else {
        d->ticks_a_us = tsc_hz / 1000000;
        d->looks = 1;
        d->maker = rv_stub_maker_start(ram_fd, why, why_bytes);
    }
    if (d && d->maker) {
        struct rv_stub *probe = make_stub(d, FIRST_WINDOW_SLOT * PML4_BYTES, false);
        if (probe) {
            rv_stub_free(probe);
            v->direct = d;
            return 0;
        }
        rv_stub_maker_stop(d->maker);
        snprintf(why, why_bytes, "a confined process (seccomp with notifications) cannot be had here");
    }
    rv_watch_stop(v);
    free(d ? d->open_pages : NULL);
    free(d);
    return -1;
}

void rv_direct_stop(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    if (!d)
        return;
    rv_direct_forget(v);
    rv_stub_maker_stop(d->maker);
    rv_watch_stop(v);
    free(d->open_pages);
    free(d);
    v->direct = NULL;
}
