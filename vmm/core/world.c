#include "world.h"

#include <string.h>

#include "bases.h"
#include "flags.h"
#include "vcpu.h"

#define USER_CS 0x33u
#define USER_SS 0x2bu
#define USER_CS_COMPAT 0x23u
#define CR0_PG 0x80000000u
#define CR0_EM_TS 0xcu
#define CR4_OSFXSR 0x200u
#define CR4_LA57 0x1000u
#define CR4_PKE 0x400000u
#define DR7_ENABLED 0xffu
#define MXCSR_BITS 0xffffu
/* What user code sets by itself, and POPF lets it (Intel SDM 3A 3.4.3). */
#define USER_FLAGS (RFLAGS_CONDITIONS | RFLAGS_DF | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID)
/* With these the engine runs: single-steps, alignment checks and what hardware does elsewhere. */
#define ODD_FLAGS (RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | RFLAGS_AC | RFLAGS_IOPL)
#define CANONICAL_USER_END ((uint64_t)1 << 47)
#define XSTATE_X87_SSE 3u

/* The legacy region of XSAVE (Intel SDM 1, 10.5.1). */
struct fxsave {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16]; /* from the top of the stack */
    uint8_t xmm[16][16];
};

static const struct rv_uc_segment *segment(const struct rv_vcpu *v, int index)
{
    return &RV_AT(v->env, ENV_SEGS, struct rv_uc_segment) + index;
}

static bool has_address(const struct rv_uc_segment *s)
{
    return s->base == rv_canonical(s->base);
}

bool rv_world_native(const struct rv_vcpu *v)
{
    const uint64_t *cr = &RV_AT(v->env, ENV_CR, uint64_t);
    uint32_t hflags = RV_AT(v->env, ENV_HFLAGS, uint32_t);
    uint64_t rflags = RV_AT(v->env, ENV_EFLAGS, uint64_t);
    uint32_t ds = segment(v, SEG_DS)->selector, es = segment(v, SEG_ES)->selector;

    return (hflags & HF_CPL) == 3 && hflags & HF_LMA && hflags & HF_CS64 && cr[0] & CR0_PG &&
           !(cr[0] & CR0_EM_TS) && cr[4] & CR4_OSFXSR && !(cr[4] & (CR4_LA57 | CR4_PKE)) &&
           segment(v, SEG_CS)->selector == USER_CS && segment(v, SEG_SS)->selector == USER_SS &&
           (!ds || ds == USER_SS) && (!es || es == USER_SS) &&
           !segment(v, SEG_FS)->selector && !segment(v, SEG_GS)->selector &&
           has_address(segment(v, SEG_FS)) && has_address(segment(v, SEG_GS)) &&
           rflags & RFLAGS_IF && !(rflags & ODD_FLAGS) &&
           !(RV_AT(v->env, ENV_DR + 7 * 8, uint64_t) & DR7_ENABLED) &&
           RV_AT(v->env, ENV_EIP, uint64_t) < CANONICAL_USER_END;
}

static void leave_fpu(struct rv_vcpu *v, struct fxsave *fx)
{
    uint32_t top = RV_AT(v->env, ENV_FPSTT, uint32_t) & 7;
    fx->fcw = RV_AT(v->env, ENV_FPUC, uint16_t);
    fx->fsw = (uint16_t)((RV_AT(v->env, ENV_FPUS, uint16_t) & ~(7u << 11)) | top << 11);
    fx->ftw = 0;
    for (unsigned i = 0; i < 8; i++) {
        if (!(&RV_AT(v->env, ENV_FPTAGS, uint8_t))[i])
            fx->ftw |= (uint8_t)(1u << i);
        memcpy(fx->st[i], (char *)v->env + ENV_FPREGS + ENV_FPREG_BYTES * ((top + i) & 7), 10);
    }
    fx->fop = RV_AT(v->env, ENV_FPOP, uint16_t);
    fx->fip = RV_AT(v->env, ENV_FPIP, uint64_t);
    fx->fdp = RV_AT(v->env, ENV_FPDP, uint64_t);
    fx->mxcsr = RV_AT(v->env, ENV_MXCSR, uint32_t) & MXCSR_BITS;
    for (int i = 0; i < 16; i++)
        memcpy(fx->xmm[i], (char *)v->env + ENV_XMM + ENV_XMM_BYTES * i, 16);
}

static void enter_fpu(struct rv_vcpu *v, const struct fxsave *fx)
{
    uint32_t top = fx->fsw >> 11 & 7;
    RV_AT(v->env, ENV_FPSTT, uint32_t) = top;
    RV_AT(v->env, ENV_FPUS, uint16_t) = (uint16_t)(fx->fsw & ~(7u << 11));
    for (unsigned i = 0; i < 8; i++) {
        (&RV_AT(v->env, ENV_FPTAGS, uint8_t))[i] = !(fx->ftw >> i & 1);
        memcpy((char *)v->env + ENV_FPREGS + ENV_FPREG_BYTES * ((top + i) & 7), fx->st[i], 10);
    }
    RV_AT(v->env, ENV_FPOP, uint16_t) = fx->fop;
    RV_AT(v->env, ENV_FPIP, uint64_t) = fx->fip;
    RV_AT(v->env, ENV_FPDP, uint64_t) = fx->fdp;
    if (fx->fcw != RV_AT(v->env, ENV_FPUC, uint16_t))
        rv_engine.fldcw(v->env, fx->fcw);
    if ((fx->mxcsr & MXCSR_BITS) != RV_AT(v->env, ENV_MXCSR, uint32_t)) {
        RV_AT(v->env, ENV_MXCSR, uint32_t) = fx->mxcsr & MXCSR_BITS;
        rv_engine.update_mxcsr(v->env);
    }
    for (int i = 0; i < 16; i++)
        memcpy((char *)v->env + ENV_XMM + ENV_XMM_BYTES * i, fx->xmm[i], 16);
}

void rv_world_leave(struct rv_vcpu *v, struct rv_stub_registers *r)
{
    uint64_t ds = segment(v, SEG_DS)->selector, es = segment(v, SEG_ES)->selector;
    memcpy(r->gpr, (char *)v->env + ENV_REGS, sizeof(r->gpr));
    r->rsp = r->gpr[4];
    r->rip = RV_AT(v->env, ENV_EIP, uint64_t);
    r->cs = USER_CS;
    r->ss = USER_SS;
    r->rflags = (rv_read_rflags(v->env) & (USER_FLAGS & ~ODD_FLAGS)) | RFLAGS_IF | RFLAGS_FIXED;
    r->fs_base = segment(v, SEG_FS)->base;
    r->gs_base = segment(v, SEG_GS)->base;
    r->reload = r->ds != ds || r->es != es || r->fs || r->gs;
    r->ds = ds;
    r->es = es;
    r->fs = r->gs = 0;
    leave_fpu(v, (struct fxsave *)r->fx);
    memset(r->xstate, 0, sizeof(r->xstate));
    r->xstate[0] = XSTATE_X87_SSE;
}

/* A data segment register that user code has loaded: null or the flat one, nothing else is there. */
static void enter_segment(struct rv_vcpu *v, int index, uint64_t selector)
{
    struct rv_uc_segment *s = &RV_AT(v->env, ENV_SEGS, struct rv_uc_segment) + index;
    uint64_t base = s->base;
    if (selector == s->selector)
        return;
    if (selector == USER_SS) {
        rv_load_flat(v->env, index, USER_SS, DESC_B | DESC_DPL(3));
    } else {
        s->selector = selector & 3;
        s->limit = 0;
        s->flags = DESC_DPL(3);
        s->base = base;
    }
}

void rv_world_enter(struct rv_vcpu *v, const struct rv_stub_registers *r,
                    const struct rv_stub_trap *trap)
{
    const uint64_t ours = RV_AT(v->env, ENV_EFLAGS, uint64_t) & ~(uint64_t)USER_FLAGS;
    memcpy((char *)v->env + ENV_REGS, trap->gpr, sizeof(trap->gpr));
    RV_AT(v->env, ENV_EIP, uint64_t) = trap->rip;
    rv_write_rflags_at_rest(v->env, (trap->rflags & USER_FLAGS) | ours);
    if (trap->cs == USER_CS_COMPAT) /* by a far transfer: the only other code segment there is */
        rv_load_flat(v->env, SEG_CS, USER_CS_COMPAT, DESC_CODE | DESC_B | DESC_DPL(3));
    enter_segment(v, SEG_DS, r->ds & 0xffff);
    enter_segment(v, SEG_ES, r->es & 0xffff);
    enter_segment(v, SEG_FS, r->fs & 0xffff);
    enter_segment(v, SEG_GS, r->gs & 0xffff);
    (&RV_AT(v->env, ENV_SEGS, struct rv_uc_segment) + SEG_FS)->base = rv_canonical(r->fs_base);
    (&RV_AT(v->env, ENV_SEGS, struct rv_uc_segment) + SEG_GS)->base = rv_canonical(r->gs_base);
    enter_fpu(v, (const struct fxsave *)trap->fx);
    rv_update_hflags(v->env);
}
