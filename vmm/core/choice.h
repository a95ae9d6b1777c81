/* The choice of the world that user code runs in, from what each has cost. */
#ifndef RV_CHOICE_H
#define RV_CHOICE_H

#include "direct.h"
#include "mirror.h"
#include "vcpu.h"

/* Stays in ring 3 that are timed in the engine: one in so many, for a clock costs as well. */
#define CHOICE_SAMPLE 64

/* The address space that the vCPU is in. */
static inline uint64_t rv_choice_cr3(const struct rv_vcpu *v)
{
    return RV_AT(v->env, ENV_CR + 3 * 8, uint64_t) & PTE_ADDRESS;
}

/* Where what is known of an address space would be. */
static inline struct rv_record *rv_choice_place(struct rv_direct *d, uint64_t cr3)
{
    return &d->records[(cr3 >> 12 ^ cr3 >> 18) % DIRECT_RECORDS];
}

struct rv_record *rv_choice_record(struct rv_direct *d, uint64_t cr3);
/* The address space cannot be held by a stub: translate it for a long time. */
void rv_choice_ban(struct rv_record *r);
/* User code goes on in the engine: its page holds a CPUID, and its stub does not trap that. */
void rv_choice_beside_cpuid(struct rv_direct *d);
/* Perhaps another program has the address space's root next. */
void rv_choice_forget(struct rv_direct *d, uint64_t cr3);
/* The engine has come to 64-bit user code. */
void rv_choice_ring3(struct rv_vcpu *v);

/* That, and there is nothing to choose: system calls are short, and this comes after each. */
static inline bool rv_choice_quiet(const struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    uint64_t cr3 = rv_choice_cr3(v);
    struct rv_record *r = rv_choice_place(d, cr3);
    if (r->quiet != d->looks || r->cr3 != cr3 || (d->entries + 1) % CHOICE_SAMPLE == 0)
        return false;
    d->here = r;
    d->entries++;
    d->in_ring3 = true;
    return true;
}

uint32_t rv_choice_random(struct rv_direct *d);

/* A native stay in ring 3: it begins, the stub has run for so long, it ends. */
void rv_choice_begin(struct rv_direct *d);
void rv_choice_ran(struct rv_mirror *m, uint64_t ticks);
void rv_choice_end(struct rv_direct *d, uint64_t switch_ticks);

#endif
