/* The architectural state of the vCPU as one versioned structure (rayvisor.vmm.cpu_state.CpuState
 * in the same order). Every number is 64 bits wide so that the layout needs no padding. */
#ifndef RV_CPU_STATE_H
#define RV_CPU_STATE_H

#include <stddef.h>
#include <stdint.h>

#define RV_CPU_STATE_VERSION 1

struct rv_segment_state {
    uint64_t selector, base, limit, access;
};

struct rv_table_state {
    uint64_t base, limit;
};

struct rv_cpu_state {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    struct rv_segment_state segments[6]; /* es cs ss ds fs gs */
    struct rv_segment_state ldtr, tr;
    struct rv_table_state gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer;
    uint64_t dr[4], dr6, dr7;
    uint64_t star, lstar, cstar, fmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, misc_enable, tsc;
    uint64_t fcw, fsw, ftw, fop, fip, fdp;
    uint8_t st[80];
    uint64_t mxcsr;
    uint8_t xmm[256];
    uint64_t interrupt_shadow, nmi_blocked, halted;
    uint64_t pending_vector, pending_error, pending_soft;
};

struct rv_vcpu;

/* Not while running. */
void rv_cpu_save(struct rv_vcpu *v, struct rv_cpu_state *s);

/* Take the state over, or change nothing and return -1 with a line in `why`: no state, however
 * made, may bring the engine into one that a processor cannot be in. Not while running. */
int rv_cpu_load(struct rv_vcpu *v, const struct rv_cpu_state *s, char *why, size_t why_bytes);

#endif
