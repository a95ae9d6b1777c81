/* CPUID: the processor's description. */
#include "vcpu.h"

enum { RAX, RCX, RDX, RBX };

#define CR4_OSXSAVE (1u << 18)
#define CPUID_1_ECX_OSXSAVE (1u << 27)

static const struct rv_cpuid_entry *find_leaf(const struct rv_vcpu *v, uint32_t leaf,
                                              uint32_t subleaf)
{
    for (int i = 0; i < v->cpuid_count; i++)
        if (v->cpuid[i].leaf == leaf && v->cpuid[i].subleaf == subleaf)
            return &v->cpuid[i];
    return NULL;
}

/* Leaves without subleaves are listed with subleaf 0; what is not listed reads as zeros. */
static int on_cpuid(uc_engine *uc, void *opaque)
{
    struct rv_vcpu *v = opaque;
    (void)uc;
    uint64_t *regs = &RV_AT(v->env, ENV_REGS, uint64_t);
    uint32_t leaf = (uint32_t)regs[RAX], subleaf = (uint32_t)regs[RCX];
    rv_census_count(&v->census, RV_CPUID, leaf, rv_linear_rip(v));
    const struct rv_cpuid_entry *e = find_leaf(v, leaf, subleaf);
    bool indexed = leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd;
    if (!e && !indexed)
        e = find_leaf(v, leaf, 0);
    regs[RAX] = e ? e->eax : 0;
    regs[RBX] = e ? e->ebx : 0;
    regs[RCX] = e ? e->ecx : 0;
    regs[RDX] = e ? e->edx : 0;
    if (leaf == 1 && RV_AT(v->env, ENV_CR + 4 * 8, uint64_t) & CR4_OSXSAVE)
        regs[RCX] |= CPUID_1_ECX_OSXSAVE;
    return 1;
}

int rv_cpuid_attach(struct rv_vcpu *v)
{
    uc_hook hook;
    return rv_engine.uc_hook_add(v->uc, &hook, UC_HOOK_INSN, (void *)on_cpuid, v, 1, 0,
                                 UC_X86_INS_CPUID);
}
