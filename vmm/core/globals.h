/*
 * Global pages: translations that outlive a load of CR3 (Intel SDM 3A 4.10.2.4).
 *
 * The engine forgets all translations at each change of address space. A kernel marks its own pages
 * global, so that it need not walk its tables for each of them again; here the software TLB's entries
 * for CPL 0 are kept if they are global, and the others are dropped one by one.
 */
#ifndef RV_GLOBALS_H
#define RV_GLOBALS_H

#include <stdint.h>

#include "unicorn_private.h"

struct rv_vcpu;

#define RV_MOST_LOCALS 128u

/* Pages that CPL 0 has used since the last load of CR3 and that are not global. */
struct rv_locals {
    uint64_t pages[RV_MOST_LOCALS];
    uint32_t count; /* more than there is room for: all is to be dropped */
    uint32_t loads; /* of CR3 */
};

/* The software TLB of `mode` has got this entry, for the page at `address`. */
void rv_globals_filled(struct rv_vcpu *v, int mode, uint64_t address, struct rv_uc_tlb_entry *e);

/* Interposed (see engine.h): CR3 is loaded. */
void rv_load_cr3(void *env, uint64_t cr3);

#endif
