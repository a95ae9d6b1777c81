/* The choice of the world that user code runs in, from what each has cost. */
#ifndef RV_CHOICE_H
#define RV_CHOICE_H

#include "direct.h"
#include "mirror.h"
#include "vcpu.h"

#define NO_CR3 1u /* where no page tables can be */
/* Stays in ring 3 that are timed in the engine: one in so many, for a clock costs as well. */
#define CHOICE_SAMPLE 16

/* The address space that the vCPU is in. */
static inline uint64_t rv_choice_cr3(const struct rv_vcpu *v)
{
    return RV_AT(v->env, ENV_CR + 3 * 8, uint64_t) & PTE_ADDRESS;
}

struct rv_record *rv_choice_record(struct rv_direct *d, uint64_t cr3);
/* The address space cannot be held by a stub: translate it for a long time. */
void rv_choice_ban(struct rv_record *r);
/* The engine has come to 64-bit user code. */
void rv_choice_ring3(struct rv_vcpu *v);

/* That, and there is nothing to choose: system calls are short, and this comes after each. */
static inline bool rv_choice_quiet(const struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    if (d->quiet_cr3 != rv_choice_cr3(v) || (d->entries + 1) % CHOICE_SAMPLE == 0)
        return false;
    d->entries++;
    d->entered = 0;
    d->in_ring3 = true;
    return true;
}

uint32_t rv_choice_random(struct rv_direct *d);

/* A native stay in ring 3: it begins, the stub has run for so long, it ends. */
void rv_choice_begin(struct rv_direct *d);
void rv_choice_ran(struct rv_mirror *m, uint64_t ticks);
void rv_choice_end(struct rv_direct *d, uint64_t switch_ticks);

#endif
