#include "cpu_state.h"

#include <stdio.h>
#include <string.h>

#include "control.h"
#include "direct.h"
#include "flags.h"
#include "vcpu.h"

#define MXCSR_WRITABLE 0xffffu
#define FSW_TOP_SHIFT 11
#define DESC_BITS 0xf0ff00u /* type S DPL P AVL L D/B G, in the descriptor's second word */

#define FIELD(offset, type) RV_AT(v->env, offset, type)

static struct rv_uc_segment *segment_at(struct rv_vcpu *v, int offset)
{
    return &RV_AT(v->env, offset, struct rv_uc_segment);
}

static void save_segment(struct rv_vcpu *v, int offset, struct rv_segment_state *s)
{
    const struct rv_uc_segment *from = segment_at(v, offset);
    s->selector = from->selector & 0xffff;
    s->base = from->base;
    s->limit = from->limit;
    s->access = (from->flags & DESC_BITS) >> 8;
}

static void load_segment(struct rv_vcpu *v, int offset, const struct rv_segment_state *s)
{
    struct rv_uc_segment *to = segment_at(v, offset);
    to->selector = (uint32_t)s->selector & 0xffff;
    to->base = s->base;
    to->limit = (uint32_t)s->limit;
    to->flags = (uint32_t)s->access << 8 & DESC_BITS;
}

static void save_table(struct rv_vcpu *v, int offset, struct rv_table_state *s)
{
    s->base = segment_at(v, offset)->base;
    s->limit = segment_at(v, offset)->limit & 0xffff;
}

static void load_table(struct rv_vcpu *v, int offset, const struct rv_table_state *s)
{
    segment_at(v, offset)->base = s->base;
    segment_at(v, offset)->limit = (uint32_t)s->limit & 0xffff;
}

static void save_fpu(struct rv_vcpu *v, struct rv_cpu_state *s)
{
    uint32_t top = FIELD(ENV_FPSTT, uint32_t) & 7;
    uint16_t control = 0;
    rv_engine.uc_reg_read(v->uc, UC_X86_REG_FPCW, &control);
    s->fcw = control;
    s->fsw = (FIELD(ENV_FPUS, uint16_t) & ~(7u << FSW_TOP_SHIFT) & 0xffff) | top << FSW_TOP_SHIFT;
    s->ftw = 0;
    for (int i = 0; i < 8; i++) {
        if (!(&FIELD(ENV_FPTAGS, uint8_t))[i])
            s->ftw |= 1u << i;
        memcpy(s->st + 10 * i, (char *)v->env + ENV_FPREGS + ENV_FPREG_BYTES * i, 10);
    }
    s->fop = FIELD(ENV_FPOP, uint16_t);
    s->fip = FIELD(ENV_FPIP, uint64_t);
    s->fdp = FIELD(ENV_FPDP, uint64_t);
    s->mxcsr = FIELD(ENV_MXCSR, uint32_t) & MXCSR_WRITABLE;
    for (int i = 0; i < 16; i++)
        memcpy(s->xmm + 16 * i, (char *)v->env + ENV_XMM + ENV_XMM_BYTES * i, 16);
}

static void load_fpu(struct rv_vcpu *v, const struct rv_cpu_state *s)
{
    FIELD(ENV_FPSTT, uint32_t) = s->fsw >> FSW_TOP_SHIFT & 7;
    FIELD(ENV_FPUS, uint16_t) = (uint16_t)(s->fsw & ~(7u << FSW_TOP_SHIFT));
    for (int i = 0; i < 8; i++) {
        (&FIELD(ENV_FPTAGS, uint8_t))[i] = !(s->ftw >> i & 1);
        memcpy((char *)v->env + ENV_FPREGS + ENV_FPREG_BYTES * i, s->st + 10 * i, 10);
    }
    FIELD(ENV_FPOP, uint16_t) = (uint16_t)s->fop;
    FIELD(ENV_FPIP, uint64_t) = s->fip;
    FIELD(ENV_FPDP, uint64_t) = s->fdp;
    rv_engine.fldcw(v->env, (uint32_t)s->fcw & 0xffff);
    FIELD(ENV_MXCSR, uint32_t) = (uint32_t)s->mxcsr;
    rv_engine.update_mxcsr(v->env);
    for (int i = 0; i < 16; i++)
        memcpy((char *)v->env + ENV_XMM + ENV_XMM_BYTES * i, s->xmm + 16 * i, 16);
}

void rv_cpu_save(struct rv_vcpu *v, struct rv_cpu_state *s)
{
    const uint64_t *cr = &FIELD(ENV_CR, uint64_t);
    const uint64_t *dr = &FIELD(ENV_DR, uint64_t);
    memset(s, 0, sizeof(*s));
    memcpy(s->gpr, (char *)v->env + ENV_REGS, sizeof(s->gpr));
    s->rip = FIELD(ENV_EIP, uint64_t);
    s->rflags = rv_read_rflags(v->env);
    for (int i = 0; i < 6; i++)
        save_segment(v, ENV_SEGS + i * (int)sizeof(struct rv_uc_segment), &s->segments[i]);
    save_segment(v, ENV_LDT, &s->ldtr);
    save_segment(v, ENV_TR, &s->tr);
    save_table(v, ENV_GDT, &s->gdtr);
    save_table(v, ENV_IDT, &s->idtr);
    /* The engine lets a guest set bits that a processor ignores or refuses. */
    s->cr0 = cr[0] & CR0_WRITABLE;
    s->cr2 = cr[2];
    s->cr3 = cr[3];
    s->cr4 = cr[4] & CR4_WRITABLE;
    s->cr8 = FIELD(ENV_V_TPR, uint8_t) & 15;
    s->efer = FIELD(ENV_EFER, uint64_t) & EFER_WRITABLE;
    if (!(s->cr0 & CR0_PE) || s->efer & EFER_LMA)
        s->rflags &= ~(uint64_t)RFLAGS_VM;
    memcpy(s->dr, dr, sizeof(s->dr));
    s->dr6 = (uint32_t)dr[6];
    s->dr7 = (uint32_t)dr[7];
    s->star = FIELD(ENV_STAR, uint64_t);
    s->lstar = FIELD(ENV_LSTAR, uint64_t);
    s->cstar = FIELD(ENV_CSTAR, uint64_t);
    s->fmask = FIELD(ENV_FMASK, uint64_t);
    s->kernel_gs_base = FIELD(ENV_KERNEL_GS_BASE, uint64_t);
    s->sysenter_cs = FIELD(ENV_SYSENTER_CS, uint32_t);
    s->sysenter_esp = FIELD(ENV_SYSENTER_ESP, uint64_t);
    s->sysenter_eip = FIELD(ENV_SYSENTER_EIP, uint64_t);
    s->pat = FIELD(ENV_PAT, uint64_t);
    s->tsc_aux = FIELD(ENV_TSC_AUX, uint64_t);
    s->misc_enable = FIELD(ENV_MISC_ENABLE, uint64_t);
    s->tsc = rv_vcpu_tsc(v);
    save_fpu(v, s);
    s->interrupt_shadow = !!(FIELD(ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ);
    s->nmi_blocked = !!(FIELD(ENV_HFLAGS2, uint32_t) & HF2_NMI);
    s->halted = v->halted;
    s->pending_vector = (uint64_t)v->pending_vector;
    s->pending_error = v->pending_error;
    s->pending_soft = v->pending_soft;
}

/* What no processor can be in (Intel SDM 3A 2.5, 4.1, 9.8.5), or NULL. */
static const char *impossible(const struct rv_cpu_state *s)
{
    bool paging = s->cr0 & CR0_PG, protected_mode = s->cr0 & CR0_PE;
    bool long_mode = s->efer & EFER_LMA;
    if (s->cr0 & ~(uint64_t)CR0_WRITABLE)
        return "reserved bits set in CR0";
    if (s->cr4 & ~(uint64_t)CR4_WRITABLE)
        return "reserved or unsupported bits set in CR4";
    if (s->efer & ~(uint64_t)EFER_WRITABLE)
        return "reserved or unsupported bits set in EFER";
    if (paging && !protected_mode)
        return "paging without protection";
    if (long_mode != (paging && (s->efer & EFER_LME)))
        return "EFER.LMA contradicts CR0.PG and EFER.LME";
    if (long_mode && !(s->cr4 & CR4_PAE))
        return "long mode without PAE";
    if (s->rflags & RFLAGS_VM && (!protected_mode || long_mode))
        return "virtual-8086 mode outside protected mode";
    if (s->rflags & ~(uint64_t)(RFLAGS_WRITABLE | RFLAGS_FIXED))
        return "reserved bits set in RFLAGS";
    if (s->mxcsr & ~(uint64_t)MXCSR_WRITABLE)
        return "reserved bits set in MXCSR";
    uint32_t code = (uint32_t)s->segments[SEG_CS].access << 8;
    if (long_mode && code & DESC_L && code & DESC_B)
        return "CS is both 64-bit and 32-bit";
    uint32_t cpl = (uint32_t)s->segments[SEG_SS].access >> 5 & 3;
    if (!protected_mode && cpl)
        return "real mode outside ring 0";
    if (s->rflags & RFLAGS_VM && cpl != 3)
        return "virtual-8086 mode outside ring 3";
    if (s->pending_vector > RV_NO_VECTOR || (s->pending_vector < RV_NO_VECTOR && s->halted))
        return "impossible pending exception";
    if (s->dr7 >> 32 || s->dr6 >> 32)
        return "reserved bits set in DR6 or DR7";
    return NULL;
}

int rv_cpu_load(struct rv_vcpu *v, const struct rv_cpu_state *s, char *why, size_t why_bytes)
{
    const char *problem = impossible(s);
    if (problem) {
        snprintf(why, why_bytes, "x86-cpu: %s", problem);
        return -1;
    }
    uint64_t *cr = &FIELD(ENV_CR, uint64_t);
    rv_direct_forget(v);
    rv_engine.cpu_reset(v->cpu);
    memcpy((char *)v->env + ENV_REGS, s->gpr, sizeof(s->gpr));
    FIELD(ENV_EIP, uint64_t) = s->rip;
    rv_write_rflags_at_rest(v->env, s->rflags);
    for (int i = 0; i < 6; i++)
        load_segment(v, ENV_SEGS + i * (int)sizeof(struct rv_uc_segment), &s->segments[i]);
    load_segment(v, ENV_LDT, &s->ldtr);
    load_segment(v, ENV_TR, &s->tr);
    load_table(v, ENV_GDT, &s->gdtr);
    load_table(v, ENV_IDT, &s->idtr);
    FIELD(ENV_EFER, uint64_t) = s->efer & ~(uint64_t)EFER_LMA;
    rv_engine.update_cr4(v->env, (uint32_t)s->cr4);
    rv_engine.update_cr0(v->env, (uint32_t)s->cr0);
    cr[0] = s->cr0;
    cr[2] = s->cr2;
    cr[3] = s->cr3;
    cr[4] = s->cr4;
    FIELD(ENV_V_TPR, uint8_t) = s->cr8 & 15;
    FIELD(ENV_EFER, uint64_t) = s->efer;
    FIELD(ENV_STAR, uint64_t) = s->star;
    FIELD(ENV_LSTAR, uint64_t) = s->lstar;
    FIELD(ENV_CSTAR, uint64_t) = s->cstar;
    FIELD(ENV_FMASK, uint64_t) = s->fmask;
    FIELD(ENV_KERNEL_GS_BASE, uint64_t) = s->kernel_gs_base;
    FIELD(ENV_SYSENTER_CS, uint32_t) = (uint32_t)s->sysenter_cs;
    FIELD(ENV_SYSENTER_ESP, uint64_t) = s->sysenter_esp;
    FIELD(ENV_SYSENTER_EIP, uint64_t) = s->sysenter_eip;
    FIELD(ENV_PAT, uint64_t) = s->pat;
    FIELD(ENV_TSC_AUX, uint64_t) = s->tsc_aux;
    FIELD(ENV_MISC_ENABLE, uint64_t) = s->misc_enable;
    load_fpu(v, s);
    for (int i = 0; i < 4; i++)
        rv_engine.set_dr(v->env, i, s->dr[i]);
    rv_engine.set_dr(v->env, 6, s->dr6);
    rv_engine.set_dr(v->env, 7, s->dr7);
    rv_update_hflags(v->env);
    if (s->interrupt_shadow)
        FIELD(ENV_HFLAGS, uint32_t) |= HF_INHIBIT_IRQ;
    FIELD(ENV_HFLAGS2, uint32_t) = HF2_GIF | (s->nmi_blocked ? HF2_NMI : 0);
    v->halted = s->halted;
    v->pending_vector = (int)s->pending_vector;
    v->pending_error = (uint32_t)s->pending_error;
    v->pending_soft = s->pending_soft;
    v->triple_fault = v->gave_up = false;
    rv_vcpu_set_tsc(v, s->tsc);
    rv_engine.tlb_flush(v->cpu);
    return 0;
}
