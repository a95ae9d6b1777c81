/*
 * The engine's doors to chips that stand nearer to the processor than a port: it has no local APIC
 * of its own, reads its base register and CR8 as zero, and drops what is written to them.
 */
#include "chipmem.h"

#include "bases.h"
#include "control.h"

#define VECTOR_GP 13
#define CR8 8
#define MSR_EFER 0xc0000080u
#define CR8_RESERVED (~(uint64_t)0xf)

enum { RAX, RCX, RDX };

static uint64_t gpa_of(const void *base, uint64_t offset)
{
    return (uint64_t)(uintptr_t)base + offset;
}

/* Registers are words; how any other access ends is the processor's own affair. */
static bool is_register(const struct rv_vcpu *v, uint64_t gpa, unsigned bytes)
{
    return v->chip_page && (gpa & ~(uint64_t)0xfff) == v->chip_page && bytes == 4 && !(gpa & 3);
}

static uint64_t memory_read(uc_engine *uc, uint64_t offset, unsigned bytes, void *base)
{
    struct rv_vcpu *v = rv_current;
    uint64_t gpa = gpa_of(base, offset);
    (void)uc;
    if (v) {
        rv_census_count(&v->census, RV_MMIO, gpa, rv_linear_rip(v));
        if (is_register(v, gpa, bytes))
            return v->board.memory_in(v->board.opaque, (uint32_t)gpa & 0xfff);
    }
    return bytes >= 8 ? ~(uint64_t)0 : ((uint64_t)1 << (8 * bytes)) - 1;
}

static void memory_write(uc_engine *uc, uint64_t offset, unsigned bytes, uint64_t value, void *base)
{
    struct rv_vcpu *v = rv_current;
    uint64_t gpa = gpa_of(base, offset);
    (void)uc;
    if (!v)
        return;
    rv_census_count(&v->census, RV_MMIO, gpa, rv_linear_rip(v));
    if (is_register(v, gpa, bytes) && !((gpa & 0xfff) == TICK_EOI && rv_tick_end(v)))
        v->board.memory_out(v->board.opaque, (uint32_t)gpa & 0xfff, (uint32_t)value);
}

int rv_chipmem_map(struct rv_vcpu *v, uint64_t start, uint64_t end)
{
    if (start >= end)
        return UC_ERR_OK;
    void *base = (void *)(uintptr_t)start;
    uc_err err = rv_engine.uc_mmio_map(v->uc, start, end - start, memory_read, base, memory_write,
                                       base);
    /* A guest may jump there too; open bus fetches FF FF, which is #UD. */
    return err ? err : rv_engine.uc_mem_protect(v->uc, start, end - start, UC_PROT_ALL);
}

static uint64_t *gpr(void *env, int index)
{
    return &RV_AT(env, ENV_REGS, uint64_t) + index;
}

/* The engine has moved RIP to the instruction before it called. */
static void refuse(void *env)
{
    rv_engine.raise_exception(env, VECTOR_GP, 0);
}

void rv_rdmsr(void *env)
{
    struct rv_vcpu *v = rv_current;
    uint64_t value;
    if (!v || !v->board.msr_in(v->board.opaque, (uint32_t)*gpr(env, RCX), &value)) {
        rv_engine.original.rdmsr(env);
        return;
    }
    *gpr(env, RAX) = (uint32_t)value;
    *gpr(env, RDX) = value >> 32;
}

void rv_wrmsr(void *env)
{
    struct rv_vcpu *v = rv_current;
    uint32_t index = (uint32_t)*gpr(env, RCX);
    uint64_t value = (uint32_t)*gpr(env, RAX) | *gpr(env, RDX) << 32;
    if ((index == MSR_EFER && rv_efer_refused(env, value)) || rv_address_msr_refused(index, value))
        refuse(env);
    if (v && index == TICK_MSR && rv_tick_set(v, value))
        return;
    switch (v ? v->board.msr_out(v->board.opaque, index, value) : RV_MSR_NOT_OURS) {
    case RV_MSR_NOT_OURS:
        rv_engine.original.wrmsr(env);
        break;
    case RV_MSR_REFUSED:
        refuse(env);
        break;
    case RV_MSR_WRITTEN:
        break;
    }
}

uint64_t rv_read_cr(void *env, int reg)
{
    struct rv_vcpu *v = rv_current;
    uint32_t value;
    if (reg == CR8 && v && v->board.priority_in(v->board.opaque, &value))
        return value;
    return rv_engine.original.read_cr(env, reg);
}

void rv_write_cr(void *env, int reg, uint64_t value)
{
    struct rv_vcpu *v = rv_current;
    if (!(RV_AT(env, ENV_HFLAGS, uint32_t) & HF_CS64))
        value = (uint32_t)value;
    if (rv_control_refused(env, reg, value))
        refuse(env);
    if (reg == CR8 && v) {
        if (value & CR8_RESERVED)
            refuse(env);
        v->board.priority_out(v->board.opaque, (uint32_t)value);
    }
    rv_engine.original.write_cr(env, reg, value);
}
