/*
 * The ways down to ring 3: the engine's helpers for SYSRET, SYSEXIT and IRET, with a look at where
 * they will lead (see standin.h).
 */
#include "choice.h"
#include "softtlb.h"
#include "standin.h"
#include "vcpu.h"

#define OPERAND_64 2
#define USER_CS 0x33u

typedef void helper_fn(void);

RV_JUMP_AFTER(rv_sysret, rv_before_sysret);
RV_JUMP_AFTER(rv_sysexit, rv_before_sysexit);
RV_JUMP_AFTER(rv_iret, rv_before_iret);

helper_fn *rv_before_sysret(void *env, int dflag) __attribute__((visibility("hidden"), used));
helper_fn *rv_before_sysexit(void *env, int dflag) __attribute__((visibility("hidden"), used));
helper_fn *rv_before_iret(void *env, int shift) __attribute__((visibility("hidden"), used));

/* If it faults instead, the exception takes this back. */
static void going_down(void)
{
    struct rv_vcpu *v = rv_current;
    if (v && v->direct && !rv_choice_quiet(v))
        rv_choice_ring3(v);
}

helper_fn *rv_before_sysret(void *env, int dflag)
{
    (void)env;
    if (dflag == OPERAND_64)
        going_down();
    return (helper_fn *)rv_engine.original.sysret;
}

helper_fn *rv_before_sysexit(void *env, int dflag)
{
    (void)env;
    if (dflag == OPERAND_64)
        going_down();
    return (helper_fn *)rv_engine.original.sysexit;
}

/* Eight bytes of guest memory if the software TLB has them for reading; 0 if not. */
static uint64_t peek(void *env, int mode, uint64_t address)
{
    const struct rv_uc_tlb_entry *e = rv_tlb_entry(env, mode, address);
    uint64_t value = 0;
    if (e->addr_read == (address & TLB_PAGE_MASK) && (address & 0xfff) <= 0xff8)
        value = *(const uint64_t *)(uintptr_t)(address + e->addend);
    return value;
}

helper_fn *rv_before_iret(void *env, int shift)
{
    if (shift == OPERAND_64 && rv_current && rv_current->direct) {
        uint64_t saved_cs = (&RV_AT(env, ENV_REGS, uint64_t))[4] + 8;
        if (peek(env, MODE_KERNEL, saved_cs) == USER_CS ||
            peek(env, MODE_KERNEL_SMAP, saved_cs) == USER_CS)
            going_down();
    }
    return (helper_fn *)rv_engine.original.iret;
}
