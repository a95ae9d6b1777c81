/* The choice of the world that user code runs in, from what each has cost. */
#ifndef RV_CHOICE_H
#define RV_CHOICE_H

#include "direct.h"
#include "mirror.h"

/* The address space that the vCPU is in. */
uint64_t rv_choice_cr3(const struct rv_vcpu *v);
struct rv_record *rv_choice_record(struct rv_direct *d, uint64_t cr3);
/* The address space cannot be held by a stub: translate it for a long time. */
void rv_choice_ban(struct rv_record *r);
/* The engine has come to 64-bit user code. */
void rv_choice_ring3(struct rv_vcpu *v);
uint32_t rv_choice_random(struct rv_direct *d);

/* A native stay in ring 3: it begins, the stub has run for so long, it ends. */
void rv_choice_begin(struct rv_direct *d);
void rv_choice_ran(struct rv_mirror *m, uint64_t ticks);
void rv_choice_end(struct rv_direct *d, uint64_t switch_ticks);

#endif
