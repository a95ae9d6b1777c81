/* Registers of chips that are no ports: pages of memory, model-specific registers, CR8. */
#ifndef RV_CHIPMEM_H
#define RV_CHIPMEM_H

#include "vcpu.h"

/* Map [start, end) of the guest's physical addresses, where no RAM is: a page that a chip answers
 * at goes to the board, the rest is open bus, which reads as ones and swallows writes. 0 or a
 * uc_err. */
int rv_chipmem_map(struct rv_vcpu *v, uint64_t start, uint64_t end);

/* Interposed (see engine.h): RDMSR, WRMSR, MOV from and to control registers. */
void rv_rdmsr(void *env);
void rv_wrmsr(void *env);
uint64_t rv_read_cr(void *env, int reg);
void rv_write_cr(void *env, int reg, uint64_t value);

#endif
