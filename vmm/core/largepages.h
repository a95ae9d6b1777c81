/*
 * Large pages of the host behind guest RAM.
 *
 * RAM is a memory file, which a host backs by 4 KiB pages of its own accord, each with a fault of
 * its own. Where the guest's kernel clears page after page of 2 MiB, as it does before it gives a
 * program a large page, the host is asked for a large page there, too: one fault instead of 512, and
 * the same reach of the processor's TLB as natively. How is collapse.h's matter.
 */
#ifndef RV_LARGEPAGES_H
#define RV_LARGEPAGES_H

#include <stdint.h>

#include "collapse.h"

struct rv_vcpu;

struct rv_filling {
    uint64_t last;      /* the page that was filled last */
    unsigned in_a_row;  /* with neighbours of it in the same 2 MiB */
    struct rv_collapse collapse;
};

/* The guest has filled most of a page, which lies at `host`. */
void rv_largepages_filled(struct rv_vcpu *v, const uint8_t *host);

#endif
