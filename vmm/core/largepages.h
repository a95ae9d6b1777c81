/*
 * Large pages of the host behind guest RAM.
 *
 * RAM is a memory file, which a host backs by 4 KiB pages of its own accord, each with a fault of
 * its own. Where the guest's kernel clears page after page of 2 MiB, as it does before it gives a
 * program a large page, the host is asked for all of them at once, and for a large page there, too,
 * once they have been used for a while: the same reach of the processor's TLB as natively.
 */
#ifndef RV_LARGEPAGES_H
#define RV_LARGEPAGES_H

#include <stdint.h>

#include "collapse.h"

struct rv_vcpu;

struct rv_filling {
    uint8_t *settled;   /* a bit for each 2 MiB of RAM: asked for, or better left as it is */
    uint64_t last;      /* the page that was filled last */
    unsigned in_a_row;  /* with neighbours of it in the same 2 MiB */
    struct rv_collapse collapse;
};

/* 0 or -1. */
int rv_largepages_attach(struct rv_vcpu *v);
void rv_largepages_detach(struct rv_vcpu *v);
/* What is there of RAM may be something else now. */
void rv_largepages_forget(struct rv_vcpu *v);

/* The guest has filled most of a page, which lies at `host`. */
void rv_largepages_filled(struct rv_vcpu *v, const uint8_t *host);

#endif
