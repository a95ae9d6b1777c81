#include "portio.h"

#include <string.h>

#include "flags.h"
#include "jumpcache.h"
#include "vcpu.h"

#define MAX_PREFIXES 14

/* Unlike Unicorn, a processor asks IOPL, then the bitmap in the TSS (Intel SDM 1, 19.5). */
static bool needs_permission(const struct rv_vcpu *v)
{
    uint64_t rflags = RV_AT(v->env, ENV_EFLAGS, uint64_t);
    uint32_t hflags = RV_AT(v->env, ENV_HFLAGS, uint32_t);
    if (!(hflags & HF_PE))
        return false;
    return rflags & RFLAGS_VM || (hflags & HF_CPL) > (rflags >> RFLAGS_IOPL_SHIFT & 3);
}

/* Returns only to a guest that may; #GP leaves from here. */
static void ask_permission(struct rv_vcpu *v, uint32_t port, int bytes, uintptr_t retaddr)
{
    rv_engine.restore_state(v->cpu, retaddr, false);
    if (bytes == 1)
        rv_engine.check_io_8(v->env, port);
    else if (bytes == 2)
        rv_engine.check_io_16(v->env, port);
    else
        rv_engine.check_io_32(v->env, port);
}

static uint64_t rip_at(struct rv_vcpu *v, uintptr_t retaddr)
{
    struct rv_io_site *s = &v->io_sites[retaddr / 2 % RV_IO_SITES];
    if (s->retaddr != retaddr) {
        rv_engine.restore_state(v->cpu, retaddr, false);
        s->retaddr = retaddr;
        s->rip = rv_linear_rip(v);
    }
    return s->rip;
}

/* Bytes of the OUT at `rip`, or 0 for one of a string, which is not over yet. */
static uint64_t out_bytes(struct rv_vcpu *v, uint64_t rip)
{
    for (uint64_t i = 0; i < MAX_PREFIXES; i++) {
        uint32_t byte = rv_engine.fetch_byte(v->env, rip + i);
        if (byte == 0xe6 || byte == 0xe7)
            return i + 2;
        if (byte == 0xee || byte == 0xef)
            return i + 1;
        if (byte == 0x6e || byte == 0x6f)
            return 0;
    }
    return 0;
}

/* The board wants the guest stopped (a debug exit, a reset): not one instruction more. */
static void stop_behind_out(struct rv_vcpu *v, uintptr_t retaddr)
{
    uint64_t bytes = out_bytes(v, rip_at(v, retaddr));
    if (!bytes)
        return;
    rv_engine.restore_state(v->cpu, retaddr, false);
    RV_AT(v->env, ENV_EIP, uint64_t) += bytes;
    RV_AT(v->cpu, CPU_EXCEPTION_INDEX, int32_t) = -1;
    rv_engine.leave_loop(v->cpu);
}

static uint32_t in(uint32_t port, int bytes, uintptr_t retaddr)
{
    struct rv_vcpu *v = rv_current;
    if (needs_permission(v))
        ask_permission(v, port, bytes, retaddr);
    rv_census_count(&v->census, RV_IO_IN, port, rip_at(v, retaddr));
    return v->board.port_in(v->board.opaque, port, bytes);
}

static void out(uint32_t port, int bytes, uint32_t value, uintptr_t retaddr)
{
    struct rv_vcpu *v = rv_current;
    if (needs_permission(v))
        ask_permission(v, port, bytes, retaddr);
    rv_census_count(&v->census, RV_IO_OUT, port, rip_at(v, retaddr));
    v->board.port_out(v->board.opaque, port, bytes, value);
    if (__atomic_load_n(&v->stop, __ATOMIC_SEQ_CST) & RV_STOP_KICK)
        stop_behind_out(v, retaddr);
}

uint8_t rv_in_8(void *uc, uint32_t port, uintptr_t retaddr)
{
    return rv_current ? (uint8_t)in(port & 0xffff, 1, retaddr)
                      : rv_engine.original.in_8(uc, port, retaddr);
}

uint16_t rv_in_16(void *uc, uint32_t port, uintptr_t retaddr)
{
    return rv_current ? (uint16_t)in(port & 0xffff, 2, retaddr)
                      : rv_engine.original.in_16(uc, port, retaddr);
}

uint32_t rv_in_32(void *uc, uint32_t port, uintptr_t retaddr)
{
    return rv_current ? in(port & 0xffff, 4, retaddr) : rv_engine.original.in_32(uc, port, retaddr);
}

void rv_out_8(void *uc, uint32_t port, uint8_t value, uintptr_t retaddr)
{
    if (rv_current)
        out(port & 0xffff, 1, value, retaddr);
    else
        rv_engine.original.out_8(uc, port, value, retaddr);
}

void rv_out_16(void *uc, uint32_t port, uint16_t value, uintptr_t retaddr)
{
    if (rv_current)
        out(port & 0xffff, 2, value, retaddr);
    else
        rv_engine.original.out_16(uc, port, value, retaddr);
}

void rv_out_32(void *uc, uint32_t port, uint32_t value, uintptr_t retaddr)
{
    if (rv_current)
        out(port & 0xffff, 4, value, retaddr);
    else
        rv_engine.original.out_32(uc, port, value, retaddr);
}

void rv_flush_code(void *cpu)
{
    if (rv_current) {
        memset(rv_current->io_sites, 0, sizeof(rv_current->io_sites));
        rv_jumpcache_forget(rv_current);
    }
    rv_engine.original.flush_code(cpu);
}
